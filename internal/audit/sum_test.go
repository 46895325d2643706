package audit_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/key"
)

// Two sums are equal when, and only when, the exact comparison finds the same.
func TestSumsAgreeWithTheExactComparison(t *testing.T) {
	phases := []string{"planned", "minting", "accepting"}
	rapid.Check(t, func(rt *rapid.T) {
		var expected []audit.Transition
		for i := range rapid.IntRange(0, 8).Draw(rt, "transitions") {
			expected = append(expected, audit.Transition{
				Rotation: key.RotationID{byte(i)}, Event: uint64(rapid.IntRange(1, 3).Draw(rt, "event")),
				From: rapid.SampledFrom(phases).Draw(rt, "from"), To: rapid.SampledFrom(phases).Draw(rt, "to"),
			})
		}
		var entries []audit.Entry
		for _, e := range expected {
			entries = append(entries, audit.Entry{Action: audit.ActionPhase, Outcome: audit.OutcomeOK, Rotation: e.Rotation, Event: e.Event, From: e.From, To: e.To})
		}
		switch rapid.IntRange(0, 4).Draw(rt, "harm") {
		case 0:
			entries = append(entries, audit.Entry{Action: audit.ActionJoin, Outcome: audit.OutcomeOK}) // of no transition
		case 1:
			if len(entries) > 0 {
				entries = entries[1:]
			}
		case 2:
			if len(entries) > 0 {
				entries = append(entries, entries[0])
			}
		case 3:
			if len(entries) > 0 {
				entries[0].Event++
			}
		}
		entries = rapid.Permutation(entries).Draw(rt, "order")
		var events, log audit.Sum
		for _, e := range expected {
			events.Transition(e)
		}
		for _, e := range entries {
			log.Entry(e)
		}
		exact := audit.Reconcile(slices.Values(expected), slices.Values(entries))
		if (events == log) != exact.Complete() {
			rt.Fatalf("equal: %v, the exact comparison: %+v", events == log, exact)
		}
		if events.Count() != uint64(len(expected)) {
			rt.Fatalf("%d of %d", events.Count(), len(expected))
		}
	})
}
