package engine_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// held waits, in simulated time, until a human is asked, and returns how long it took.
func (w *world) held(t *testing.T, id key.RotationID, limit time.Duration) (engine.RotationView, time.Duration) {
	t.Helper()
	began := time.Now()
	for {
		view, err := w.Rotation(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if view.Hold.Human {
			return view, time.Since(began)
		}
		if time.Since(began) > limit || view.Ended() {
			t.Fatalf("no human is asked within %v: %v, hold %+v", limit, view.Phase, view.Hold)
		}
		rest(2 * time.Second)
	}
}

// tries counts the calls of an operation, and when they came.
type tries struct {
	mu    sync.Mutex
	times []time.Time
}

func (c *tries) add() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.times = append(c.times, time.Now())
}

func (c *tries) since(at time.Time) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, when := range c.times {
		if !when.Before(at) {
			n++
		}
	}
	return n
}

// failing makes an operation fail, and counts.
func failing(all *sites, operation string, err error) *tries {
	counted := &tries{}
	all.set(func(_ context.Context, call atHost) error {
		if call.operation != operation {
			return nil
		}
		counted.add()
		return err
	})
	return counted
}

func oneKey(t *testing.T, spec string) (*world, *sites) {
	w, all := newSites(t)
	w.apply(t, policyDoc("tries", "  quarantine: 1h\n"+spec), siteDoc("a", "tries", "db"))
	w.Start(t.Context())
	return w, all
}

// What a target answers with an error is tried for an hour, then a human is asked
// and it is tried no more; resume tries again.
func TestVault28989OnePasswordReplayedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := oneKey(t, "")
		counted := failing(all, "accept", errors.New("the role does not exist"))
		id := w.rotate(t, "a")
		view, took := w.held(t, id, 2*time.Hour)
		if took < time.Hour || took > 65*time.Minute {
			t.Errorf("a human is asked after %v", took)
		}
		if view.Hold.Reason != rotation.HoldEffect || !strings.Contains(view.Hold.Message, "the role does not exist") || !strings.Contains(view.Hold.Message, "tried") {
			t.Errorf("hold %+v", view.Hold)
		}
		if n := counted.since(time.Time{}); n < 10 || n > 300 {
			t.Errorf("%d tries in an hour", n)
		}
		now := time.Now()
		rest(3 * time.Hour)
		if n := counted.since(now); n > 1 { // the one that was under way may end
			t.Errorf("%d tries after a human was asked", n)
		}
		all.set(nil)
		if err := w.Steer(t.Context(), bob, id, engine.SteerResume, ""); err != nil {
			t.Fatal(err)
		}
		w.within(t, time.Minute, id)
	})
}

// A failing effect is not repeated at once: the pauses grow, and what failed
// together is not repeated together.
func TestConjur741ImmediateRetryForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := oneKey(t, "")
		counted := failing(all, "accept", errors.New("no"))
		w.rotate(t, "a")
		rest(30 * time.Minute)
		if n := len(counted.times); n < 20 || n > 140 {
			t.Errorf("%d tries in half an hour", n)
		}
		for i := 1; i < len(counted.times); i++ {
			pause := counted.times[i].Sub(counted.times[i-1])
			if least := min(15*time.Second, 50*time.Millisecond<<min(i-1, 20)); pause < least || pause > 31*time.Second {
				t.Errorf("pause %d is %v, at least %v is expected", i, pause, least)
			}
		}
	})
}

// A refused credential of Keyturn's own is tried five times only, apart: systems
// lock accounts out.
func TestTeleport17598PermanentErrorLoop(t *testing.T) {
	for what, c := range map[string]struct {
		err         error
		tries       int
		least, most time.Duration
	}{
		"a permanent error":       {provider.Permanent(errors.New("privilege missing"), "grant it"), 1, 0, 2 * time.Second},
		"a refused credential":    {fmt.Errorf("log in: %w", provider.ErrDenied), 5, 7 * time.Second, time.Minute},
		"an error, by the policy": {errors.New("busy"), 3, 0, 30 * time.Second},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				spec := ""
				if strings.Contains(what, "policy") {
					spec = "  effects: {maxTries: 3, maxTime: 0s}\n"
				}
				w, all := oneKey(t, spec)
				counted := failing(all, "accept", c.err)
				_, took := w.held(t, w.rotate(t, "a"), 2*time.Hour)
				rest(time.Hour)
				if n := len(counted.times); n != c.tries || took < c.least || took > c.most {
					t.Errorf("%d tries, a human is asked after %v", n, took)
				}
			})
		})
	}
}

// A target that gives no answer for hours needs no human at the rotations that
// wait for it: they go on when it is back. A policy may want to be asked.
func TestOutageNeedsNoHuman(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := oneKey(t, "")
		w.apply(t, policyDoc("asks", "  quarantine: 1h\n  effects: {maxTime: 10m, onSilence: hold}\n"), siteDoc("b", "asks", "db2"))
		all.set(func(context.Context, atHost) error { return provider.Hint(provider.ErrSilent, "is it up?") })
		waits, asks := w.rotate(t, "a"), w.rotate(t, "b")
		if _, took := w.held(t, asks, time.Hour); took < 10*time.Minute {
			t.Errorf("a human is asked after %v", took)
		}
		rest(5 * time.Hour)
		if view, err := w.Rotation(t.Context(), waits); err != nil || view.Hold.Human || view.Hold.Reason != rotation.HoldTrouble {
			t.Errorf("after 5 hours: %+v %v", view.Hold, err)
		}
		all.set(nil)
		w.within(t, time.Minute, waits)
	})
}

// Refusing a compromised version is tried on, slowly, while a human is told; the
// rest of the emergency does not wait for it.
func TestContainmentNeverStops(t *testing.T) {
	for what, err := range map[string]error{
		"permanent": provider.Permanent(errors.New("read-only"), "point admin at the primary"),
		"denied":    fmt.Errorf("log in: %w", provider.ErrDenied),
		"transient": errors.New("deadlock detected"),
		"lie":       nil,
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, all := newSites(t)
				w.apply(t, policyDoc("short", "  quarantine: 1h\n  effects: {maxTime: 1m}\n"), siteDoc("a", "short", "db", "db2"))
				w.Start(t.Context())
				w.within(t, time.Minute, w.rotate(t, "a"))
				counted := &tries{}
				all.set(func(_ context.Context, call atHost) error {
					if call.host != "db" || call.operation != "refuse" {
						return nil
					}
					counted.add()
					if err == nil {
						return errNothing
					}
					return err
				})
				id, rotateErr := w.Rotate(t.Context(), alice, engine.RotateRequest{Key: "a", Emergency: true, Strategy: rotation.ContainFirst})
				if rotateErr != nil {
					t.Fatal(rotateErr)
				}
				rest(10 * time.Minute)
				view, viewErr := w.Rotation(t.Context(), id)
				if viewErr != nil || view.Hold.Human || view.Hold.Reason != rotation.HoldRefusal || view.Phase != rotation.Revoking {
					t.Errorf("%v, hold %+v, %v", view.Phase, view.Hold, viewErr)
				}
				key, keyErr := w.Key(t.Context(), "a")
				if keyErr != nil || key.State.Labelled(1) == 1 || len(key.State.Versions) != 2 {
					t.Errorf("no new version was brought in: %+v %v", key.State.Versions, keyErr)
				}
				for range 5 {
					now := time.Now()
					rest(10 * time.Minute)
					if n := counted.since(now); n < 5 || n > 300 {
						t.Errorf("%d tries in ten minutes", n)
					}
				}
				all.set(nil)
				began := time.Now()
				for {
					view, err := w.Rotation(t.Context(), id)
					if err != nil {
						t.Fatal(err)
					}
					if view.Phase == rotation.Destroying || view.Ended() {
						break
					}
					if time.Since(began) > 3*time.Minute {
						t.Fatalf("%v, hold %+v", view.Phase, view.Hold)
					}
					rest(time.Second)
				}
			})
		})
	}
}
