package rotation

import (
	"strconv"
	"testing"

	"github.com/keyturn/keyturn/key"
)

// fleet is a key with one verifier, a current version and n presenters that were
// told to use it and have not answered.
func fleet(tb testing.TB, n int) (State, []Ack) {
	tb.Helper()
	var s State
	send := func(e Event) []Effect {
		after, effects, err := Step(s, e)
		if err != nil {
			tb.Fatal(err)
		}
		s = after
		return effects
	}
	send(Event{At: epoch0(), Body: Configured{Verifiers: []VerifierRef{{ID: "a"}}}})
	effects := send(Event{Rotation: key.RotationID{1}, Body: Begin{Kind: Manual, Plan: Plan{Stages: []Stage{{Name: "all"}}}}})
	for len(effects) > 0 {
		effects = send(Event{Body: Result{Effect: effects[0].EffectRef, Outcome: OK}})
	}
	var acks []Ack
	for i := range n {
		id := strconv.Itoa(i)
		for _, effect := range send(Event{Body: Joined{ID: id}}) {
			acks = append(acks, Ack{ID: id, Epoch: effect.Epoch, OK: true, Using: effect.Version})
		}
	}
	if len(acks) != n {
		tb.Fatalf("%d of %d presenters were told", len(acks), n)
	}
	return s, acks
}

// BenchmarkStepAcked folds the answers of 10,000 presenters, 100 in one event.
func BenchmarkStepAcked(b *testing.B) {
	s, acks := fleet(b, 10_000)
	for b.Loop() {
		if _, _, err := Step(s, Event{Body: Acked{Acks: acks[:100]}}); err != nil {
			b.Fatal(err)
		}
	}
}
