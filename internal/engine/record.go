package engine

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// The kinds of documents in the store.
const (
	kindPolicy     = "policy"
	kindFreeze     = "freeze"
	kindRule       = "rule"
	kindKey        = "key"
	kindState      = "state"
	kindVersion    = "version"
	kindRotation   = "rotation"
	kindOfKey      = "rotation-of-key"
	kindCheckpoint = "checkpoint"
	kindRequest    = "request"
	kindRestore    = "restore"
)

// Material is what a version consists of, for callers that know no providers.
type Material = provider.Material

// KeyRecord is a key as it was applied.
type KeyRecord struct {
	// Resource is the policy.Key in its canonical JSON form.
	Resource json.RawMessage `json:"resource"`
	Applied  time.Time       `json:"applied"`
	Created  time.Time       `json:"created"`
	// Scheduled is when the key's cadence last changed.
	Scheduled time.Time `json:"scheduled,omitzero"`
	// LastStart and LastEnd are when the last rotation began and ended.
	LastStart time.Time `json:"lastStart,omitzero"`
	LastEnd   time.Time `json:"lastEnd,omitzero"`
}

// VersionRecord is what is public about a version, also after its destruction.
type VersionRecord struct {
	Number    key.Version    `json:"number"`
	Rotation  key.RotationID `json:"rotation"`
	Created   time.Time      `json:"created"`
	Destroyed time.Time      `json:"destroyed,omitzero"`
	// Escrowed is when the version ended with its sealed material kept: it can be
	// revealed by its number, and is accepted nowhere.
	Escrowed time.Time `json:"escrowed,omitzero"`
	// Forgotten is when the sealed material was shredded although the version lives:
	// its user has it, and nobody else.
	Forgotten time.Time `json:"forgotten,omitzero"`
	// Foreign: it was found at the system after a restore; its material was never
	// here.
	Foreign    bool              `json:"foreign,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
}

// RotationRecord is what is known of a rotation, also after its end.
type RotationRecord struct {
	ID     key.RotationID `json:"id"`
	Key    key.Name       `json:"key"`
	Kind   rotation.Kind  `json:"kind"`
	Phase  rotation.Phase `json:"phase"`
	From   key.Version    `json:"from,omitempty"`
	To     key.Version    `json:"to,omitempty"`
	Reason string         `json:"reason,omitempty"`
	Actor  string         `json:"actor,omitempty"`
	Plan   rotation.Plan  `json:"plan"`
	Judges []JudgeRule    `json:"judges,omitempty"`
	// Policy is the policy by which it began; zero if that was not kept.
	Policy PolicyRef `json:"policy,omitzero"`
	// Group is the group of emergencies that it belongs to, if to one.
	Group key.RotationID `json:"group,omitzero"`

	StartedAt  time.Time `json:"startedAt"`
	PhaseSince time.Time `json:"phaseSince"`
	CutOverAt  time.Time `json:"cutOverAt,omitzero"`
	RevokedAt  time.Time `json:"revokedAt,omitzero"`
	// RefusedAt is when the last verifier was proven to refuse what an emergency
	// declared compromised.
	RefusedAt   time.Time `json:"refusedAt,omitzero"`
	FailedAt    time.Time `json:"failedAt,omitzero"`
	RecoveredAt time.Time `json:"recoveredAt,omitzero"`
	EndedAt     time.Time `json:"endedAt,omitzero"`

	Hold      rotation.Hold     `json:"hold,omitzero"`
	Stage     int               `json:"stage,omitempty"`
	Approvals []string          `json:"approvals,omitempty"`
	Holders   []provider.Holder `json:"holders,omitempty"`
	Uses      int               `json:"uses,omitempty"`
	// MeasuredAt is when Holders and Uses were true.
	MeasuredAt time.Time          `json:"measuredAt,omitzero"`
	Findings   []provider.Finding `json:"findings,omitempty"`
}

// JudgeRule is one condition on the samples of a stage.
type JudgeRule struct {
	Name       string `json:"name"`
	Signal     string `json:"signal"`
	Max        int    `json:"max"`
	MinSamples int    `json:"minSamples"`
}

// Ended reports whether nothing more will happen.
func (r *RotationRecord) Ended() bool { return r.Phase.Ended() }

// take copies what the machine knows.
func (r *RotationRecord) take(from *rotation.Rotation, now time.Time) {
	before := r.Phase
	r.ID, r.Kind, r.Phase, r.From, r.To = from.ID, from.Kind, from.Phase, from.From, from.To
	r.Reason, r.Actor, r.Plan = from.Reason, from.Actor, from.Plan
	r.StartedAt, r.PhaseSince, r.CutOverAt, r.RecoveredAt = from.StartedAt, from.PhaseSince, from.CutOverAt, from.RecoveredAt
	r.Hold, r.Stage, r.Approvals = from.Hold, from.Stage, from.Approvals
	if before == rotation.Revoking && r.Phase != rotation.Revoking {
		r.RevokedAt = now
	}
	if r.Phase == rotation.RollingBack && r.FailedAt.IsZero() {
		r.FailedAt = now
	}
	if r.Phase.Ended() {
		r.EndedAt = now
	}
}

// newestFirst turns an ID into a document name by which newer rotations sort
// before older ones.
func newestFirst(id key.RotationID) string {
	for i := range id {
		id[i] = ^id[i]
	}
	return hex.EncodeToString(id[:])
}

func versionName(name key.Name, v key.Version) string {
	return fmt.Sprintf("%s@%020d", name, v)
}

func encode(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return body, nil
}

func decodeInto(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("stored %T is damaged: %w", v, err)
	}
	return nil
}
