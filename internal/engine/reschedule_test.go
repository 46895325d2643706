package engine_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/key"
)

// A policy that changes is in force at once, and the keys that it makes due
// earlier are found in small steps, which a restart does not lose.
func TestPolicyChangeLooksAtKeysInSmallSteps(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("daily", daily), policyDoc("other", daily))
	const keys = 600
	var doc strings.Builder
	for i := range keys {
		doc.WriteString(keyDoc(fmt.Sprintf("k%03d", i), "daily"))
	}
	w.apply(t, doc.String(), keyDoc("last", "other"))
	w.Start(t.Context())
	rotated := []key.Name{"k000", "k599"}
	for _, name := range rotated {
		w.through(t, w.rotate(t, name))
	}
	eventually(t, "no look under way", func() bool { under, err := engine.Reviews(t.Context(), w.Engine); return err == nil && len(under) == 0 })
	w.considered(t, "all")
	w.Stop()

	before, err := engine.KeyDue(t.Context(), w.Engine, "k599")
	if err != nil || before.IsZero() {
		t.Fatal(before, err)
	}
	w.jump(20 * time.Hour)
	events := w.events(t, "k000")
	w.apply(t, policyDoc("daily", strings.Replace(daily, "1d", "4h", 1)))
	// By age alone it is overdue since hours: a change of the cadence begins nothing at once.
	for _, name := range rotated {
		view, err := w.Key(t.Context(), name)
		if err != nil || view.Next.Due || view.Next.At.Before(w.config.Now().Add(2*time.Hour-time.Second)) || view.Next.At.After(w.config.Now().Add(5*time.Hour)) {
			t.Fatalf("%s: %+v, %v", name, view.Next, err)
		}
	}
	under, err := engine.Reviews(t.Context(), w.Engine)
	if at, is := under["policy daily"]; err != nil || !is || at != "" || len(under) != 1 {
		t.Fatalf("%v, %v", under, err)
	}
	if err := engine.Review(t.Context(), w.Engine, "policy daily"); err != nil {
		t.Fatal(err)
	}
	if under, err = engine.Reviews(t.Context(), w.Engine); under["policy daily"] != "k255" {
		t.Fatalf("after one step: %v, %v", under, err)
	}
	if due, err := engine.KeyDue(t.Context(), w.Engine, "k599"); err != nil || !due.Equal(before) {
		t.Errorf("the last key was looked at already: %v, %v", due, err)
	}
	w.Engine = w.another(t) // a restart
	w.Start(t.Context())
	eventually(t, "the look is complete", func() bool { under, err := engine.Reviews(t.Context(), w.Engine); return err == nil && len(under) == 0 })
	for _, name := range rotated {
		view, err := w.Key(t.Context(), name)
		due, dueErr := engine.KeyDue(t.Context(), w.Engine, name)
		if err != nil || dueErr != nil || !due.Equal(view.Next.At) {
			t.Errorf("%s is noted for %v, due %v, %v, %v", name, due, view.Next.At, err, dueErr)
		}
	}
	if after := w.events(t, "k000"); after != events {
		t.Errorf("a change of the schedule made %d events", after-events)
	}
	w.jump(6 * time.Hour)
	eventually(t, "both rotations", func() bool { return len(w.rotations(t, "k000")) == 2 && len(w.rotations(t, "k599")) == 2 })
}

// A freeze that is deleted holds nothing back any more.
func TestDeletedFreezeIsLifted(t *testing.T) {
	w := newWorld(t)
	w.Start(t.Context())
	now := time.Now().UTC()
	freeze := header + "kind: Freeze\nmetadata: {name: sale}\nspec: {from: " + now.Add(-time.Hour).Format(time.RFC3339) + ", to: " + now.Add(72*time.Hour).Format(time.RFC3339) + ", reason: sale}\n"
	w.apply(t, policyDoc("daily", daily), keyDoc("a", "daily"), freeze)
	w.through(t, w.rotate(t, "a"))
	w.jump(48 * time.Hour)
	w.considered(t, "a")
	if n := len(w.rotations(t, "a")); n != 1 {
		t.Fatalf("%d rotations during the freeze", n)
	}
	if codes := w.try(t, engine.ApplyRequest{Prune: true}, policyDoc("daily", daily), keyDoc("a", "daily")); len(codes) > 0 {
		t.Fatal(codes)
	}
	eventually(t, "the rotation after the freeze", func() bool { return len(w.rotations(t, "a")) == 2 })
}
