package audit

import (
	"iter"

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
	recorded := make(map[Transition]bool)
	for t := range expected {
		if _, twice := recorded[t]; !twice {
			recorded[t] = false
			order = append(order, t)
		}
	}
	result.Expected = len(order)
	for e := range entries {
		if e.Action != ActionPhase || e.Outcome != OutcomeOK {
			continue
		}
		t := Transition{Rotation: e.Rotation, Event: e.Event, From: e.From, To: e.To}
		if done, known := recorded[t]; !known || done {
			result.Extra = append(result.Extra, e.Seq)
			continue
		}
		recorded[t] = true
		result.Recorded++
	}
	for _, t := range order {
		if !recorded[t] {
			result.Missing = append(result.Missing, t)
		}
	}
	return result
}
