package real

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/key"
)

// TestStoreKilledInEveryPhase kills the PostgreSQL that is the store while a
// rotation is in a phase, and at moments drawn at random, so that commits are cut.
// The server stays; when the database is back the rotation ends as it would have,
// nothing that was committed is lost, and no application notices.
func TestStoreKilledInEveryPhase(t *testing.T) {
	t.Parallel()
	m := newMortal(t, vary(t, "{name: rest, bake: 0s", "{name: rest, bake: 500ms", "quarantine: 0s", "quarantine: 500ms", "drain: {min: 0s", "drain: {min: 500ms"), true)
	l := m.fleet(t, 2)
	phases := []string{"planned", "minting", "accepting", "presenting", "draining", "revoking", "quarantine", "destroying"}
	if !soaking {
		phases = []string{"presenting"}
	}
	n := uint64(1)
	for _, phase := range phases {
		n++
		id := m.rotate(t, &keyturnv1.RotateRequest{Reason: "the store is killed while " + phase})
		m.wait(t, id, func(r *keyturnv1.Rotation) bool { return phaseNumber(r.GetPhase()) >= phaseNumber(phase) })
		m.crash(t, m.database)
		m.ends(t, id, n)
	}
	times := 2
	if soaking {
		times = 60
	}
	for range times {
		n++
		id := m.rotate(t, &keyturnv1.RotateRequest{Reason: "the store is killed at some moment"})
		after := rand.N(700 * time.Millisecond)
		pause(t, after)
		m.crash(t, m.database)
		m.ends(t, id, n)
		t.Logf("killed %v after the beginning", after)
	}
	l.check(t)
}

// pause lets the moment come at which something is done to a rotation.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

// crash ends a PostgreSQL as SIGKILL does, and starts it again.
func (w *world) crash(t *testing.T, database *pgserver.Server) {
	t.Helper()
	if err := database.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := database.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// ends waits for the rotation's end through an outage of the store, and fails the
// test unless all is as without it.
func (m *mortal) ends(t *testing.T, id string, n uint64) {
	t.Helper()
	eventually(t, fmt.Sprintf("rotation %s ends", id), func() bool {
		response, err := m.control.GetRotation(t.Context(), &keyturnv1.GetRotationRequest{Id: id})
		return err == nil && response.GetRotation().GetEnded()
	})
	m.finish(t, id, "done")
	m.same(t, n)
	if t.Failed() {
		t.Fatal(m.timeline(t, id))
	}
}

// TestTargetKilledAtEveryEffect kills the primary whose credential is rotated at
// every effect, before it and when it was carried out but not recorded. The
// rotation ends by itself when the primary is back: with the new version, or, when
// a canary found that it could not log in, with the old one. No credential is lost,
// and no log-in refused.
func TestTargetKilledAtEveryEffect(t *testing.T) { stores(t, targetKilledAtEveryEffect) }

func targetKilledAtEveryEffect(t *testing.T, postgres bool) {
	w := newInProcess(t, postgres).world
	l := w.fleet(t, 2)
	current, n := key.Version(1), uint64(1)
	for i := range w.stops(0) {
		if !soaking && (i%6 != 1 || postgres && i%12 != 7) {
			continue
		}
		n++
		at := w.stops(n)[i]
		if at.Version == n-1 {
			at.Version = uint64(current)
		}
		id := w.killedAt(t, at, w.primary)
		r := w.wait(t, id, nil)
		w.tap.stand(nil)
		valid, void := key.Version(n), current
		if r.GetPhase() == "rolled-back" {
			says(t, "the reason", r.GetReason(), "stage canary failed", "connect")
			valid, void = void, valid
		} else if r.GetPhase() != "done" {
			t.Errorf("it ended as %s (%s)", r.GetPhase(), r.GetReason())
		}
		current = valid
		if now := w.current(t); now != uint64(valid) {
			t.Errorf("version %d is current, want %d", now, valid)
		}
		w.mustRefuse(t, void)
		w.mustAccept(t, valid)
		w.healthy(t)
		if t.Failed() {
			t.Fatalf("the primary was killed at %+v\n%s", at, w.timeline(t, id))
		}
	}
	if l.refused.Load() > 0 || l.queries.Load() == 0 {
		t.Errorf("%d log-ins were refused: %v", l.refused.Load(), l.report())
	}
}

// TestStoreKilledAtEveryEffect kills the PostgreSQL that is the store at every
// effect of a rotation, before it and when it was carried out and cannot be recorded.
// The rotation ends as it would have, no change of the target is made twice but the
// one that could not be recorded, and no application notices.
func TestStoreKilledAtEveryEffect(t *testing.T) {
	t.Parallel()
	m := newInProcess(t, true)
	l := m.fleet(t, 2)
	n := uint64(1)
	for i := range m.stops(0) {
		if !soaking && i%10 != 5 {
			continue
		}
		n++
		at := m.stops(n)[i]
		before := m.changes(t)
		id := m.killedAt(t, at, m.database)
		m.ends(t, id, n)
		m.tap.stand(nil)
		at.After = true // what it stood before was carried out meanwhile, and not recorded
		m.changes(t).once(t, before, at)
		if t.Failed() {
			t.Fatalf("the store was killed at %+v\n%s", at, m.timeline(t, id))
		}
	}
	l.check(t)
}

// newInProcess starts a server in this process, with the first version of a key.
func newInProcess(t *testing.T, postgres bool) *mortal {
	t.Helper()
	m := &mortal{world: newSystems(t)}
	if postgres {
		m.database = m.onPostgres(t, pgserver.Config{Durable: true})
	}
	m.start(t)
	t.Cleanup(func() { m.stop(t) })
	m.apply(t, quickPolicy+"---\n"+m.keyDocument(m.primary.Addr()))
	m.first(t)
	return m
}

// killedAt begins a rotation and kills a PostgreSQL while it stands at a point. The
// rotation goes on before the database is back.
func (w *world) killedAt(t *testing.T, at stop, database *pgserver.Server) (id string) {
	t.Helper()
	reached, gone := make(chan struct{}, 1), make(chan struct{})
	var first atomic.Bool
	first.Store(true)
	w.tap.stand(func(_ context.Context, here point) error {
		if at.is(here) && first.CompareAndSwap(true, false) {
			reached <- struct{}{}
			<-gone
		}
		return nil
	})
	id = w.rotate(t, &keyturnv1.RotateRequest{Reason: fmt.Sprintf("a database is killed at %+v", at)})
	await(t, fmt.Sprintf("%+v", at), reached)
	if err := database.Kill(); err != nil {
		t.Fatal(err)
	}
	close(gone)
	if err := database.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	return id
}
