package engine_test

import (
	"context"
	"testing"
	"time"
)

// TestOneNodeSendsAPage: of several nodes one gets a message to send; another one
// gets it only when the first has not delivered it for a minute.
func TestOneNodeSendsAPage(t *testing.T) {
	w := newWorld(t)
	other := w.another(t)
	take := func(e interface {
		TakePage(ctx context.Context, node, id string) (mine, sent bool, err error)
	}, node, id string, wantMine, wantSent bool,
	) {
		t.Helper()
		mine, sent, err := e.TakePage(t.Context(), node, id)
		if err != nil || mine != wantMine || sent != wantSent {
			t.Errorf("node %s, message %s: mine %v, sent %v, %v", node, id, mine, sent, err)
		}
	}
	take(w, "a", "one", true, false)
	take(other, "b", "one", false, false)
	take(w, "a", "one", true, false) // it tries again
	if err := w.PageSent(t.Context(), "a", "one"); err != nil {
		t.Fatal(err)
	}
	take(other, "b", "one", false, true)
	take(w, "a", "one", false, true)

	take(w, "a", "two", true, false)
	w.jump(50 * time.Second)
	take(other, "b", "two", false, false)
	w.jump(20 * time.Second)
	take(other, "b", "two", true, false) // the first one has died
	take(w, "a", "two", false, false)
	if err := other.PageSent(t.Context(), "b", "two"); err != nil {
		t.Fatal(err)
	}
	take(w, "a", "two", false, true)
}
