package key

import (
	"errors"
	"fmt"
	"strings"
)

// ErrName is wrapped by every error that ParseName returns.
var ErrName = errors.New("invalid key name")

// MaxNameLength is the longest accepted key name, in bytes.
const MaxNameLength = 253

// Name identifies a key, for example "prod/orders/db". It consists of one or
// more segments joined by "/"; a segment has 1 to 63 characters out of
// a-z, 0-9, ".", "_" and "-", and begins and ends with a letter or a digit.
// The zero value is not a valid name.
type Name string

// ParseName checks s and returns it as a Name. The error wraps ErrName and says
// which segment is wrong and what would be right.
func ParseName(s string) (Name, error) {
	if s == "" {
		return "", fmt.Errorf("%w: it is empty; write for example prod/orders/db", ErrName)
	}
	if len(s) > MaxNameLength {
		return "", fmt.Errorf("%w: it has %d characters, at most %d are allowed", ErrName, len(s), MaxNameLength)
	}
	for segment := range strings.SplitSeq(s, "/") {
		if err := checkSegment(segment); err != nil {
			return "", fmt.Errorf("%w %q: %w", ErrName, s, err)
		}
	}
	return Name(s), nil
}

func checkSegment(segment string) error {
	if segment == "" {
		return errors.New("a segment between slashes is empty")
	}
	if len(segment) > 63 {
		return fmt.Errorf("segment %q has %d characters, at most 63 are allowed", segment, len(segment))
	}
	for i, r := range segment {
		inner := i > 0 && i < len(segment)-1
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
		case inner && (r == '.' || r == '_' || r == '-'):
		default:
			return fmt.Errorf("character %q at position %d of segment %q; use a-z, 0-9 and, between them, '.', '_' and '-'", r, i+1, segment)
		}
	}
	return nil
}

// String returns the name as it is written in documents and on command lines.
func (n Name) String() string { return string(n) }

// Valid reports whether ParseName would accept n.
func (n Name) Valid() bool {
	_, err := ParseName(string(n))
	return err == nil
}
