// Package authz decides who may do what: roles, limited to keys by patterns.
//
// Guarantees: Allow is pure; what it does not know it denies; every denial says
// why and who could grant it. It may be called concurrently.
package authz

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/key"
)

// Role is what a principal is there for. The zero value is invalid and allows
// nothing.
type Role uint8

// The roles.
const (
	// Admin may do everything.
	Admin Role = iota + 1
	// Operator applies documents and runs rotations; it reads no secrets.
	Operator
	// Approver reads, and approves rotations.
	Approver
	// Viewer reads what is public.
	Viewer
	// Agent presents keys: it watches, acknowledges and reports, and reads secrets.
	Agent
	// Join is redeemed once for a token of role Agent.
	Join
	// Verifier verifies what others show: API keys. It reads and presents nothing.
	Verifier
	// Scanner learns whether what it found is a secret of a key. It reads nothing.
	Scanner
	// Gateway serves a region: it presents and verifies like those whom it serves, and
	// vouches for their addresses. It reads no secrets of keys that it does not present.
	Gateway
)

var roleNames = []string{"", "admin", "operator", "approver", "viewer", "agent", "join", "verifier", "scanner", "gateway"}

// String returns the role's name, "invalid" for the zero value.
func (r Role) String() string {
	if r == 0 || int(r) >= len(roleNames) {
		return "invalid"
	}
	return roleNames[r]
}

// ParseRole reads a role's name.
func ParseRole(s string) (Role, error) {
	if i := slices.Index(roleNames, s); i > 0 {
		return Role(i), nil
	}
	return 0, fmt.Errorf("unknown role %q; the roles are %s", s, strings.Join(roleNames[1:], ", "))
}

// Action is something that may be allowed. The zero value is invalid.
type Action uint8

// The actions.
const (
	// Read: see keys, rotations, parties and the audit log.
	Read Action = iota + 1
	// Reveal: read the secrets of a version.
	Reveal
	// Present: watch a key, acknowledge, report.
	Present
	// Apply: create, change and delete documents.
	Apply
	// Operate: begin, pause, resume, cancel and roll back rotations; remove parties.
	Operate
	// Approve: agree to a rotation.
	Approve
	// Administer: create, list and revoke tokens.
	Administer
	// Redeem: exchange a join token.
	Redeem
	// Backup: take a copy of everything, encrypted.
	Backup
	// Verify: learn whose an API key is that somebody showed.
	Verify
	// Scan: learn whether a text that was found is a secret of a key.
	Scan
	// Forward: send on the requests of others, vouch for their addresses, and tell what
	// was handed out to them.
	Forward
)

var actionNames = []string{"", "read", "reveal", "present", "apply", "operate", "approve", "administer", "redeem", "backup", "verify", "scan", "forward"}

// String returns the action's name, "invalid" for the zero value.
func (a Action) String() string {
	if a == 0 || int(a) >= len(actionNames) {
		return "invalid"
	}
	return actionNames[a]
}

func (r Role) allows(a Action) bool {
	switch r {
	case Admin:
		return a != 0 && a != Redeem
	case Operator:
		return a == Read || a == Apply || a == Operate
	case Approver:
		return a == Read || a == Approve
	case Viewer:
		return a == Read
	case Agent:
		return a == Present || a == Reveal
	case Join:
		return a == Redeem
	case Verifier:
		return a == Verify
	case Scanner:
		return a == Scan
	case Gateway:
		return a == Present || a == Verify || a == Forward
	}
	return false
}

// Principal is who asks.
type Principal struct {
	// ID is unique and appears in audit entries; Name is for humans.
	ID   string
	Name string
	Role Role
	// Keys are the patterns of the keys the role holds for; none means no key.
	Keys []string
	// Party is the only party the principal may speak for; empty means any whose
	// ID begins with the principal's name and a slash, or is that name.
	Party string
}

// ErrDenied is wrapped by every denial.
var ErrDenied = errors.New("not allowed")

// Allow decides whether p may do a to the key; an empty name stands for what
// concerns no single key.
func Allow(p Principal, a Action, name key.Name) error {
	if !p.Role.allows(a) {
		return fmt.Errorf("%w: %s has role %v, which may not %v; ask an admin for a token with another role", ErrDenied, p.Name, p.Role, a)
	}
	if name == "" || Covers(p.Keys, name) {
		return nil
	}
	return fmt.Errorf("%w: the token of %s does not cover key %s, only %s; ask an admin for one that does", ErrDenied, p.Name, name, strings.Join(p.Keys, ", "))
}

// Covers reports whether any of the patterns matches the key.
func Covers(patterns []string, name key.Name) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return Match(pattern, name) })
}

// ErrPattern is wrapped by every error about a pattern.
var ErrPattern = errors.New("invalid key pattern")

// MaxPattern is the longest accepted pattern, in bytes.
const MaxPattern = 253

// CheckPattern reports what is wrong with a pattern. A pattern is a key name in
// which "*" stands for any text within a segment and a segment "**" for any
// number of segments, none included.
func CheckPattern(pattern string) error {
	if pattern == "" || len(pattern) > MaxPattern {
		return fmt.Errorf("%w %q: it has %d characters, 1 to %d are allowed", ErrPattern, pattern, len(pattern), MaxPattern)
	}
	for segment := range strings.SplitSeq(pattern, "/") {
		if segment == "**" {
			continue
		}
		if strings.Contains(segment, "**") {
			return fmt.Errorf("%w %q: ** stands for whole segments; write for example prod/**", ErrPattern, pattern)
		}
		if _, err := key.ParseName(strings.ReplaceAll("a"+segment+"a", "*", "a")); err != nil || segment == "" {
			return fmt.Errorf("%w %q: segment %q; use a-z, 0-9, '.', '_', '-' and '*'", ErrPattern, pattern, segment)
		}
	}
	return nil
}

// Match reports whether the pattern matches the key. An invalid pattern matches
// nothing.
func Match(pattern string, name key.Name) bool {
	if CheckPattern(pattern) != nil || !name.Valid() {
		return false
	}
	return matchSegments(strings.Split(pattern, "/"), strings.Split(string(name), "/"))
}

func matchSegments(pattern, name []string) bool {
	// The table says which prefixes of name the pattern so far matches, so that the
	// cost is bounded by the product of the lengths.
	reached := make([]bool, len(name)+1)
	reached[0] = true
	for _, segment := range pattern {
		next := make([]bool, len(name)+1)
		for i := range reached {
			switch {
			case segment == "**":
				next[i] = reached[i] || i > 0 && next[i-1]
			case i > 0 && reached[i-1]:
				ok, err := path.Match(segment, name[i-1])
				next[i] = ok && err == nil
			}
		}
		reached = next
	}
	return reached[len(name)]
}

// MaySpeakFor decides whether p may act as the party.
func MaySpeakFor(p Principal, party string) error {
	switch {
	case p.Role == Admin:
		return nil
	case p.Party != "" && p.Party == party:
		return nil
	case p.Party == "" && (party == p.Name || strings.HasPrefix(party, p.Name+"/")):
		return nil
	case p.Party != "":
		return fmt.Errorf("%w: the token belongs to party %q, not to %q", ErrDenied, p.Party, party)
	}
	return fmt.Errorf("%w: the token of %s may speak for party %q and those that begin with %q, not for %q", ErrDenied, p.Name, p.Name, p.Name+"/", party)
}
