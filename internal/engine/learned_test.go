package engine_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/anomaly"
	"github.com/keyturn/keyturn/internal/engine"
)

// What a rule acted on is not learnt by being used: it is told of again once a day,
// and nothing more is done about it, until an operator accepts it. What is forgotten
// is new again, and acted on. Both are in the audit log.
func TestFoundIsNotLearnt(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("quick", "  emergency: {strategy: replace-first, grace: 0s}\n"), keyDoc("a", "quick"),
		ruleDoc("elsewhere", `{when: use.newNetwork, then: emergency, mode: enforce, learn: 1h}`))
	w.Start(t.Context())
	w.through(t, w.rotate(t, "a"))
	if learned, err := w.Learned(t.Context(), "a"); err != nil || !learned.Since.IsZero() {
		t.Fatalf("before any use: %+v, %v", learned, err)
	}
	w.judge(t, w.used("a", 1, "10.0.0.1"))
	learned, err := w.Learned(t.Context(), "a")
	if err != nil || len(learned.Rules) != 1 || !learned.Rules[0].LearnsUntil.After(w.config.Now()) {
		t.Fatalf("while it learns: %+v, %v", learned, err)
	}
	w.jump(2 * time.Hour)
	w.judge(t, w.used("a", 1, "192.0.2.1"))
	w.through(t, w.rotations(t, "a")[0].ID)
	for range 3 {
		w.jump(25 * time.Hour)
		w.judge(t, w.used("a", 2, "192.0.2.1"), w.used("a", 2, "192.0.2.2"))
	}
	want := []string{"elsewhere a emergency", "elsewhere a alert", "elsewhere a alert", "elsewhere a alert"}
	if got := w.found(t); !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
	learned, err = w.Learned(t.Context(), "a")
	if err != nil || !learned.Rules[0].LearnsUntil.IsZero() || len(learned.Networks) != 2 || learned.Networks[0].Name != "192.0.2.0/24" || len(learned.Rules) != 1 || learned.Roaming {
		t.Fatalf("%+v, %v", learned, err)
	}
	if d := learned.Rules[0].Doubts; len(d) != 1 || d[0].Name != "192.0.2.0/24" || d[0].Kind != anomaly.KindNetwork || d[0].Source != "api-key" {
		t.Fatalf("%+v", learned.Rules[0])
	}
	if _, err := w.Relearn(t.Context(), alice, engine.RelearnRequest{Key: "a", Which: anomaly.Selection{Networks: []string{"10.0.0.0/24"}}}); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("what nobody doubts is accepted: %v", err)
	}
	names, err := w.Relearn(t.Context(), alice, engine.RelearnRequest{Key: "a", Which: anomaly.Selection{All: true}, Reason: "new office"})
	if err != nil || !slices.Equal(names, []string{"192.0.2.0/24"}) {
		t.Fatalf("accepted %v, %v", names, err)
	}
	w.jump(25 * time.Hour)
	w.judge(t, w.used("a", 2, "192.0.2.1"))
	if got := w.found(t); len(got) != len(want) {
		t.Fatalf("what was accepted is found again: %q", got)
	}
	names, err = w.Relearn(t.Context(), alice, engine.RelearnRequest{Key: "a", Forget: true, Which: anomaly.Selection{Networks: []string{"192.0.2.0/24"}}})
	if err != nil || len(names) != 1 {
		t.Fatalf("forgot %v, %v", names, err)
	}
	w.jump(25 * time.Hour)
	w.judge(t, w.used("a", 2, "192.0.2.1"))
	if got := w.found(t); !slices.Equal(got[len(want):], []string{"elsewhere a emergency"}) {
		t.Fatalf("what was forgotten: %q", got)
	}
	var actions []string
	for _, entry := range w.log(t) {
		if entry.Action == "learned.accepted" || entry.Action == "learned.forgotten" {
			actions = append(actions, string(entry.Action)+" "+entry.Actor.ID+" "+entry.Target+" "+entry.Reason)
		}
	}
	if want := []string{"learned.accepted alice 192.0.2.0/24 new office", "learned.forgotten alice 192.0.2.0/24 "}; !slices.Equal(actions, want) {
		t.Errorf("the audit log has %q, want %q", actions, want)
	}
}
