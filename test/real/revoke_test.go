package real

import (
	"slices"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// TestRollbackFromQuarantine (F6): the old version was revoked already. One call
// brings it back within seconds, and no application notices.
func TestRollbackFromQuarantine(t *testing.T) {
	t.Parallel()
	w := newWorld(t, vary(t, "quarantine: 0s", "quarantine: 1h"))
	w.first(t)
	l := w.fleet(t, 5)
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "a version that will be regretted"})
	w.reached(t, id, "quarantine")
	w.mustRefuse(t, 1)
	w.mustAccept(t, 2)

	begun := time.Now()
	response, err := w.control.Rollback(t.Context(), &keyturnv1.RollbackRequest{RotationId: id, Reason: "the new one misbehaves"})
	if err != nil {
		t.Fatal(err)
	}
	back := response.GetRotationId()
	if back == id {
		t.Fatal("after the cut-over a roll-back is a rotation of its own")
	}
	r := w.wait(t, back, func(r *keyturnv1.Rotation) bool { return r.GetCutOverAt() != nil })
	took := time.Since(begun)
	t.Logf("the old version was back in use after %v", took)
	if took > time.Minute {
		t.Errorf("it took %v", took)
	}
	if r.GetKind() != "rollback" || r.GetFrom() != 2 || r.GetTo() != 1 {
		t.Errorf("rotation %v", r)
	}
	if now := w.current(t); now != 1 {
		t.Errorf("version %d is current", now)
	}
	w.mustAccept(t, 1)
	w.reached(t, back, "quarantine")
	w.mustRefuse(t, 2)
	w.mustAccept(t, 1)
	if r := w.wait(t, id, nil); r.GetPhase() != "rolled-back" {
		t.Errorf("the rotation that was rolled back ended as %s", r.GetPhase())
	}
	says(t, "the timeline", w.timeline(t, back), "the new one misbehaves", "v1", "quarantine")
	l.check(t)
	w.healthy(t)
}

// TestOldPasswordIsRefused (F4): sessions of the old version that nobody
// registered are named while the rotation drains. After the revocation they have
// ended, and the old password is turned away on the primary and on the standby.
func TestOldPasswordIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, vary(t, "max: 1m", "max: 6s, onMax: revoke"))
	w.first(t)
	l := w.fleet(t, 2)
	onPrimary := w.session(t, w.primary.Addr(), 1, "forgotten-report")
	onStandby := w.session(t, w.standby.Addr(), 1, "forgotten-export")

	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "somebody forgot a session"})
	// Applications that were asked to move may be measured too, but not for long.
	names := func(r *keyturnv1.Rotation) (all []string) {
		for _, holder := range r.GetHolders() {
			all = append(all, holder.GetApplication())
		}
		slices.Sort(all)
		return all
	}
	r := w.wait(t, id, func(r *keyturnv1.Rotation) bool {
		return r.GetPhase() == "draining" && slices.Equal(names(r), []string{"forgotten-export", "forgotten-report"})
	})
	if r.GetPhase() != "draining" {
		t.Fatalf("it never named who still uses the old version, but %v, and is %s", names(r), r.GetPhase())
	}
	if ended(t.Context(), onPrimary) || ended(t.Context(), onStandby) {
		t.Error("a session was ended before the old version was revoked")
	}
	w.mustAccept(t, 1)

	w.finish(t, id, "done")
	if !ended(t.Context(), onPrimary) || !ended(t.Context(), onStandby) {
		t.Error("a session of the old version outlived its revocation")
	}
	w.mustRefuse(t, 1)
	w.mustAccept(t, 2)
	says(t, "the timeline", w.timeline(t, id), "revoking", "primary", "refused (v1)", "replica")
	l.check(t)
}

// TestDrainHoldsForWhoStaysOn: where the policy says so, the old version is never
// revoked under a session; the rotation holds and names it, and goes on by itself
// when the session has ended.
func TestDrainHoldsForWhoStaysOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, vary(t, "max: 1m", "max: 1s"))
	w.first(t)
	stays := w.session(t, w.standby.Addr(), 1, "month-end")
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "a long report runs"})
	r := w.held(t, id, "drain-max")
	says(t, "the hold", r.GetHold().GetMessage(), "v1 is still in use")
	if len(r.GetHolders()) != 1 || r.GetHolders()[0].GetApplication() != "month-end" || r.GetHolders()[0].GetEndpoint() == "primary" {
		t.Errorf("the holders are %v", r.GetHolders())
	}
	w.paged(t, id, "drain-max")
	if ended(t.Context(), stays) {
		t.Error("the session was ended")
	}
	if err := stays.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.finish(t, id, "done")
	w.mustRefuse(t, 1)
}
