package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"iter"
	"math/bits"

	"github.com/keyturn/keyturn/key"
)

// Transition is one step of a rotation, as its events tell it.
type Transition struct {
	Rotation key.RotationID
	// Event is the number of the key's event that made the step.
	Event uint64
	// From and To are the names of the phases.
	From, To string
}

// Sum stands for a set of transitions, whatever their order, in constant memory:
// two sums are equal when the same transitions were added to both, and, but for one
// chance in 2^128, only then. The zero value is empty.
type Sum struct {
	count, high, low uint64
}

// Transition adds a transition.
func (s *Sum) Transition(t Transition) {
	h := sha256.New()
	h.Write(t.Rotation[:])
	var number [8]byte
	binary.BigEndian.PutUint64(number[:], t.Event)
	h.Write(number[:])
	h.Write([]byte(t.From + "\x00" + t.To))
	digest := h.Sum(nil)
	var carry uint64
	s.low, carry = bits.Add64(s.low, binary.BigEndian.Uint64(digest[8:]), 0)
	s.high, _ = bits.Add64(s.high, binary.BigEndian.Uint64(digest), carry)
	s.count++
}

// Entry adds the transition that an entry records, if it records one.
func (s *Sum) Entry(e Entry) {
	if t, ok := recorded(e); ok {
		s.Transition(t)
	}
}

// Count returns how many transitions were added.
func (s *Sum) Count() uint64 { return s.count }

// recorded returns the transition that an entry records.
func recorded(e Entry) (Transition, bool) {
	if e.Action != ActionPhase || e.Outcome != OutcomeOK {
		return Transition{}, false
	}
	return Transition{Rotation: e.Rotation, Event: e.Event, From: e.From, To: e.To}, true
}

// Completeness is how well the log covers the transitions that took place.
type Completeness struct {
	// Expected is the number of transitions, Recorded how many have an entry.
	Expected int
	Recorded int
	// Missing are the transitions without an entry, in the order given.
	Missing []Transition
	// Extra are the numbers of entries that record no transition given, or one that
	// has an entry already, in the order of the log.
	Extra []uint64
}

// Complete reports whether every transition has exactly one entry and every entry
// a transition.
func (c Completeness) Complete() bool { return len(c.Missing) == 0 && len(c.Extra) == 0 }

// Ratio returns the recorded part of the expected transitions, 0 to 1. It is false
// when none was expected: no data says nothing about completeness.
func (c Completeness) Ratio() (float64, bool) {
	if c.Expected == 0 {
		return 0, false
	}
	return float64(c.Recorded) / float64(c.Expected), true
}

// Reconcile compares the transitions that took place, each given once, with the
// entries that record transitions (ActionPhase with OutcomeOK); it ignores other
// entries. Both must cover the same span of history. Memory grows with expected,
// not with entries.
func Reconcile(expected iter.Seq[Transition], entries iter.Seq[Entry]) Completeness {
	var result Completeness
	var order []Transition
	found := make(map[Transition]bool)
	for t := range expected {
		if _, twice := found[t]; !twice {
			found[t] = false
			order = append(order, t)
		}
	}
	result.Expected = len(order)
	for e := range entries {
		t, ok := recorded(e)
		if !ok {
			continue
		}
		if done, known := found[t]; !known || done {
			result.Extra = append(result.Extra, e.Seq)
			continue
		}
		found[t] = true
		result.Recorded++
	}
	for _, t := range order {
		if !found[t] {
			result.Missing = append(result.Missing, t)
		}
	}
	return result
}
