package postgres_test

import (
	"context"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/test/pgtest"
)

// lets tells whether a server lets a version in, as an application finds it.
func (o *opened) lets(s *pgserver.Server, v provider.Version) bool {
	o.t.Helper()
	conn, err := connect(o.t.Context(), s, v, "application")
	if err == nil {
		err = conn.Close(o.t.Context())
	}
	return err == nil
}

// wantNone fails the test unless a probe cannot tell, and says why.
func (o *opened) wantNone(v provider.Version, endpoint, why string) {
	o.t.Helper()
	verdict, err := o.Probe(o.t.Context(), o.call(), endpoint, v)
	if err == nil || verdict != 0 || provider.IsPermanent(err) {
		o.t.Errorf("probe %v at %s: got %v, %v; want none", v.Number, endpoint, verdict, err)
		return
	}
	if !strings.Contains(err.Error(), why) {
		o.t.Errorf("probe %v at %s: %q is not in: %v", v.Number, endpoint, why, err)
	}
}

// TestStaleReplicaGivesNoVerdict: a standby that has not replayed what the primary has gives no
// verdict, whatever it would say, and nothing is taken for done there. It is a
// second one that the key gets later.
func TestStaleReplicaGivesNoVerdict(t *testing.T) {
	t.Parallel()
	p := sharedPair(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	added, err := p.primary.StartReplica(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	tg := newTarget(t, p, "alternating-users")
	endpoint := "replica " + added.Addr()
	late := *tg
	late.config = maps.Clone(tg.config)
	late.config["replicas"] = append([]any{map[string]any{"host": added.Addr(), "region": "c"}}, tg.config["replicas"].([]any)...)
	late.config["replicaWait"] = "500ms"
	pgtest.Eventually(t, "the administrator is on the new standby", func() bool {
		conn, err := connectAs(t.Context(), added, tg.rotator, tg.rotatorSecret)
		if err == nil {
			err = conn.Close(t.Context())
		}
		return err == nil
	})
	stale := pair{primary: p.primary, replica: added}

	// Nothing of the key has come to it: "no such role" is no refusal.
	stale.pauseReplay(t)
	early := tg.open()
	v := early.mint()
	early.accept(v)
	s := late.open()
	s.next, s.fence = early.next, 100
	s.wantNone(v, endpoint, "has not arrived")
	if err := s.Accept(t.Context(), s.call(), endpoint, v); err == nil {
		t.Error("Accept succeeded where the role is not")
	}

	// It will let the version in before it refuses it: neither is the refusal done,
	// nor does it hold nothing.
	if err := s.Refuse(t.Context(), s.call(), primaryEndpoint, v); err != nil {
		t.Fatal(err)
	}
	if err := s.Refuse(t.Context(), s.call(), endpoint, v); err == nil || !strings.Contains(err.Error(), "paused") {
		t.Errorf("Refuse where the role has still to come: %v", err)
	}
	s.wantNone(v, endpoint, "has not arrived")
	if held, err := s.System.(provider.Lister).Held(t.Context(), s.call()); err == nil {
		t.Errorf("Held tells of %+v", held)
	}
	stale.resumeReplay(t)
	s.wait(endpoint, func() error { return s.Refuse(t.Context(), s.call(), endpoint, v) })
	s.wantVerdict(v, endpoint, provider.Refused)

	// It lets an old password in that the primary refuses: no verdict either. And
	// what it accepts it has still to refuse before it accepts it for good.
	s.accept(v)
	s.wait(endpoint, func() error { return s.Accept(t.Context(), s.call(), endpoint, v) })
	s.wantVerdict(v, endpoint, provider.Accepted)
	stale.pauseReplay(t)
	if err := s.Refuse(t.Context(), s.call(), primaryEndpoint, v); err != nil {
		t.Fatal(err)
	}
	s.wantNone(v, endpoint, "has not arrived")
	if err := s.Accept(t.Context(), s.call(), primaryEndpoint, v); err != nil {
		t.Fatal(err)
	}
	if !s.lets(added, v) {
		t.Error("the standby does not let the old version in: the test proves nothing")
	}
	if err := s.Accept(t.Context(), s.call(), endpoint, v); err == nil {
		t.Error("Accept succeeded where the refusal has still to come")
	}
	// One that cannot tell how far it is must know the same of the role.
	pgtest.Exec(t, p.primary, database, "REVOKE EXECUTE ON FUNCTION pg_last_wal_replay_lsn() FROM PUBLIC")
	told := func() {
		pgtest.Exec(t, p.primary, database, "GRANT EXECUTE ON FUNCTION pg_last_wal_replay_lsn() TO PUBLIC")
	}
	t.Cleanup(told)
	stale.resumeReplay(t)
	s.wait(endpoint, func() error {
		_, err := s.Probe(t.Context(), s.call(), endpoint, v)
		return err
	})
	s.wantVerdict(v, endpoint, provider.Accepted)
	stale.pauseReplay(t)
	if err := s.Refuse(t.Context(), s.call(), primaryEndpoint, v); err != nil {
		t.Fatal(err)
	}
	s.wantNone(v, endpoint, "has not arrived")
	stale.resumeReplay(t)
	s.wait(endpoint, func() error { return s.Refuse(t.Context(), s.call(), endpoint, v) })

	// A standby that was promoted follows nobody.
	told()
	s.wantVerdict(v, endpoint, provider.Refused)
	pgtest.Exec(t, added, database, "SELECT pg_promote()")
	pgtest.Eventually(t, "a standby that was promoted gives no verdict", func() bool {
		_, err := s.Probe(t.Context(), s.call(), endpoint, v)
		return err != nil && strings.Contains(err.Error(), "not a standby")
	})
}

// wait repeats a call at a replica as Keyturn does.
func (o *opened) wait(endpoint string, call func() error) {
	o.t.Helper()
	pgtest.Eventually(o.t, "the call at "+endpoint+" succeeds", func() bool { return call() == nil })
}

// testConfirmedIsOnDisk: where the administrator's commits are not flushed, those
// that Keyturn was told of are there after a crash all the same.
func testConfirmedIsOnDisk(t *testing.T, p pair) {
	s := newTarget(t, p, "alternating-users").open()
	pgtest.Exec(t, p.primary, database, "ALTER SYSTEM SET wal_writer_delay = '10s'", "ALTER SYSTEM SET wal_writer_flush_after = '1GB'",
		"SELECT pg_reload_conf()", "ALTER ROLE "+s.rotator+" SET synchronous_commit = off")
	var live []provider.Version
	for range 3 {
		v := s.mint(live...)
		if err := s.Accept(t.Context(), s.call(), primaryEndpoint, v); err != nil {
			t.Fatal(err)
		}
		if err := p.primary.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := p.primary.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.wantVerdict(v, primaryEndpoint, provider.Accepted)
		live = []provider.Version{v}
	}
}

// TestReplicaWaitsOnOneConnection: as long as the primary has not refused a version, a
// replica's refusal asks it again and again, and logs in once.
func TestReplicaWaitsOnOneConnection(t *testing.T) {
	t.Parallel()
	p := sharedPair(t)
	tg := newTarget(t, p, "alternating-users")
	logins := func() int {
		log, err := os.ReadFile(p.primary.LogFile())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(log), "connection authorized: user="+tg.rotator+" ")
	}
	s := tg.open()
	v := s.mint()
	s.accept(v)
	before := logins()
	if before == 0 {
		t.Fatal("no log-in is in the server's log")
	}
	replica := slices.DeleteFunc(tg.endpoints(), func(name string) bool { return name == primaryEndpoint })
	err := s.Refuse(t.Context(), s.call(), replica[0], v)
	if err == nil || !strings.Contains(err.Error(), "still holds") {
		t.Errorf("the replica refuses what the primary does not: %v", err)
	}
	if n := logins() - before; n != 1 {
		t.Errorf("%d log-ins", n)
	}
}
