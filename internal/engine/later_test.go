package engine_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/provider"
)

// A system that takes its time fails nothing: the rotation waits, says for what,
// and goes on; nobody is asked, however often it was asked again. When it fails in
// the middle of that, it is told at once.
func TestSystemThatTakesItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := oneKey(t, "  effects: {maxTries: 3, maxTime: 0s}\n")
		slow := provider.Later(10*time.Second, errors.New("reader eu holds the set of 12:00 until 14:00"))
		all.set(func(_ context.Context, call atHost) error {
			if call.operation == "accept" || call.operation == "refuse" {
				return slow
			}
			return nil
		})
		id := w.rotate(t, "a")
		waits := func(phase rotation.Phase, hold rotation.HoldReason, why string) {
			t.Helper()
			view, err := w.Rotation(t.Context(), id)
			if err != nil || view.Phase != phase || view.Hold.Reason != hold {
				t.Fatalf("%v, hold %+v, %v", view.Phase, view.Hold, err)
			}
			told := false
			for _, waiting := range view.Waiting {
				told = told || strings.Contains(waiting.Message, why)
			}
			if !told {
				t.Errorf("in %v nothing says %q: %+v", phase, why, view.Waiting)
			}
		}
		rest(2 * time.Hour)
		waits(rotation.Accepting, "", "reader eu")
		view, err := w.Key(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		r, _ := view.State.Rotation(id)
		if late := engine.LateRegions(&view.State, r); len(late) != 0 {
			t.Errorf("late: %+v", late)
		}

		all.set(func(context.Context, atHost) error { return errors.New("no such table") })
		rest(2 * time.Minute) // it was asked a minute ago at most
		if view, err := w.Rotation(t.Context(), id); err != nil || view.Hold.Reason == "" || !strings.Contains(view.Hold.Message, "no such table") {
			t.Errorf("hold %+v, %v", view.Hold, err)
		}
	})
}

// What takes its time for more than a day is a failure, and a human is asked.
func TestSystemThatTakesItsTimeForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := oneKey(t, "  effects: {maxTries: 3, maxTime: 0s}\n")
		counted := failing(all, "accept", provider.Later(0, errors.New("not yet")))
		_, took := w.held(t, w.rotate(t, "a"), 48*time.Hour)
		if took < 24*time.Hour || took > 25*time.Hour {
			t.Errorf("a human is asked after %v", took)
		}
		for i := 1; i < len(counted.times); i++ {
			if pause := counted.times[i].Sub(counted.times[i-1]); pause < 50*time.Millisecond || pause > time.Minute {
				t.Fatalf("pause %d is %v", i, pause)
			}
		}
	})
}
