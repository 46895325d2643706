package engine_test

import (
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
)

const daily = "  rotate: {every: 1d}\n  quarantine: 1s\n"

// settled waits until the keeper of schedules has considered all keys.
func (w *world) considered(t *testing.T, name string) {
	t.Helper()
	eventually(t, "the schedule of "+name+" is considered", func() bool {
		due, err := engine.DueKeys(t.Context(), w.Engine)
		if err != nil {
			t.Fatal(err)
		}
		return due == 0
	})
}

// vault#30687, terraform-provider-aws#34961: neither applying nor a restart
// rotates anything; the time does.
func TestScheduledRotationBeginsAtItsTimeOnly(t *testing.T) {
	w := newWorld(t)
	w.Start(t.Context())
	w.apply(t, policyDoc("daily", daily), keyDoc("a", "daily"))
	w.considered(t, "a")
	if n := len(w.rotations(t, "a")); n != 0 {
		t.Fatalf("applying began %d rotations", n)
	}
	w.wait(t, w.rotate(t, "a"), func(v engine.RotationView) bool { return v.Phase.Retiring() || v.Ended() })
	w.Stop()
	w.Engine = w.another(t)
	w.Start(t.Context())
	w.apply(t, policyDoc("daily", daily+"  retain: {destroyAfter: 1d}\n"))
	w.jump(23 * time.Hour)
	w.considered(t, "a")
	if n := len(w.rotations(t, "a")); n != 1 {
		t.Fatalf("%d rotations after a restart and a change that is not of the cadence", n)
	}
	w.jump(2 * time.Hour)
	eventually(t, "the second rotation", func() bool { return len(w.rotations(t, "a")) == 2 })
	newest := w.rotations(t, "a")[0]
	if newest.Kind != rotation.Scheduled || newest.Actor != "keyturn" || newest.Reason == "" {
		t.Errorf("%+v", newest.RotationRecord)
	}
	w.wait(t, newest.ID, func(v engine.RotationView) bool { return v.To == 2 })
}

func TestFreezeHoldsScheduledRotationsBack(t *testing.T) {
	w := newWorld(t)
	w.Start(t.Context())
	now := time.Now().UTC()
	freeze := func(to time.Time) string {
		return header + "kind: Freeze\nmetadata: {name: sale}\nspec: {from: " + now.Add(-time.Hour).Format(time.RFC3339) + ", to: " + to.Format(time.RFC3339) + ", reason: sale}\n"
	}
	w.apply(t, policyDoc("daily", daily), keyDoc("a", "daily"), freeze(now.Add(72*time.Hour)))
	w.wait(t, w.rotate(t, "a"), func(v engine.RotationView) bool { return v.Phase.Retiring() || v.Ended() })
	w.jump(48 * time.Hour)
	w.considered(t, "a")
	if n := len(w.rotations(t, "a")); n != 1 {
		t.Fatalf("%d rotations during the freeze", n)
	}
	w.apply(t, freeze(now.Add(time.Hour))) // the freeze is lifted
	eventually(t, "the rotation after the freeze", func() bool { return len(w.rotations(t, "a")) == 2 })
}

// A scheduled rotation that waits for an approval until its window has closed is
// given up; the next window begins another one.
func TestWindowThatPassesCancels(t *testing.T) {
	w := newWorld(t)
	w.Start(t.Context())
	at := time.Now().UTC().Add(-30 * time.Minute)
	window := "  rotate: {every: 1d, windows: [{cron: \"" + at.Format("4 15") + " * * *\", duration: 2h, timezone: UTC}]}\n  quarantine: 1s\n"
	w.apply(t, policyDoc("nightly", window), keyDoc("a", "nightly"))
	w.wait(t, w.rotate(t, "a"), func(v engine.RotationView) bool { return v.Phase.Retiring() || v.Ended() })
	w.apply(t, policyDoc("nightly", window+"  approvals: {required: 1}\n"))
	w.jump(24 * time.Hour)
	view, err := w.Key(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	w.jump(view.Next.At.Sub(w.config.Now()) + time.Minute) // its turn within the window
	eventually(t, "the scheduled rotation", func() bool { return len(w.rotations(t, "a")) == 2 })
	id := w.rotations(t, "a")[0].ID
	w.jump(3 * time.Hour)
	ended := w.wait(t, id, func(v engine.RotationView) bool { return v.Ended() })
	if ended.Phase != rotation.Cancelled {
		t.Errorf("ended as %v", ended.Phase)
	}
	if view, err = w.Key(t.Context(), "a"); err != nil || view.Next.At.Before(w.config.Now()) {
		t.Fatalf("%+v %v", view.Next, err)
	}
	w.jump(view.Next.At.Sub(w.config.Now()) + time.Minute)
	eventually(t, "the rotation of the next window", func() bool { return len(w.rotations(t, "a")) == 3 })
}

// Keys that cannot be handled neither spin nor keep others from their turn.
func TestDamagedKeysDoNotStarveOthers(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("daily", daily), keyDoc("good", "daily"))
	for i := range 300 {
		if err := engine.PutDamagedKey(t.Context(), w.Engine, i); err != nil {
			t.Fatal(err)
		}
	}
	w.Start(t.Context())
	w.considered(t, "all")
}
