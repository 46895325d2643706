package rotation

import (
	"cmp"
	"slices"
	"time"

	"github.com/keyturn/keyturn/key"
)

// State is all that the machine knows of one key. It is a value: Step returns a
// new one and leaves the old one as it was. The zero value is the state of a key
// before its first event, which must be Configured.
type State struct {
	// Seq is the number of events folded so far.
	Seq uint64 `json:"seq"`
	// Now is the latest time any event told; it never goes back.
	Now time.Time `json:"now,omitzero"`
	// Next is the smallest version number never used.
	Next key.Version `json:"next"`
	// Epoch is the largest epoch under which any presenter was told.
	Epoch uint64 `json:"epoch,omitempty"`
	// Tries numbers the effects at verifiers.
	Tries uint32 `json:"tries,omitempty"`
	// Capacity is how many versions the system can hold, 0 for any number.
	Capacity int `json:"capacity,omitempty"`
	// Gap: accepting a version makes the system refuse the one before it.
	Gap bool `json:"gap,omitempty"`

	// Versions that are not destroyed, by number.
	Versions []Version `json:"versions,omitempty"`
	// Verifiers and Presenters by ID.
	Verifiers  []Verifier  `json:"verifiers,omitempty"`
	Presenters []Presenter `json:"presenters,omitempty"`
	// Rotations that have not ended, in the order of their beginning.
	Rotations []Rotation `json:"rotations,omitempty"`
	// Ended are the rotations that the last event ended.
	Ended []Rotation `json:"ended,omitempty"`

	// Recovery is set while the key stands still after a restore.
	Recovery Recovery `json:"recovery,omitzero"`
	// Floor is the epoch below which tellings may belong to a time that is missing.
	Floor uint64 `json:"floor,omitempty"`
}

// Version is one version of the key.
type Version struct {
	Number key.Version `json:"number"`
	State  key.State   `json:"state"`
	Label  key.Label   `json:"label,omitempty"`
	// Rotation is the one that minted it.
	Rotation key.RotationID `json:"rotation"`
	MintedAt time.Time      `json:"mintedAt"`
	// CurrentSince is when it last became the current version.
	CurrentSince time.Time `json:"currentSince,omitzero"`
	// Contained: it must be refused everywhere at once, whoever uses it.
	Contained bool `json:"contained,omitempty"`
	// Foreign: it was brought in during a time that is missing after a restore. Its
	// material is not here: nobody can be told it, and no verifier asked to accept it.
	Foreign bool `json:"foreign,omitempty"`
	// DestroyAt is when its material is destroyed; zero while that is not decided.
	DestroyAt time.Time `json:"destroyAt,omitzero"`
	// Destroy is the effect that does so.
	Destroy Task `json:"destroy,omitzero"`
}

// Acceptance is what the machine knows of one verifier about one version.
// The zero value is invalid; a verifier that was never asked has no Slot.
type Acceptance uint8

// The values; each that ends in -ing waits for the answer to an effect.
const (
	// AcceptPending: asked to accept; it may or may not accept by now.
	AcceptPending Acceptance = iota + 1
	// AcceptProbing: it says that it accepts; being tried.
	AcceptProbing
	// Accepted: proven by a try.
	Accepted
	// RefusePending: asked to refuse; it may or may not accept still.
	RefusePending
	// RefuseProbing: it says that it refuses; being tried.
	RefuseProbing
	// Refused: proven by a try.
	Refused
)

var acceptanceNames = []string{"", "accept-pending", "accept-probing", "accepted", "refuse-pending", "refuse-probing", "refused"}

// String returns the name, "invalid" for the zero value.
func (a Acceptance) String() string { return enumName(a, acceptanceNames) }

// MarshalText implements encoding.TextMarshaler.
func (a Acceptance) MarshalText() ([]byte, error) { return marshalEnum(a, acceptanceNames) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Acceptance) UnmarshalText(text []byte) error { return unmarshalEnum(a, text, acceptanceNames) }

// Verifier is one place that accepts or refuses versions.
type Verifier struct {
	ID     string `json:"id"`
	Region string `json:"region,omitempty"`
	// Admitted: presenters may reach it. A verifier that joins is admitted when it
	// accepts every version in use.
	Admitted bool `json:"admitted,omitempty"`
	// Slots by version; never changed in place.
	Slots []Slot `json:"slots,omitempty"`
}

// Slot is one version at one verifier.
type Slot struct {
	Version    key.Version `json:"version"`
	Acceptance Acceptance  `json:"acceptance"`
	// Try is the number of the effect that was asked for last.
	Try uint32 `json:"try"`
	// Contradictions counts probes in a row that gave the lie to the verifier.
	Contradictions int `json:"contradictions,omitempty"`
	// Failed: the effect failed for good; it is tried again after RetryAt, or when
	// the rotation is resumed.
	Failed  bool      `json:"failed,omitempty"`
	RetryAt time.Time `json:"retryAt,omitzero"`
	// Trouble is the last error, empty when all is well.
	Trouble string `json:"trouble,omitempty"`
	// Waits says what the verifier waits for, when it takes its time and nothing is
	// wrong; then Trouble is empty.
	Waits string `json:"waits,omitempty"`
	// Insisted says why refusing a compromised version has failed; it is tried on.
	Insisted string `json:"insisted,omitempty"`
}

// Presenter is one party that uses the key.
type Presenter struct {
	ID     string `json:"id"`
	Region string `json:"region,omitempty"`
	Stage  int    `json:"stage"`
	// Told is the version it was last told to use, Epoch numbers the tellings.
	Told  key.Version `json:"told,omitempty"`
	Epoch uint64      `json:"epoch,omitempty"`
	// Heard is the order of the latest answer to Epoch, 0 while none had one.
	Heard uint64 `json:"heard,omitempty"`
	// Acked: it answered to Epoch. Failed: that answer, or a later one, was bad.
	Acked  bool   `json:"acked,omitempty"`
	Failed bool   `json:"failed,omitempty"`
	Detail string `json:"detail,omitempty"`
	// Maybe are the versions it may be using; never changed in place.
	Maybe []key.Version `json:"maybe,omitempty"`
	// Also are versions that it may be using as well, since what it was told last
	// was lost with a restore; never changed in place.
	Also []key.Version `json:"also,omitempty"`
	// Silent: it was not heard of since the store was restored.
	Silent bool `json:"silent,omitempty"`
}

// MayUse reports whether the presenter may be using v.
func (p *Presenter) MayUse(v key.Version) bool {
	return slices.Contains(p.Maybe, v) || slices.Contains(p.Also, v)
}

// Uses reports whether the presenter certainly uses v, and only v, and is well.
func (p *Presenter) Uses(v key.Version) bool {
	return p.Told == v && p.Acked && !p.Failed && len(p.Maybe) == 1 && p.Maybe[0] == v && len(p.Also) == 0
}

// Rotation is one rotation that has not ended.
type Rotation struct {
	ID    key.RotationID `json:"id"`
	Kind  Kind           `json:"kind"`
	Phase Phase          `json:"phase"`
	// From is the version to retire, 0 for the first version of a key; To the one
	// to bring in, 0 before minting.
	From key.Version `json:"from,omitempty"`
	To   key.Version `json:"to,omitempty"`
	Plan Plan        `json:"plan"`

	Reason string `json:"reason,omitempty"`
	Actor  string `json:"actor,omitempty"`

	StartedAt   time.Time `json:"startedAt"`
	PhaseSince  time.Time `json:"phaseSince"`
	CutOverAt   time.Time `json:"cutOverAt,omitzero"`
	RecoveredAt time.Time `json:"recoveredAt,omitzero"`

	Approvals []string `json:"approvals,omitempty"`
	Hold      Hold     `json:"hold,omitzero"`
	// Stage is the index of the stage that is presented to, Bake when all of it had
	// acknowledged.
	Stage      int       `json:"stage,omitempty"`
	StageSince time.Time `json:"stageSince,omitzero"`
	BakeSince  time.Time `json:"bakeSince,omitzero"`
	JudgeAt    time.Time `json:"judgeAt,omitzero"`
	// QuietSince is when measured use became zero; zero while it is not.
	QuietSince time.Time `json:"quietSince,omitzero"`
	MeasureAt  time.Time `json:"measureAt,omitzero"`
	// Task is the effect of the rotation itself that is under way.
	Task Task `json:"task,omitzero"`
	// Unreached are the verifiers at which that effect failed last, as far as it is
	// known; never changed in place. It fails since UnreachedSince.
	Unreached      []string  `json:"unreached,omitempty"`
	UnreachedSince time.Time `json:"unreachedSince,omitzero"`
	// Presented: presenters may have been told to use To.
	Presented bool `json:"presented,omitempty"`
	// Trail are the phases that the last event led through, the present one last;
	// empty when it changed none. It is not part of the stored state.
	Trail []Phase `json:"-"`
	// Exit is the final phase a roll-back leads to.
	Exit Phase `json:"exit,omitempty"`
}

// Task is an effect that concerns no single verifier. The zero value means none.
type Task struct {
	Kind EffectKind `json:"kind,omitempty"`
	Try  uint32     `json:"try,omitempty"`
	// Waiting: its result has not come yet. Done: it has, and was good.
	Waiting bool `json:"waiting,omitempty"`
	Done    bool `json:"done,omitempty"`
	// Failed: it failed for good and waits to be resumed.
	Failed  bool   `json:"failed,omitempty"`
	Trouble string `json:"trouble,omitempty"`
}

// Hold says why a rotation does not go on. The zero value means that it does.
type Hold struct {
	Reason  HoldReason `json:"reason,omitempty"`
	Message string     `json:"message,omitempty"`
	// Human: only Resume, Cancel or a roll-back ends it. Otherwise it ends by itself
	// when its cause is gone.
	Human bool      `json:"human,omitempty"`
	Since time.Time `json:"since,omitzero"`
}

// HoldReason is the machine-readable cause of a hold.
type HoldReason string

// The reasons.
const (
	HoldOperator    HoldReason = "operator"
	HoldNoRoom      HoldReason = "no-room"
	HoldNoVerifier  HoldReason = "no-verifier"
	HoldEffect      HoldReason = "effect-failed"
	HoldTrouble     HoldReason = "effect-trouble"
	HoldContradict  HoldReason = "verifier-contradicts"
	HoldStageEmpty  HoldReason = "stage-empty"
	HoldStageLate   HoldReason = "stage-late"
	HoldStageFailed HoldReason = "stage-failed"
	HoldNoData      HoldReason = "no-data"
	HoldDrainMax    HoldReason = "drain-max"
	HoldGraceOver   HoldReason = "grace-over"
	HoldRefusal     HoldReason = "refusal-failing"
)

// Version returns the version with the given number.
func (s *State) Version(v key.Version) (*Version, bool) {
	i, ok := slices.BinarySearchFunc(s.Versions, v, func(a Version, v key.Version) int { return cmp.Compare(a.Number, v) })
	if !ok {
		return nil, false
	}
	return &s.Versions[i], true
}

// Labelled returns the number of the version with the label, 0 for none.
func (s *State) Labelled(l key.Label) key.Version {
	for i := range s.Versions {
		if s.Versions[i].Label == l {
			return s.Versions[i].Number
		}
	}
	return 0
}

// Rotation returns the open rotation with the given ID.
func (s *State) Rotation(id key.RotationID) (*Rotation, bool) {
	for i := range s.Rotations {
		if s.Rotations[i].ID == id {
			return &s.Rotations[i], true
		}
	}
	return nil, false
}

// CutOver returns the rotation that is the open cut-over.
func (s *State) CutOver() (*Rotation, bool) {
	for i := range s.Rotations {
		if s.Rotations[i].Phase.CutOver() {
			return &s.Rotations[i], true
		}
	}
	return nil, false
}

// Slot returns what is known of the verifier about v.
func (w *Verifier) Slot(v key.Version) (Slot, bool) {
	for _, slot := range w.Slots {
		if slot.Version == v {
			return slot, true
		}
	}
	return Slot{}, false
}

// Presenter returns the presenter with the given ID.
func (s *State) Presenter(id string) (*Presenter, bool) {
	i, ok := slices.BinarySearchFunc(s.Presenters, id, func(p Presenter, id string) int { return cmp.Compare(p.ID, id) })
	if !ok {
		return nil, false
	}
	return &s.Presenters[i], true
}

// Verifier returns the verifier with the given ID.
func (s *State) Verifier(id string) (*Verifier, bool) {
	for i := range s.Verifiers {
		if s.Verifiers[i].ID == id {
			return &s.Verifiers[i], true
		}
	}
	return nil, false
}

// Live returns the numbers of the versions that occupy a place in the system:
// those a verifier accepts or may accept, and those in quarantine.
func (s *State) Live() []key.Version {
	var live []key.Version
	for i := range s.Versions {
		v := &s.Versions[i]
		if v.State == key.Suspended || s.maybeAccepted(v.Number) {
			live = append(live, v.Number)
		}
	}
	return live
}

// maybeAccepted reports whether any verifier accepts v or might.
func (s *State) maybeAccepted(v key.Version) bool {
	for i := range s.Verifiers {
		if slot, ok := s.Verifiers[i].Slot(v); ok && slot.Acceptance != Refused {
			return true
		}
	}
	return false
}

// clone copies s so deeply that Step may change the copy. Slices documented as
// never changed in place are shared.
func (s State) clone() State {
	s.Versions = slices.Clone(s.Versions)
	s.Verifiers = slices.Clone(s.Verifiers)
	s.Presenters = slices.Clone(s.Presenters)
	s.Rotations = slices.Clone(s.Rotations)
	for i := range s.Rotations {
		s.Rotations[i].Trail = nil
	}
	s.Ended = nil
	return s
}
