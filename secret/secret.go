// Package secret holds bytes that must not be seen.
//
// Guarantees: a Value prints as "[redacted]" by every verb of package fmt, by
// log/slog and by the JSON and text encoders; the plaintext comes out only
// through Reveal or RevealString, which reviewers find by searching for
// "Reveal". Comparison takes constant time. The package imports the standard
// library only.
package secret

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Redacted is what a Value prints as, whatever it contains.
const Redacted = "[redacted]"

// ErrEncode is returned by every encoder that is asked to write a Value: a
// secret that should be stored must be sealed first.
var ErrEncode = errors.New("a secret value cannot be encoded; seal it first")

// Value holds secret bytes. The zero value is empty. Copies share the bytes,
// so Zero clears them for every copy. Reading is safe from several goroutines;
// Zero must not run beside other methods.
//
// The bytes sit inside a closure because package fmt calls no method on an
// unexported field of somebody else's struct, nor for a verb it rejects: it
// prints the raw contents instead, and of a function only the address.
type Value struct{ reveal func() []byte }

// New returns a Value that holds a copy of b.
func New(b []byte) Value {
	b = bytes.Clone(b)
	return Value{reveal: func() []byte { return b }}
}

// NewString returns a Value that holds the bytes of s.
func NewString(s string) Value {
	b := []byte(s)
	return Value{reveal: func() []byte { return b }}
}

// Reveal returns the plaintext bytes. They are not a copy: the caller must
// neither change nor keep them.
func (v Value) Reveal() []byte {
	if v.reveal == nil {
		return nil
	}
	return v.reveal()
}

// RevealString returns the plaintext as a string. The string cannot be cleared
// from memory afterwards; prefer Reveal where the consumer takes bytes.
func (v Value) RevealString() string { return string(v.Reveal()) }

// Len returns the number of bytes.
func (v Value) Len() int { return len(v.Reveal()) }

// Equal reports in constant time whether both values hold the same bytes.
// Only the lengths may be learnt from its timing.
func (v Value) Equal(other Value) bool {
	return subtle.ConstantTimeCompare(v.Reveal(), other.Reveal()) == 1
}

// Zero overwrites the bytes. The Value and its copies then hold zero bytes.
func (v Value) Zero() { clear(v.Reveal()) }

// String implements fmt.Stringer and returns Redacted.
func (Value) String() string { return Redacted }

// GoString implements fmt.GoStringer and returns Redacted.
func (Value) GoString() string { return Redacted }

// Format implements fmt.Formatter: every verb prints Redacted.
func (Value) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, Redacted) }

// LogValue implements slog.LogValuer and returns Redacted.
func (Value) LogValue() slog.Value { return slog.StringValue(Redacted) }

// MarshalJSON always fails with ErrEncode.
func (Value) MarshalJSON() ([]byte, error) { return nil, ErrEncode }

// MarshalText always fails with ErrEncode.
func (Value) MarshalText() ([]byte, error) { return nil, ErrEncode }

// MarshalBinary always fails with ErrEncode.
func (Value) MarshalBinary() ([]byte, error) { return nil, ErrEncode }

// GobEncode always fails with ErrEncode.
func (Value) GobEncode() ([]byte, error) { return nil, ErrEncode }
