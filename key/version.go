package key

import "strconv"

// Version numbers the versions of one key. Numbers start at 1 and only grow;
// a number is never used twice, even when minting it failed. Zero means "none".
type Version uint64

// String returns "v7" for version 7 and "none" for zero.
func (v Version) String() string {
	if v == 0 {
		return "none"
	}
	return "v" + strconv.FormatUint(uint64(v), 10)
}

// State is where a version stands in its life (NIST SP 800-57 Part 1 Rev. 5, section 7).
// It says what may be done with the version; it is neither a Label nor the
// phase of a rotation. The zero value is invalid.
type State uint8

// The states of a version.
const (
	// PreActivation: generated and stored, not accepted anywhere yet.
	PreActivation State = iota + 1
	// Active: accepted by verifiers; it may protect, process, or both.
	Active
	// Suspended: refused everywhere, restorable in one step (quarantine).
	Suspended
	// Deactivated: refused for good, its material is retained or in escrow.
	Deactivated
	// Compromised: known or suspected to be in wrong hands; never active again.
	Compromised
	// Destroyed: its material no longer exists.
	Destroyed
)

var stateNames = [...]string{
	PreActivation: "pre-activation",
	Active:        "active",
	Suspended:     "suspended",
	Deactivated:   "deactivated",
	Compromised:   "compromised",
	Destroyed:     "destroyed",
}

// String returns the state's name in lower case, "invalid" for the zero value.
func (s State) String() string {
	if s == 0 || int(s) >= len(stateNames) {
		return "invalid"
	}
	return stateNames[s]
}

// CanBecome reports whether NIST SP 800-57 allows the step from s to next.
// A state may always become itself. Nothing leaves Destroyed, and Compromised
// becomes only Destroyed: a compromised version is never active again.
func (s State) CanBecome(next State) bool {
	if s == next {
		return s != 0
	}
	switch s {
	case PreActivation:
		return next == Active || next == Deactivated || next == Compromised || next == Destroyed
	case Active:
		return next == Suspended || next == Deactivated || next == Compromised
	case Suspended:
		return next == Active || next == Deactivated || next == Compromised
	case Deactivated:
		return next == Compromised || next == Destroyed
	case Compromised:
		return next == Destroyed
	case Destroyed:
		return false
	}
	return false
}

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it refuses unknown names.
func (s *State) UnmarshalText(text []byte) error {
	return unmarshalEnum(s, text, stateNames[:], "state")
}

// Label marks at most one version of a key each. A label says which version a
// reader gets by default; it says nothing about the version's state.
// The zero value means that a version carries no label.
type Label uint8

// The labels.
const (
	// Pending: the version a cut-over is bringing in.
	Pending Label = iota + 1
	// Current: the version that is handed out by default.
	Current
	// Previous: the version that was current before.
	Previous
)

var labelNames = [...]string{Pending: "pending", Current: "current", Previous: "previous"}

// String returns the label's name in lower case, "none" for the zero value.
func (l Label) String() string {
	if l == 0 || int(l) >= len(labelNames) {
		return "none"
	}
	return labelNames[l]
}

// MarshalText implements encoding.TextMarshaler; no label is the empty text.
func (l Label) MarshalText() ([]byte, error) {
	if l == 0 {
		return nil, nil
	}
	return []byte(l.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler; it refuses unknown names.
func (l *Label) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*l = 0
		return nil
	}
	return unmarshalEnum(l, text, labelNames[:], "label")
}
