package real

import (
	"fmt"
	"strings"
	"testing"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/test/pgtest"
)

// TestPrimaryRestarts: the primary is stopped, or killed, in the middle of a
// rotation and comes back. The rotation ends by itself; no log-in is refused.
func TestPrimaryRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	l := w.fleet(t, 3)
	for n, how := range []struct {
		name string
		end  func() error
		at   point
	}{
		{"stopped before it accepts", func() error { return w.primary.Stop(t.Context()) }, point{op: "accept", endpoint: "primary", version: 2}},
		{"killed after it accepted", w.primary.Kill, point{op: "accept", endpoint: "primary", version: 3, after: true}},
		{"killed before it refuses", w.primary.Kill, point{op: "refuse", endpoint: "primary", version: 3}},
	} {
		g, reached, release := at(how.at)
		w.tap.stand(g)
		id := w.rotate(t, &keyturnv1.RotateRequest{Reason: how.name})
		await(t, how.name, reached)
		if err := how.end(); err != nil {
			t.Fatal(err)
		}
		release()
		if err := w.primary.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.finish(t, id, "done")
		version := key.Version(n) + 2
		w.mustAccept(t, version)
		w.mustRefuse(t, version-1)
	}
	// Connections broke; no credential was refused.
	t.Logf("queries: %d, failures: %d", l.queries.Load(), l.failures.Load())
	if l.refused.Load() > 0 || l.queries.Load() == 0 {
		t.Errorf("%d log-ins were refused: %v", l.refused.Load(), l.report())
	}
	for _, failure := range l.report() {
		if strings.Contains(failure, "on the standby") {
			t.Errorf("the standby was there all the time: %s", failure)
		}
	}
	w.healthy(t)
}

// TestPrimaryCutOff: packets between Keyturn and the primary are dropped in the
// middle. The rotation waits, names the server, and goes on by itself after
// healing; the applications, which reach the primary, notice nothing.
func TestPrimaryCutOff(t *testing.T) {
	t.Parallel()
	w := newSystems(t)
	w.start(t)
	t.Cleanup(func() { w.stop(t) })
	proxy := pgtest.NewProxy(t, w.primary.Addr())
	// The applications are not told to go through the proxy.
	w.apply(t, quickPolicy+"---\n"+strings.Replace(w.keyDocument(proxy.Addr()), "sslmode=disable", "sslmode=disable&connect_timeout=1", 1))
	w.first(t)
	l := w.fleet(t, 3)

	g, reached, release := at(point{op: "accept", endpoint: "primary", version: 2})
	w.tap.stand(g)
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "the network fails"})
	await(t, "the primary is told to accept", reached)
	proxy.Cut()
	release()
	r := w.held(t, id, "effect-trouble")
	if r.GetPhase() != "accepting" || r.GetHold().GetHuman() {
		t.Errorf("it is %s, waiting for a human: %v", r.GetPhase(), r.GetHold().GetHuman())
	}
	says(t, "the hold", r.GetHold().GetMessage(), "does not accept v2 yet", "log in to primary")
	names, _ := waitsFor(r)
	says(t, "what it waits for", fmt.Sprint(names), "primary")
	w.mustAccept(t, 1)
	l.more(t, 20)

	proxy.Restore()
	w.finish(t, id, "done")
	w.mustRefuse(t, 1)
	w.mustAccept(t, 2)
	says(t, "the timeline", w.timeline(t, id), "effect-trouble", "effect-trouble is over")
	l.check(t)
	w.healthy(t)
}

// TestStandbyLags (F7): a standby that does not replay knows only the old
// password. The rotation waits for it before anybody is told, names it with its
// region and says why; no application fails.
func TestStandbyLags(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	l := w.fleet(t, 3)
	pgtest.Exec(t, w.standby, "postgres", "SELECT pg_wal_replay_pause()")
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "a region lags"})
	r := w.held(t, id, "effect-trouble")
	replica := "replica " + w.standby.Addr()
	says(t, "the hold", r.GetHold().GetMessage(), replica, "its replay is paused")
	names, messages := waitsFor(r)
	if len(names) != 1 || names[0] != replica {
		t.Errorf("it waits for %v, not for %s alone", names, replica)
	}
	says(t, "what it waits for", messages, "verifiers to accept v2")
	if region := r.GetWaiting()[len(r.GetWaiting())-1].GetRegion(); region != "us" {
		t.Errorf("the region that lags is said to be %q", region)
	}
	if timeline := w.timeline(t, id); strings.Contains(timeline, "presenter.told") {
		t.Errorf("somebody was told before every server accepted the new version:\n%s", timeline)
	}
	l.more(t, 20)
	w.mustAccept(t, 1)

	pgtest.Exec(t, w.standby, "postgres", "SELECT pg_wal_replay_resume()")
	w.finish(t, id, "done")
	w.mustAccept(t, 2)
	w.mustRefuse(t, 1)
	l.check(t)
	w.healthy(t)
}

// TestUnreachableAtTheStart: nothing is minted while the database cannot be
// reached; what is shown says which server and why, and the rotation begins by
// itself when it can.
func TestUnreachableAtTheStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	if err := w.primary.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "the database is down"})
	r := w.wait(t, id, func(r *keyturnv1.Rotation) bool {
		_, messages := waitsFor(r)
		return strings.Contains(messages, "connection refused")
	})
	_, messages := waitsFor(r)
	if r.GetPhase() != "planned" {
		t.Errorf("it is %s", r.GetPhase())
	}
	says(t, "what it waits for", messages, "preflight", w.primary.Addr(), "connection refused")
	if n := w.tap.calls(point{op: "mint", version: 2}); n != 0 {
		t.Errorf("it minted %d times", n)
	}
	if err := w.primary.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.finish(t, id, "done")
	w.mustAccept(t, 2)
}
