package real

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/key"
)

// lease is how long a killed server's effects stay reserved, with a margin. The
// tests let it pass by starting the next server with a clock that is ahead.
const lease = 7 * time.Second

// mortal is a server process that is killed and started again.
type mortal struct {
	*world
	process *child
	later   time.Duration
	// database is the store's PostgreSQL, nil for SQLite.
	database *pgserver.Server
}

// stores runs a test once on each kind of store.
func stores(t *testing.T, test func(t *testing.T, postgres bool)) {
	t.Helper()
	t.Parallel()
	for name, postgres := range map[string]bool{"sqlite": false, "postgres": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, postgres)
		})
	}
}

func newMortal(t *testing.T, policy string, postgres bool) *mortal {
	t.Helper()
	m := &mortal{world: newSystems(t)}
	if postgres {
		// It is killed too: what it has confirmed must be there afterwards.
		m.database = m.onPostgres(t, pgserver.Config{Durable: true})
	}
	m.process = m.startChild(t, childConfig{})
	m.apply(t, policy+"---\n"+m.keyDocument(m.primary.Addr()))
	m.first(t)
	return m
}

// again kills the server and starts it anew, after the leases have run out: those
// on PostgreSQL are given up by the clock of the database.
func (m *mortal) again(t *testing.T) {
	t.Helper()
	m.process.kill(t)
	if m.database == nil {
		m.later += lease
	}
	m.process = m.startChild(t, childConfig{Later: m.later})
}

// same fails the test unless the key is as after n versions without any crash.
func (m *mortal) same(t *testing.T, n uint64) {
	t.Helper()
	k := m.key(t)
	if k.GetCurrent() != n || len(k.GetVersions()) != int(n) || len(k.GetRotationIds()) != 0 {
		t.Errorf("current is %d of %d versions, %d rotations are open; want %d of %d, and none", k.GetCurrent(), len(k.GetVersions()), len(k.GetRotationIds()), n, n)
	}
	for i, v := range k.GetVersions() {
		want := "destroyed"
		if v.GetNumber() == n {
			want = "active"
		}
		if v.GetNumber() != uint64(i)+1 || v.GetState() != want {
			t.Errorf("version %d is number %d and %s, want %s", i+1, v.GetNumber(), v.GetState(), want)
		}
	}
	m.mustRefuse(t, key.Version(n-1))
	m.mustAccept(t, key.Version(n))
	m.healthy(t)
}

// stops are all the points of a rotation to version n at which the server can be
// killed: just before an effect, and when it was carried out but not recorded.
func (w *world) stops(n uint64) []stop {
	replica := "replica " + w.standby.Addr()
	var all []stop
	for _, at := range []stop{
		{Op: "preflight"},
		{Op: "mint", Version: n},
		{Op: "accept", Endpoint: "primary", Version: n},
		{Op: "accept", Endpoint: replica, Version: n},
		{Op: "probe", Endpoint: "primary", Version: n},
		{Op: "probe", Endpoint: replica, Version: n},
		{Op: "usage", Version: n - 1},
		{Op: "refuse", Endpoint: "primary", Version: n - 1},
		{Op: "refuse", Endpoint: replica, Version: n - 1},
		{Op: "probe", Endpoint: "primary", Version: n - 1},
		{Op: "probe", Endpoint: replica, Version: n - 1},
		{Op: "destroy", Version: n - 1},
	} {
		all = append(all, at)
		at.After = true
		all = append(all, at)
	}
	return all
}

// changes is how often the target was told to change something, as it says itself.
type changes struct{ accepted, refused int }

func (w *world) changes(t *testing.T) changes {
	t.Helper()
	log, err := os.ReadFile(w.primary.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	return changes{
		accepted: len(regexp.MustCompile(`ALTER ROLE "?orders_[ab]"? LOGIN PASSWORD`).FindAll(log, -1)),
		refused:  len(regexp.MustCompile(`ALTER ROLE "?orders_[ab]"? NOLOGIN PASSWORD NULL`).FindAll(log, -1)),
	}
}

// once fails the test unless one rotation made each change once. One that was
// carried out and not recorded when the server was killed may be repeated once: that
// at which it stood, or, while it stood at the replica, the primary's beside it.
func (c changes) once(t *testing.T, before changes, at stop) {
	t.Helper()
	for op, times := range map[string]int{"accept": c.accepted - before.accepted, "refuse": c.refused - before.refused} {
		most := 1
		if at.After && at.Op == op || strings.HasPrefix(at.Endpoint, "replica") {
			most = 2
		}
		if times < 1 || times > most {
			t.Errorf("the target was told %d times to %s, want 1 to %d", times, op, most)
		}
		if times > 1 {
			t.Logf("the target was told %d times to %s", times, op)
		}
	}
}

// TestKilledAtEveryEffect kills the server at every effect of a rotation, before
// it and between it and its record. Every time the next start ends where no crash
// would have, no change of the target is made twice but the one that was not
// recorded, and no application notices.
func TestKilledAtEveryEffect(t *testing.T) { stores(t, killedAtEveryEffect) }

func killedAtEveryEffect(t *testing.T, postgres bool) {
	m := newMortal(t, quickPolicy, postgres)
	l := m.fleet(t, 2)
	n := uint64(1)
	for i := range m.stops(0) {
		if testing.Short() && i%4 != 3 || postgres && !soaking && i%8 != 3 {
			continue
		}
		n++
		at := m.stops(n)[i]
		name := at.Op + " " + at.Endpoint
		m.process.stopAt(t, at)
		before, begun := m.changes(t), time.Now()
		id := m.rotate(t, &keyturnv1.RotateRequest{Reason: fmt.Sprintf("killed at %s, after: %v", name, at.After)})
		await(t, fmt.Sprintf("%s, after: %v", name, at.After), m.process.reached)
		m.again(t)
		m.finish(t, id, "done")
		m.same(t, n)
		m.changes(t).once(t, before, at)
		t.Logf("killed at %s, after: %v; it took %v", name, at.After, time.Since(begun))
		if t.Failed() {
			t.Fatalf("this was the kill at %s, after: %v\n%s", name, at.After, m.timeline(t, id))
		}
	}
	l.check(t)
}

// TestKilledInEveryPhase kills the server when it was seen to be in a phase,
// among them those in which nothing is done but to wait.
func TestKilledInEveryPhase(t *testing.T) { stores(t, killedInEveryPhase) }

func killedInEveryPhase(t *testing.T, postgres bool) {
	m := newMortal(t, vary(t, "{name: rest, bake: 0s", "{name: rest, bake: 1s", "quarantine: 0s", "quarantine: 1s", "drain: {min: 0s", "drain: {min: 1s"), postgres)
	l := m.fleet(t, 2)
	n := uint64(1)
	for i, phase := range []string{"planned", "minting", "accepting", "presenting", "draining", "revoking", "quarantine", "destroying"} {
		if postgres && !soaking && i%4 != 3 {
			continue
		}
		n++
		id := m.rotate(t, &keyturnv1.RotateRequest{Reason: "killed while " + phase})
		// A phase may be over before it is seen; then the kill comes a little later.
		seen := m.wait(t, id, func(r *keyturnv1.Rotation) bool { return phaseNumber(r.GetPhase()) >= phaseNumber(phase) })
		m.again(t)
		m.finish(t, id, "done")
		m.same(t, n)
		t.Logf("killed while %s, seen %s", phase, seen.GetPhase())
		if t.Failed() {
			t.Fatalf("this was the kill while %s\n%s", phase, m.timeline(t, id))
		}
	}
	l.check(t)
}

func phaseNumber(phase string) int {
	for i, p := range []string{"planned", "minting", "accepting", "presenting", "draining", "revoking", "quarantine", "destroying"} {
		if p == phase {
			return i
		}
	}
	return 100 // it has ended
}

// TestKilledWhileRollingBack kills the server while a failed canary is rolled
// back: the roll-back ends as it would have.
func TestKilledWhileRollingBack(t *testing.T) { stores(t, killedWhileRollingBack) }

func killedWhileRollingBack(t *testing.T, postgres bool) {
	m := newMortal(t, quickPolicy, postgres)
	l := m.fleet(t, 2)
	sick := m.open(t, "sick-canary", "canary", "eu")
	defer sick.OnApply(func(context.Context, client.Credential) error { return errors.New("not well") })()
	all := []stop{
		{Op: "refuse", Endpoint: "primary"},
		{Op: "refuse", Endpoint: "primary", After: true},
		{Op: "refuse", Endpoint: "replica " + m.standby.Addr(), After: true},
	}
	if postgres && !soaking {
		all = all[1:2]
	}
	for i, at := range all {
		at.Version = uint64(i) + 2
		m.process.stopAt(t, at)
		id := m.rotate(t, &keyturnv1.RotateRequest{Reason: "a canary that fails"})
		await(t, "the new version is refused", m.process.reached)
		m.again(t)
		r := m.finish(t, id, "rolled-back")
		says(t, "the reason", r.GetReason(), "sick-canary", "not well")
		if now := m.current(t); now != 1 {
			t.Errorf("version %d is current", now)
		}
		m.mustAccept(t, 1)
		m.mustRefuse(t, key.Version(at.Version))
		m.healthy(t)
	}
	l.check(t)
}
