package postgres_test

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/test/pgtest"
)

// TestOnlyARefusalIsRefused makes logins fail for reasons that say nothing about
// the password: none of them may pass for a proof of revocation.
func TestOnlyARefusalIsRefused(t *testing.T) {
	t.Parallel()
	s := newTarget(t, sharedPair(t), "alternating-users").open()
	v := s.mint()
	s.accept(v)
	user := quote(s.users[0])
	for _, test := range []struct{ name, change, undo string }{
		{"too many connections of the role", "ALTER ROLE " + user + " CONNECTION LIMIT 0", "ALTER ROLE " + user + " CONNECTION LIMIT -1"},
		{"no role to become", "ALTER ROLE " + user + " SET role = pg_monitor", ""},
	} {
		pgtest.Exec(t, s.primary, database, test.change)
		verdict, err := s.Probe(t.Context(), s.call(), primaryEndpoint, v)
		if test.undo == "" {
			// A setting that cannot be applied is a warning to PostgreSQL: the login works.
			if err != nil || verdict != provider.Accepted {
				t.Errorf("%s: got %v, %v", test.name, verdict, err)
			}
			continue
		}
		if err == nil {
			t.Errorf("%s: got %v, want an error", test.name, verdict)
		}
		// Nor has a version arrived at a replica where nobody could log in with it.
		impatient := *s.target
		impatient.config = maps.Clone(s.config)
		impatient.config["replicaWait"] = "200ms"
		replica := s.endpoints()[1]
		pgtest.Eventually(t, "the change is on the standby", func() bool {
			_, err := s.Probe(t.Context(), s.call(), replica, v)
			return err != nil
		})
		if err := impatient.open().Accept(t.Context(), s.call(), replica, v); err == nil {
			t.Errorf("%s: Accept at the replica succeeded", test.name)
		}
		pgtest.Exec(t, s.primary, database, test.undo)
	}
	elsewhere := *s.target
	elsewhere.config = maps.Clone(s.config)
	elsewhere.config["database"] = "no_such_database"
	if verdict, err := elsewhere.open().Probe(t.Context(), s.call(), primaryEndpoint, v); err == nil {
		t.Errorf("an absent database: got %v, want an error", verdict)
	}
	// NOLOGIN with the right password, and a role that is not there, are refusals.
	pgtest.Exec(t, s.primary, database, "ALTER ROLE "+user+" NOLOGIN")
	s.wantVerdict(v, primaryEndpoint, provider.Refused)
	pgtest.Exec(t, s.primary, database, "ALTER ROLE "+user+" LOGIN")
	s.wantVerdict(v, primaryEndpoint, provider.Accepted)
}

// TestLoginWorksWithoutTLS checks the first, failing attempt that sslmode=prefer
// makes on a server without TLS: it must hide neither verdict.
func TestLoginWorksWithoutTLS(t *testing.T) {
	t.Parallel()
	tg := newTarget(t, sharedPair(t), "alternating-users")
	tg.config["admin"] = strings.Replace(tg.config["admin"].(string), "?sslmode=disable", "", 1)
	s := tg.open()
	v := s.mint()
	s.wantVerdict(v, primaryEndpoint, provider.Refused)
	s.accept(v)
	s.wantVerdict(v, primaryEndpoint, provider.Accepted)
}

// TestUsageNamesHolders counts sessions of both servers by client, and leaves
// the provider's own probes out.
func TestUsageNamesHolders(t *testing.T) {
	t.Parallel()
	s := newTarget(t, sharedPair(t), "alternating-users").open()
	v := s.mint()
	s.accept(v)
	endpoints := s.endpoints()
	for range 2 {
		s.session(endpoints[0], v, "billing")
	}
	s.session(endpoints[1], v, "reports")
	for range 5 {
		s.wantVerdict(v, endpoints[0], provider.Accepted)
	}
	u, err := s.usage(v)
	want := []provider.Holder{
		{Endpoint: endpoints[0], Address: "127.0.0.1", Application: "billing", Sessions: 2},
		{Endpoint: endpoints[1], Address: "127.0.0.1", Application: "reports", Sessions: 1},
	}
	if err != nil || u.Sessions != 3 || len(u.Holders) != 2 || u.Holders[0] != want[0] || u.Holders[1] != want[1] {
		t.Errorf("got %+v, %v, want %+v", u, err, want)
	}
	// Without the right to see other roles' sessions there is no count, not a low one.
	pgtest.Exec(t, s.primary, database, "REVOKE pg_read_all_stats FROM "+s.rotator)
	if u, err := s.usage(v); !errors.Is(err, provider.ErrNoData) || !strings.Contains(err.Error(), "pg_read_all_stats") {
		t.Errorf("without pg_read_all_stats: got %+v, %v, want ErrNoData", u, err)
	}
}

// TestTerminateFalse leaves the sessions to the applications, and says so.
func TestTerminateFalse(t *testing.T) {
	t.Parallel()
	tg := newTarget(t, sharedPair(t), "alternating-users")
	tg.config["terminate"] = false
	s := tg.open()
	v := s.mint()
	s.accept(v)
	conn := s.session(primaryEndpoint, v, "slow")
	if err := s.Refuse(t.Context(), s.call(), primaryEndpoint, v); err == nil || !strings.Contains(err.Error(), "still open") {
		t.Errorf("Refuse with an open session: %v", err)
	}
	s.wantVerdict(v, primaryEndpoint, provider.Refused)
	if _, err := conn.Exec(t.Context(), "SELECT 1"); err != nil {
		t.Errorf("the session was ended: %v", err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "Refuse succeeds once the session is closed", func() bool {
		return s.Refuse(t.Context(), s.call(), primaryEndpoint, v) == nil
	})
}

// TestOverwritingIsRefused: a role that holds something else is not taken over.
func TestOverwritingIsRefused(t *testing.T) {
	t.Parallel()
	s := newTarget(t, sharedPair(t), "alternating-users").open()
	pgtest.Exec(t, s.primary, database, "CREATE ROLE "+quote(s.users[0]), "COMMENT ON ROLE "+quote(s.users[0])+" IS 'orders, ask Ann'")
	v := s.mint()
	v.Number = 5
	s.accept(v)

	older := v
	older.Number = 4
	if err := s.Accept(t.Context(), s.call(), primaryEndpoint, older); !provider.IsPermanent(err) || !strings.Contains(err.Error(), "COMMENT ON ROLE") {
		t.Errorf("an older version: %v", err)
	}
	stranger := s.call()
	stranger.Key = "somebody/else"
	if err := s.Accept(t.Context(), stranger, primaryEndpoint, v); !provider.IsPermanent(err) || !strings.Contains(err.Error(), "belongs to key") {
		t.Errorf("another key: %v", err)
	}
	stale := s.call()
	stale.Fence = 1
	if err := s.Accept(t.Context(), stale, primaryEndpoint, v); err == nil || provider.IsPermanent(err) || !strings.Contains(err.Error(), "fencing token") {
		t.Errorf("Accept with a stale fence: %v", err)
	}
	if err := s.Refuse(t.Context(), stale, primaryEndpoint, v); err == nil || !strings.Contains(err.Error(), "fencing token") {
		t.Errorf("Refuse with a stale fence: %v", err)
	}
	s.wantVerdict(v, primaryEndpoint, provider.Accepted)
	comment := s.scan("SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = " + literal(s.users[0]))
	if !strings.HasPrefix(comment, "orders, ask Ann [keyturn {") {
		t.Errorf("the comment became %q", comment)
	}
	// Without its marker the role is still refused: the password itself decides.
	pgtest.Exec(t, s.primary, database, "COMMENT ON ROLE "+quote(s.users[0])+" IS NULL")
	s.refuse(v)
	s.wantVerdict(v, primaryEndpoint, provider.Refused)
	// Who gives LOGIN back by hand does not revive the password.
	pgtest.Exec(t, s.primary, database, "ALTER ROLE "+quote(s.users[0])+" LOGIN")
	s.wantVerdict(v, primaryEndpoint, provider.Refused)

	unlisted := v
	unlisted.Material.Attributes = map[string]string{"username": "not in the config"}
	if err := s.Accept(t.Context(), s.call(), primaryEndpoint, unlisted); !provider.IsPermanent(err) {
		t.Errorf("an unlisted user: %v", err)
	}
}
