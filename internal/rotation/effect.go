package rotation

import (
	"strconv"

	"github.com/keyturn/keyturn/key"
)

// EffectKind says what an effect does. The zero value is invalid.
type EffectKind uint8

// The kinds. Those from Preflight to Destroy are answered by a Result.
const (
	// Preflight checks, without changing anything, whether the rotation could succeed.
	Preflight EffectKind = iota + 1
	// Mint generates version Version and stores it sealed.
	Mint
	// Accept makes Verifier accept Version.
	Accept
	// ProbeAccept tries Version at Verifier, which should accept it.
	ProbeAccept
	// Judge decides whether stage Stage passes.
	Judge
	// Measure counts the uses of Version.
	Measure
	// Refuse makes Verifier refuse Version.
	Refuse
	// ProbeRefuse tries Version at Verifier, which should refuse it.
	ProbeRefuse
	// Destroy shreds the material of Version.
	Destroy
	// Tell tells Presenter to use Version under Epoch; it is answered by Acked.
	Tell
	// Reconcile finds out what verifiers accept; it is answered by Reconciled.
	Reconcile
)

var effectNames = []string{
	"", "preflight", "mint", "accept", "probe-accept", "judge", "measure", "refuse", "probe-refuse", "destroy", "tell", "reconcile",
}

// String returns the kind's name, "invalid" for the zero value.
func (k EffectKind) String() string { return enumName(k, effectNames) }

// MarshalText implements encoding.TextMarshaler.
func (k EffectKind) MarshalText() ([]byte, error) { return marshalEnum(k, effectNames) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *EffectKind) UnmarshalText(text []byte) error { return unmarshalEnum(k, text, effectNames) }

// EffectRef identifies an effect within its key.
type EffectRef struct {
	Kind     EffectKind     `json:"kind"`
	Rotation key.RotationID `json:"rotation,omitzero"`
	Version  key.Version    `json:"version,omitempty"`
	Verifier string         `json:"verifier,omitempty"`
	Try      uint32         `json:"try"`
}

// Effect is something to carry out.
type Effect struct {
	EffectRef

	// Stage is the index of the stage to judge.
	Stage int `json:"stage,omitempty"`
	// Presenter and Epoch belong to Tell.
	Presenter string `json:"presenter,omitempty"`
	Epoch     uint64 `json:"epoch,omitempty"`
}

// ID is the effect's idempotency key within its key.
func (r EffectRef) ID() string {
	return r.Lane() + "/" + r.Kind.String() + "/" + strconv.FormatUint(uint64(r.Try), 10)
}

// Lane names the lane in which the effect runs: what concerns one version at one
// verifier runs in one lane, what concerns a rotation in another.
func (r EffectRef) Lane() string {
	if r.Verifier != "" {
		return "v" + strconv.FormatUint(uint64(r.Version), 10) + "@" + r.Verifier
	}
	if r.Kind == Destroy {
		return "destroy/" + strconv.FormatUint(uint64(r.Version), 10)
	}
	if r.Kind == Reconcile {
		return "reconcile"
	}
	return "rotation/" + r.Rotation.String()
}
