package rotation

import (
	"fmt"
	"slices"
)

// Phase is where a rotation stands. The zero value is invalid.
type Phase uint8

// The phases, in the order of the protocol; those from Done on are final.
const (
	// Planned: window, approvals, room and preflight are checked.
	Planned Phase = iota + 1
	// Minting: the new version is generated and stored.
	Minting
	// Accepting: every verifier takes the new version beside the old one, and it is tried.
	Accepting
	// Presenting: stage by stage presenters are told to use the new version.
	Presenting
	// Draining: the new version is current, the old one still accepted.
	Draining
	// Revoking: every verifier refuses the old version, and the refusal is tried.
	Revoking
	// Quarantine: the old version is suspended, restorable in one step.
	Quarantine
	// Destroying: the old version is deactivated and waits for its destruction.
	Destroying
	// RollingBack: presenters return to the old version, the new one is refused.
	RollingBack
	// Done: the rotation ended as planned.
	Done
	// RolledBack: the old version is in use, the new one refused.
	RolledBack
	// Failed: it stopped before any effect outside.
	Failed
	// Cancelled: it was given up before any effect outside.
	Cancelled
	// Superseded: another rotation took its place.
	Superseded
)

var phaseNames = []string{
	"", "planned", "minting", "accepting", "presenting", "draining", "revoking", "quarantine", "destroying",
	"rolling-back", "done", "rolled-back", "failed", "cancelled", "superseded",
}

// Phases returns every phase in order.
func Phases() []Phase {
	all := make([]Phase, 0, len(phaseNames)-1)
	for p := Planned; int(p) < len(phaseNames); p++ {
		all = append(all, p)
	}
	return all
}

// CutOver reports whether a rotation in p is the key's one open cut-over.
func (p Phase) CutOver() bool {
	return p == Minting || p == Accepting || p == Presenting || p == RollingBack
}

// Retiring reports whether a rotation in p retires its old version.
func (p Phase) Retiring() bool { return p >= Draining && p <= Destroying }

// Ended reports whether p is final.
func (p Phase) Ended() bool { return p >= Done }

// String returns the phase's name, "invalid" for the zero value.
func (p Phase) String() string { return enumName(p, phaseNames) }

// MarshalText implements encoding.TextMarshaler.
func (p Phase) MarshalText() ([]byte, error) { return marshalEnum(p, phaseNames) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Phase) UnmarshalText(text []byte) error { return unmarshalEnum(p, text, phaseNames) }

// Kind says why a rotation was begun. The zero value is invalid.
type Kind uint8

// The kinds.
const (
	// Scheduled: its time had come.
	Scheduled Kind = iota + 1
	// Manual: somebody asked for it.
	Manual
	// Emergency: a version is known or suspected to be compromised.
	Emergency
	// Rollback: it brings an existing version back after a cut-over.
	Rollback
)

var kindNames = []string{"", "scheduled", "manual", "emergency", "rollback"}

// String returns the kind's name, "invalid" for the zero value.
func (k Kind) String() string { return enumName(k, kindNames) }

// MarshalText implements encoding.TextMarshaler.
func (k Kind) MarshalText() ([]byte, error) { return marshalEnum(k, kindNames) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *Kind) UnmarshalText(text []byte) error { return unmarshalEnum(k, text, kindNames) }

// Strategy is how an emergency treats a compromised version that is in use.
// The zero value stands outside an emergency.
type Strategy uint8

// The strategies.
const (
	// ReplaceFirst brings in a new version at once and revokes the old one after a
	// short grace, as soon as no registered presenter may be using it.
	ReplaceFirst Strategy = iota + 1
	// ContainFirst refuses the compromised version at once, whoever uses it, and
	// brings in a new one beside. It alone may lock presenters out.
	ContainFirst
)

var strategyNames = []string{"", "replace-first", "contain-first"}

// String returns the strategy's name, "invalid" for the zero value.
func (s Strategy) String() string { return enumName(s, strategyNames) }

// MarshalText implements encoding.TextMarshaler; the zero value is the empty text.
func (s Strategy) MarshalText() ([]byte, error) {
	if s == 0 {
		return nil, nil
	}
	return marshalEnum(s, strategyNames)
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Strategy) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*s = 0
		return nil
	}
	return unmarshalEnum(s, text, strategyNames)
}

func enumName[T ~uint8](v T, names []string) string {
	if v == 0 || int(v) >= len(names) {
		return "invalid"
	}
	return names[v]
}

func marshalEnum[T ~uint8](v T, names []string) ([]byte, error) {
	if v == 0 || int(v) >= len(names) {
		return nil, fmt.Errorf("%T(%d) is invalid", v, v)
	}
	return []byte(names[v]), nil
}

func unmarshalEnum[T ~uint8](v *T, text []byte, names []string) error {
	i := slices.Index(names, string(text))
	if i <= 0 {
		return fmt.Errorf("unknown %T %q", *v, text)
	}
	*v = T(i)
	return nil
}
