package postgres_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/test/pgtest"
)

// TestDriftIsReportedNotChanged makes each kind of drift by hand, wants it found,
// and wants it still there after Preflight.
func TestDriftIsReportedNotChanged(t *testing.T) {
	t.Parallel()
	s := newTarget(t, sharedPair(t), "alternating-users").open()
	first := s.mint()
	s.accept(first)
	second := s.mint(first)
	s.accept(second)
	a, b, group := quote(s.users[0]), quote(s.users[1]), quote(s.group)
	codes := func() string {
		findings, err := s.preflight(first, second)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, f := range findings {
			all = append(all, f.Code)
			if f.Hint == "" {
				t.Errorf("%s has no hint", f.Code)
			}
		}
		return strings.Join(all, " ")
	}
	if got := codes(); got != "group-empty" {
		t.Fatalf("before any drift: %q", got)
	}
	schema := strings.ReplaceAll(s.rotator, "rotator", "drift")
	pgtest.Exec(t, s.primary, database, "CREATE SCHEMA "+schema+" AUTHORIZATION "+group, "CREATE TABLE "+schema+".t (n int)")
	for _, test := range []struct{ name, drift, code, undo string }{
		{"grant to a login role", "GRANT SELECT ON " + schema + ".t TO " + a, "grants-drifted", "REVOKE ALL ON " + schema + ".t FROM " + a},
		{"default privileges for a login role", "ALTER DEFAULT PRIVILEGES IN SCHEMA " + schema + " GRANT SELECT ON TABLES TO " + b, "grants-drifted", "ALTER DEFAULT PRIVILEGES IN SCHEMA " + schema + " REVOKE SELECT ON TABLES FROM " + b},
		{"policy for a login role", "CREATE POLICY p ON " + schema + ".t TO " + a, "grants-drifted", "DROP POLICY p ON " + schema + ".t"},
		{"object of a login role", "ALTER TABLE " + schema + ".t OWNER TO " + a, "ownership-drifted", "ALTER TABLE " + schema + ".t OWNER TO " + group},
		{"membership taken", "REVOKE " + group + " FROM " + b, "membership-drifted", "GRANT " + group + " TO " + b},
		{"membership of its own", "GRANT pg_monitor TO " + a, "membership-drifted", "REVOKE pg_monitor FROM " + a},
		{"no role at login", "ALTER ROLE " + a + " RESET role", "role-setting-drifted", "ALTER ROLE " + a + " SET role = " + literal(s.group)},
		{"another role in one database", "ALTER ROLE " + a + " IN DATABASE " + database + " SET role = none", "role-setting-drifted", "ALTER ROLE " + a + " IN DATABASE " + database + " RESET role"},
		{"setting of one user", "ALTER ROLE " + b + " SET work_mem = '1MB'", "settings-drifted", "ALTER ROLE " + b + " RESET work_mem"},
		{"connection limit of one user", "ALTER ROLE " + b + " CONNECTION LIMIT 5", "settings-drifted", "ALTER ROLE " + b + " CONNECTION LIMIT -1"},
		{"attribute of a user", "ALTER ROLE " + a + " CREATEDB", "attributes-drifted", "ALTER ROLE " + a + " NOCREATEDB"},
		{"group that can log in", "ALTER ROLE " + group + " LOGIN", "attributes-drifted", "ALTER ROLE " + group + " NOLOGIN"},
		{"expiry", "ALTER ROLE " + a + " VALID UNTIL '2100-01-01'", "expiry-set", "ALTER ROLE " + a + " VALID UNTIL 'infinity'"},
	} {
		pgtest.Exec(t, s.primary, database, test.drift)
		for range 2 { // the second look shows that the first changed nothing
			if got := codes(); got != test.code {
				t.Errorf("%s: got %q, want %q", test.name, got, test.code)
			}
		}
		pgtest.Exec(t, s.primary, database, test.undo)
	}
	if got := codes(); got != "" {
		t.Errorf("after undoing it all: %q", got)
	}
	// A role whose membership and setting were lost is usable again once a version
	// is accepted on it: no application gets a login without its rights.
	pgtest.Exec(t, s.primary, database, "REVOKE "+group+" FROM "+a, "ALTER ROLE "+a+" RESET role")
	s.accept(first)
	if got := codes(); got != "" {
		t.Errorf("after Accept: %q", got)
	}
}

func TestPreflightFindsWhatWouldFail(t *testing.T) {
	t.Parallel()
	s := newTarget(t, sharedPair(t), "alternating-users").open()
	v := s.mint()
	s.accept(v)
	user := quote(s.users[0])
	for _, test := range []struct{ change, says, undo string }{
		{"ALTER ROLE " + user + " VALID UNTIL '2020-01-01'", "has expired", "ALTER ROLE " + user + " VALID UNTIL 'infinity'"},
		{"ALTER ROLE " + user + " SUPERUSER", "only a superuser may change", "ALTER ROLE " + user + " NOSUPERUSER"},
		{"COMMENT ON ROLE " + user + ` IS '[keyturn {"key":"other","version":1}]'`, `belongs to key "other"`, "COMMENT ON ROLE " + user + " IS NULL"},
	} {
		pgtest.Exec(t, s.primary, database, test.change)
		if _, err := s.preflight(v); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("after %s: got %v, want %q", test.change, err, test.says)
		}
		pgtest.Exec(t, s.primary, database, test.undo)
	}
	gone := provider.Version{Number: 9, Material: provider.Material{Attributes: map[string]string{"username": "somebody else"}}}
	findings, err := s.preflight(v, gone)
	if err != nil || len(findings) == 0 || findings[0].Code != "user-unlisted" {
		t.Errorf("a live version of an unlisted user: %+v, %v", findings, err)
	}
	// The standby and the primary the wrong way round.
	swapped := *s.target
	swapped.config = maps.Clone(s.config)
	swapped.config["admin"] = strings.Replace(s.config["admin"].(string), s.proxies[primaryEndpoint].Addr(), s.replica.Addr(), 1)
	swapped.config["replicas"] = []any{s.primary.Addr()}
	if _, err := swapped.open().preflight(); err == nil || !strings.Contains(err.Error(), "it is a standby") || !strings.Contains(err.Error(), "not a standby") {
		t.Errorf("primary and standby swapped: %v", err)
	}
	if err := swapped.open().Accept(t.Context(), provider.Call{Key: s.name}, primaryEndpoint, v); err == nil || !strings.Contains(err.Error(), "point admin at the primary") {
		t.Errorf("Accept on a standby: %v", err)
	}
}
