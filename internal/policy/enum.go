package policy

import (
	"fmt"
	"strings"
)

// Severity says whether a problem must be mended. The zero value is invalid.
type Severity uint8

// The severities.
const (
	// Error: the resource is refused.
	Error Severity = iota + 1
	// Warning: the resource works, but probably not as intended.
	Warning
)

// OnEmpty says what happens to a stage that no party belongs to. The zero value is invalid.
type OnEmpty uint8

// What happens to an empty stage.
const (
	// EmptyHold holds the rotation: an absent canary has proven nothing.
	EmptyHold OnEmpty = iota + 1
	// EmptySkip goes on to the next stage.
	EmptySkip
)

// OnFailure says what happens when a stage fails. The zero value is invalid.
type OnFailure uint8

// What happens when a stage fails.
const (
	// FailureRollback returns every presenter to the version before.
	FailureRollback OnFailure = iota + 1
	// FailureHold holds the rotation until a human decides.
	FailureHold
)

// OnMax says what happens when draining takes longer than allowed. The zero value is invalid.
type OnMax uint8

// What happens when the drain takes too long.
const (
	// MaxHold holds the rotation and pages: the old version stays accepted.
	MaxHold OnMax = iota + 1
	// MaxRevoke revokes the old version although it is still used.
	MaxRevoke
)

// Strategy is how an emergency proceeds. The zero value is invalid.
type Strategy uint8

// The emergency strategies.
const (
	// ReplaceFirst brings in a new version without bake, then revokes the old one.
	ReplaceFirst Strategy = iota + 1
	// ContainFirst refuses the old version at once and mints beside it; whoever
	// presents it is locked out until the new one arrives.
	ContainFirst
)

// OnSilence says what happens when a target gives no answer. The zero value is invalid.
type OnSilence uint8

// The answers to silence.
const (
	// SilenceWait waits for as long as it takes; the target is paged for.
	SilenceWait OnSilence = iota + 1
	// SilenceHold holds for a human, as after other failures.
	SilenceHold
)

// LeakAction says what happens when a secret in use is found. A larger one does
// more. The zero value is invalid.
type LeakAction uint8

// What happens when a secret in use is found.
const (
	// LeakPage tells a human.
	LeakPage LeakAction = iota + 1
	// LeakApproval begins a rotation that waits for an approval.
	LeakApproval
	// LeakEmergency begins an emergency rotation.
	LeakEmergency
)

// Signal is what a judge looks at. The zero value is invalid.
type Signal uint8

// The signals.
const (
	// AuthFailures counts refused authentications per stage and bake.
	AuthFailures Signal = iota + 1
)

// Kind is the kind of a resource. The zero value is invalid.
type Kind uint8

// The kinds, in the order in which they are applied.
const (
	KindPolicy Kind = iota + 1
	KindFreeze
	KindRule
	KindKey
)

func severityNames() []string  { return []string{Error: "error", Warning: "warning"} }
func onEmptyNames() []string   { return []string{EmptyHold: "hold", EmptySkip: "skip"} }
func onFailureNames() []string { return []string{FailureRollback: "rollback", FailureHold: "hold"} }
func onMaxNames() []string     { return []string{MaxHold: "hold", MaxRevoke: "revoke"} }
func onSilenceNames() []string { return []string{SilenceWait: "wait", SilenceHold: "hold"} }
func leakActionNames() []string {
	return []string{LeakPage: "page", LeakApproval: "approval", LeakEmergency: "emergency"}
}

func signalNames() []string { return []string{AuthFailures: "auth_failures"} }
func strategyNames() []string {
	return []string{ReplaceFirst: "replace-first", ContainFirst: "contain-first"}
}

func kindNames() []string {
	return []string{KindPolicy: "Policy", KindFreeze: "Freeze", KindRule: "Rule", KindKey: "Key"}
}

// enumString returns the name of v, "invalid" for the zero value and unknown ones.
func enumString[T ~uint8](v T, names []string) string {
	if v == 0 || int(v) >= len(names) {
		return "invalid"
	}
	return names[v]
}

func enumMarshal[T ~uint8](v T, names []string) ([]byte, error) {
	if v == 0 || int(v) >= len(names) {
		return nil, fmt.Errorf("invalid value %d; it was never set", v)
	}
	return []byte(names[v]), nil
}

func enumParse[T ~uint8](v *T, text []byte, names []string) error {
	for i, name := range names {
		if name != "" && name == string(text) {
			*v = T(i)
			return nil
		}
	}
	return &hintError{
		problem: fmt.Sprintf("unknown value %s", quote(string(text))),
		hint:    "use " + strings.Join(names[1:], " or "),
	}
}

// String returns "error", "warning" or "invalid".
func (v Severity) String() string { return enumString(v, severityNames()) }

// MarshalText implements encoding.TextMarshaler; the zero value fails.
func (v Severity) MarshalText() ([]byte, error) { return enumMarshal(v, severityNames()) }

// UnmarshalText implements encoding.TextUnmarshaler; it refuses unknown names.
func (v *Severity) UnmarshalText(text []byte) error { return enumParse(v, text, severityNames()) }

// String returns "hold", "skip" or "invalid".
func (v OnEmpty) String() string { return enumString(v, onEmptyNames()) }

// MarshalText implements encoding.TextMarshaler; the zero value fails.
func (v OnEmpty) MarshalText() ([]byte, error) { return enumMarshal(v, onEmptyNames()) }

// UnmarshalText implements encoding.TextUnmarshaler; it refuses unknown names.
func (v *OnEmpty) UnmarshalText(text []byte) error { return enumParse(v, text, onEmptyNames()) }

// String returns "rollback", "hold" or "invalid".
func (v OnFailure) String() string { return enumString(v, onFailureNames()) }

// MarshalText implements encoding.TextMarshaler; the zero value fails.
func (v OnFailure) MarshalText() ([]byte, error) { return enumMarshal(v, onFailureNames()) }

// UnmarshalText implements encoding.TextUnmarshaler; it refuses unknown names.
func (v *OnFailure) UnmarshalText(text []byte) error { return enumParse(v, text, onFailureNames()) }

// String returns "hold", "revoke" or "invalid".
func (v OnMax) String() string { return enumString(v, onMaxNames()) }

// MarshalText implements encoding.TextMarshaler; the zero value fails.
func (v OnMax) MarshalText() ([]byte, error) { return enumMarshal(v, onMaxNames()) }

// UnmarshalText implements encoding.TextUnmarshaler; it refuses unknown names.
func (v *OnMax) UnmarshalText(text []byte) error { return enumParse(v, text, onMaxNames()) }

// String returns "wait", "hold" or "invalid".
func (v OnSilence) String() string { return enumString(v, onSilenceNames()) }

// MarshalText implements encoding.TextMarshaler; the zero value fails.
func (v OnSilence) MarshalText() ([]byte, error) { return enumMarshal(v, onSilenceNames()) }

// UnmarshalText implements encoding.TextUnmarshaler; it refuses unknown names.
func (v *OnSilence) UnmarshalText(text []byte) error { return enumParse(v, text, onSilenceNames()) }

// String returns "replace-first", "contain-first" or "invalid".
func (v Strategy) String() string { return enumString(v, strategyNames()) }

// MarshalText implements encoding.TextMarshaler; the zero value fails.
func (v Strategy) MarshalText() ([]byte, error) { return enumMarshal(v, strategyNames()) }

// UnmarshalText implements encoding.TextUnmarshaler; it refuses unknown names.
func (v *Strategy) UnmarshalText(text []byte) error { return enumParse(v, text, strategyNames()) }

// String returns "page", "approval", "emergency" or "invalid".
func (v LeakAction) String() string { return enumString(v, leakActionNames()) }

// MarshalText implements encoding.TextMarshaler; the zero value fails.
func (v LeakAction) MarshalText() ([]byte, error) { return enumMarshal(v, leakActionNames()) }

// UnmarshalText implements encoding.TextUnmarshaler; it refuses unknown names.
func (v *LeakAction) UnmarshalText(text []byte) error { return enumParse(v, text, leakActionNames()) }

// String returns "auth_failures" or "invalid".
func (v Signal) String() string { return enumString(v, signalNames()) }

// MarshalText implements encoding.TextMarshaler; the zero value fails.
func (v Signal) MarshalText() ([]byte, error) { return enumMarshal(v, signalNames()) }

// UnmarshalText implements encoding.TextUnmarshaler; it refuses unknown names.
func (v *Signal) UnmarshalText(text []byte) error { return enumParse(v, text, signalNames()) }

// String returns "Policy", "Freeze", "Rule", "Key" or "invalid".
func (v Kind) String() string { return enumString(v, kindNames()) }

// MarshalText implements encoding.TextMarshaler; the zero value fails.
func (v Kind) MarshalText() ([]byte, error) { return enumMarshal(v, kindNames()) }

// UnmarshalText implements encoding.TextUnmarshaler; it refuses unknown names.
func (v *Kind) UnmarshalText(text []byte) error { return enumParse(v, text, kindNames()) }
