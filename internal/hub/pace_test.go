package hub_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/key"
)

// slack is how late a rotation may go on after the time it waited for.
const slack = 10 * time.Millisecond

// reached is when a rotation's phase or stage became the given one.
func (w *world) reached(t *testing.T, id key.RotationID, to string) time.Time {
	t.Helper()
	moves, err := w.engine.Timeline(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, moved := range moves {
		if moved.To == to {
			return moved.At
		}
	}
	t.Fatalf("the rotation never became %s: %v", to, moves)
	return time.Time{}
}

// TestWaitsEndOnTime: under simulated time, which passes only when everything
// waits, a rotation goes on when its bake and its quarantine are over, not when
// somebody happens to look.
func TestWaitsEndOnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.party(t, "canary-1", "canary", nil)
		w.party(t, "web-1", "web", nil)
		w.wait(t, w.rotate(t, engine.RotateRequest{}), ended)
		id := w.rotate(t, engine.RotateRequest{})
		w.wait(t, id, ended)
		for _, wait := range []struct {
			from, to string
			least    time.Duration
		}{
			{"canary", "rest", 10 * time.Millisecond}, // the bake
			{"quarantine", "destroying", 200 * time.Millisecond},
		} {
			// The hub gathers acknowledgements for up to 5 ms.
			if took := w.reached(t, id, wait.to).Sub(w.reached(t, id, wait.from)); took < wait.least || took > wait.least+5*time.Millisecond+slack {
				t.Errorf("from %s to %s it took %v, want %v", wait.from, wait.to, took, wait.least)
			}
		}
	})
}

// TestRetriesAreOnTime: an effect that failed is tried again after its pause, not
// with the next poll of the store.
func TestRetriesAreOnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		failures := map[string]int{}
		w.system.fail = func(operation string) error {
			if failures[operation]++; operation == "accept" && failures[operation] <= 2 {
				return errors.New("connection refused")
			}
			return nil
		}
		w.party(t, "canary-1", "canary", nil)
		w.party(t, "web-1", "web", nil)
		id := w.rotate(t, engine.RotateRequest{})
		w.wait(t, id, ended)
		// Both endpoints fail once, and are tried again after 50 to 100 ms.
		took := w.reached(t, id, "presenting").Sub(w.reached(t, id, "accepting"))
		if took < 50*time.Millisecond || took > 100*time.Millisecond+slack {
			t.Errorf("accepting took %v, want the pause of 50 to 100 ms", took)
		}
	})
}

// TestStopGivesEffectsBack: an effect that a stop cuts short is repeated by the
// next start at once, not when its lease has run out.
func TestStopGivesEffectsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.party(t, "canary-1", "canary", nil)
		w.party(t, "web-1", "web", nil)
		entered, leave := make(chan struct{}), make(chan struct{})
		first := true
		w.system.fail = func(operation string) error {
			if operation == "mint" && first {
				first = false
				close(entered)
				<-leave
			}
			return nil
		}
		id := w.rotate(t, engine.RotateRequest{})
		<-entered
		stopped := make(chan struct{})
		go func() { w.engine.Stop(); close(stopped) }()
		synctest.Wait()
		close(leave)
		<-stopped
		again := time.Now()
		w.engine.Start(t.Context())
		w.wait(t, id, ended)
		if took := w.reached(t, id, "accepting").Sub(again); took > slack {
			t.Errorf("minting was repeated %v after the start, want at once", took)
		}
	})
}
