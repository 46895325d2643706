package keytable

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"sync"
)

// Hash is the keyed hash of an API key: HMAC-SHA-256 under a pepper. Without the
// key it cannot be turned into anything that is let in, and 178 random bits cannot
// be guessed, with the pepper or without.
type Hash [sha256.Size]byte

// String returns the hash in base64.
func (h Hash) String() string { return base64.RawStdEncoding.EncodeToString(h[:]) }

// ParseHash reads what String wrote.
func ParseHash(s string) (h Hash, err error) {
	b, err := base64.RawStdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(h) {
		return h, fmt.Errorf("%d characters are no hash of an API key", len(s))
	}
	return Hash(b), nil
}

// Hasher computes hashes under one pepper. Its methods may be called concurrently
// and do not allocate once they are warm.
type Hasher struct{ states sync.Pool }

// state is what one hash is computed in.
type state struct {
	mac hash.Hash
	in  []byte
	out []byte
}

// NewHasher returns a hasher; it keeps what it needs of pepper, not pepper itself.
func NewHasher(pepper []byte) *Hasher {
	kept := append([]byte(nil), pepper...)
	return &Hasher{states: sync.Pool{New: func() any {
		return &state{mac: hmac.New(sha256.New, kept), in: make([]byte, 0, MaxLength), out: make([]byte, 0, sha256.Size)}
	}}}
}

// Sum checks the form of text and hashes it; it fails with ErrForm.
func (h *Hasher) Sum(text []byte) (Hash, error) {
	if len(text) > MaxLength {
		return Hash{}, ErrForm
	}
	s := h.state()
	s.in = append(s.in[:0], text...)
	return h.finish(s)
}

// SumString is Sum of a string.
func (h *Hasher) SumString(text string) (Hash, error) {
	if len(text) > MaxLength {
		return Hash{}, ErrForm
	}
	s := h.state()
	s.in = append(s.in[:0], text...)
	return h.finish(s)
}

func (h *Hasher) state() *state {
	if s, ok := h.states.Get().(*state); ok {
		return s
	}
	panic("keytable: the pool holds nothing but states")
}

// finish hashes what is in the state, which it gives back without the key.
func (h *Hasher) finish(s *state) (sum Hash, err error) {
	if err = Check(s.in); err == nil {
		s.mac.Reset()
		_, _ = s.mac.Write(s.in) // a hash never fails
		s.out = s.mac.Sum(s.out[:0])
		sum = Hash(s.out)
	}
	clear(s.in)
	h.states.Put(s)
	return sum, err
}

// Derive returns a pepper for another purpose. From it neither the first one nor
// that of a third purpose can be computed.
func Derive(pepper []byte, purpose string) []byte {
	mac := hmac.New(sha256.New, pepper)
	_, _ = mac.Write([]byte("keyturn API keys 1 " + purpose)) // a hash never fails
	return mac.Sum(nil)
}
