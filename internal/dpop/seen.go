package dpop

import (
	"crypto/sha256"
	"errors"
	"sync"
	"time"
)

// ErrFull: so many proofs were shown that none can be remembered any more.
var ErrFull = errors.New("too many proofs of possession at once")

// Seen remembers proofs for as long as they count, in memory. Its methods may be
// called concurrently.
type Seen struct {
	most int

	mu sync.Mutex
	// young are proofs of this span, old those of the one before: both are kept for
	// longer than any proof counts.
	young, old map[[16]byte]struct{}
	turned     time.Time
}

// NewSeen remembers up to most proofs in each span of two windows.
func NewSeen(most int) *Seen {
	return &Seen{most: most, young: map[[16]byte]struct{}{}, old: map[[16]byte]struct{}{}}
}

// span is how long the longest proof counts: one made a window ahead of now.
const span = 2*Window + 2*time.Second

// Add notes a proof. It fails with ErrProof and ErrReplayed when it was shown before, and with
// ErrFull: what cannot be remembered is not accepted.
func (s *Seen) Add(p *Proof, now time.Time) error {
	sum := sha256.Sum256([]byte(p.Thumbprint + "\x00" + p.ID))
	id := [16]byte(sum[:16])
	s.mu.Lock()
	defer s.mu.Unlock()
	if age := now.Sub(s.turned); age >= 2*span {
		clear(s.young)
		clear(s.old)
		s.turned = now
	} else if age >= span {
		s.young, s.old = s.old, s.young
		clear(s.young)
		s.turned = now
	}
	_, young := s.young[id]
	_, old := s.old[id]
	switch {
	case young || old:
		return errors.Join(ErrProof, ErrReplayed)
	case len(s.young) >= s.most:
		return ErrFull
	}
	s.young[id] = struct{}{}
	return nil
}
