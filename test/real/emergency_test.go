package real

import (
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/key"
)

// state is the state of one of the key's versions.
func (w *world) state(t *testing.T, number uint64) string {
	t.Helper()
	for _, v := range w.key(t).GetVersions() {
		if v.GetNumber() == number {
			return v.GetState()
		}
	}
	return ""
}

// TestEmergencyReplaceFirst: a compromised version is replaced and refused within
// seconds, whatever the policy's bakes, and no application notices.
func TestEmergencyReplaceFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t, vary(t, "bake: 0s", "bake: 10m", "drain: {min: 0s, quiet: 0s, max: 1m", "drain: {min: 1h, quiet: 1h, max: 2h"))
	w.first(t)
	l := w.fleet(t, 5)
	// The thief keeps a session open. He is not registered, so nobody waits for him
	// longer than the grace.
	thief := w.session(t, w.primary.Addr(), 1, "thief")

	begun := time.Now()
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "the password was in a ticket", Emergency: true, Strategy: "replace-first"})
	r := w.finish(t, id, "done")
	t.Logf("the compromised version was replaced and refused after %v", time.Since(begun))
	if r.GetKind() != "emergency" || r.GetStrategy() != "replace-first" || r.GetFrom() != 1 || r.GetTo() != 2 {
		t.Errorf("rotation %v", r)
	}
	if !ended(t.Context(), thief) {
		t.Error("the thief's session outlived the emergency")
	}
	w.mustRefuse(t, 1)
	w.mustAccept(t, 2)
	if s := w.state(t, 1); s != key.Compromised.String() && s != key.Destroyed.String() {
		t.Errorf("the compromised version is %s", s)
	}
	says(t, "the timeline", w.timeline(t, id), "the password was in a ticket", "revoking", "done")
	l.check(t)

	// It never comes back.
	if _, err := w.control.Rollback(t.Context(), &keyturnv1.RollbackRequest{RotationId: id}); err == nil {
		t.Error("a compromised version was brought back")
	}
	w.healthy(t)
}

// TestEmergencyContainFirst: the compromised version is refused at once, before
// there is a new one. Applications fail until they have the new one, and recover
// by themselves.
func TestEmergencyContainFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	l := w.fleet(t, 5)
	l.more(t, 50)
	l.check(t)
	material := w.tap.material(t, 1)
	thief := w.session(t, w.standby.Addr(), 1, "thief")

	// The new version is minted only after the old one is seen to be refused.
	g, reached, release := at(point{op: "mint", version: 2})
	defer release()
	w.tap.stand(g)
	begun := time.Now()
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "it is being abused", Emergency: true, Strategy: "contain-first"})
	for name, addr := range w.servers() {
		eventually(t, "the "+name+" refuses the compromised version", func() bool { return isRefused(tryLogin(t.Context(), addr, material)) })
		t.Logf("the %s refused it after %v", name, time.Since(begun))
	}
	eventually(t, "the thief's session has ended", func() bool { return ended(t.Context(), thief) })
	await(t, "the new version is minted", reached)
	release()

	w.finish(t, id, "done")
	t.Logf("it was replaced after %v, with %d failures meanwhile", time.Since(begun), l.failures.Load())
	w.mustRefuse(t, 1)
	w.mustAccept(t, 2)
	says(t, "the timeline", w.timeline(t, id), "it is being abused", "refused (v1)", "done")
	// What is under way may still fail; after that nothing does.
	l.more(t, 20)
	failed := l.failures.Load()
	l.more(t, 100)
	if n := l.failures.Load(); n != failed {
		t.Errorf("%d queries failed after the recovery: %v", n-failed, l.report())
	}
	w.healthy(t)
}
