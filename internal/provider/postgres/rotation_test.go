package postgres_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/test/pgtest"
)

// TestLiveSessionsSurviveRotation: PostgreSQL asks for the password at login only,
// so that a session outlives the change of its password and even NOLOGIN. Hence
// sessions are the measure of use, and Refuse ends them.
func TestLiveSessionsSurviveRotation(t *testing.T) {
	for _, strategy := range []string{"alternating-users", "single-user"} {
		t.Run(strategy, func(t *testing.T) {
			t.Parallel()
			s := newTarget(t, sharedPair(t), strategy).open()
			old := s.mint()
			s.accept(old)
			var sessions []*pgx.Conn
			for _, endpoint := range s.endpoints() {
				sessions = append(sessions, s.session(endpoint, old, "survivor"))
			}
			next := s.mint(old)
			s.accept(next)
			pgtest.Exec(t, s.primary, database, "ALTER ROLE "+quote(old.Material.Attributes["username"])+" CONNECTION LIMIT 50")
			for i, conn := range sessions {
				if _, err := conn.Exec(t.Context(), "SELECT 1"); err != nil {
					t.Errorf("the session at %s did not survive: %v", s.endpoints()[i], err)
				}
			}
			s.refuse(old)
			for i, conn := range sessions {
				if _, err := conn.Exec(t.Context(), "SELECT 1"); err == nil {
					t.Errorf("the session at %s survived Refuse", s.endpoints()[i])
				}
			}
		})
	}
}

// TestPasswordsNeverReachTheServerLog is about what log_statement=all shows. The
// conformance suite scans the same log; this test proves that there is something
// to see in it.
func TestPasswordsNeverReachTheServerLog(t *testing.T) {
	t.Parallel()
	s := newTarget(t, sharedPair(t), "alternating-users").open()
	v := s.mint()
	s.accept(v)
	s.refuse(v)
	s.accept(v)
	log := s.logs(t)
	statement := "ALTER ROLE " + quote(v.Material.Attributes["username"]) + " LOGIN PASSWORD 'SCRAM-SHA-256$4096:"
	if got := strings.Count(string(log), statement); got != 2 {
		t.Errorf("the log shows %d statements %q…, want 2", got, statement)
	}
	if contains(log, v.Material.Secrets["password"]) || strings.Contains(string(log), s.rotatorSecret+"\"") {
		t.Error("the log shows a password")
	}
}

// TestGrantsAndOwnershipDoNotDrift rotates to and fro while the application
// creates objects, and an administrator grants things to the group afterwards
// (aws rotation-lambdas#38: grants made after cloning are lost on alternation).
func TestGrantsAndOwnershipDoNotDrift(t *testing.T) {
	t.Parallel()
	s := newTarget(t, sharedPair(t), "alternating-users").open()
	schema := strings.ReplaceAll(s.rotator, "rotator", "app")
	var live []provider.Version
	for round := range 4 {
		v := s.mint(live...)
		s.accept(v)
		if round == 0 {
			// The group exists by now; it gets its rights once.
			pgtest.Exec(t, s.primary, database, "CREATE SCHEMA "+schema+" AUTHORIZATION "+quote(s.group))
		}
		conn := s.session(primaryEndpoint, v, "app")
		statements := []string{fmt.Sprintf("CREATE TABLE %s.t%d (n int)", schema, round)}
		for earlier := range round {
			// Each version alters, fills and reads what the others made.
			table := fmt.Sprintf("%s.t%d", schema, earlier)
			statements = append(statements, fmt.Sprintf("ALTER TABLE %s ADD c%d int", table, round), "INSERT INTO "+table+" VALUES (1)", "SELECT * FROM "+table)
		}
		if round > 1 {
			statements = append(statements, "SELECT * FROM "+schema+"_late")
		}
		for _, statement := range statements {
			if _, err := conn.Exec(t.Context(), statement); err != nil {
				t.Fatalf("%v: %s: %v", v.Number, statement, err)
			}
		}
		if round == 1 {
			pgtest.Exec(t, s.primary, database, "CREATE TABLE "+schema+"_late (n int)", "GRANT SELECT ON "+schema+"_late TO "+quote(s.group))
		}
		if len(live) > 0 {
			s.refuse(live[0])
		}
		live = []provider.Version{v}
	}
	if owners := s.scan("SELECT string_agg(DISTINCT tableowner::text, ',') FROM pg_tables WHERE schemaname = '" + schema + "'"); owners != s.group {
		t.Errorf("the tables are owned by %q, want the group %q only", owners, s.group)
	}
	findings, err := s.System.(provider.Preflighter).Preflight(t.Context(), s.call(), live)
	if err != nil || len(findings) != 0 {
		t.Errorf("preflight after four rotations: %+v, %v", findings, err)
	}
	// DISCARD ALL, which poolers run between clients, must not undo the change of role.
	conn := s.session(primaryEndpoint, live[0], "pooled")
	if _, err := conn.Exec(t.Context(), "DISCARD ALL"); err != nil {
		t.Fatal(err)
	}
	var self string
	if err := conn.QueryRow(t.Context(), "SELECT current_user::text").Scan(&self); err != nil || self != s.group {
		t.Errorf("after DISCARD ALL the session is %q, %v; want %q", self, err, s.group)
	}
}

// TestLeastPrivilege checks that the administrator of these tests is no more than
// documented, and that rotating leaves it no more than it was.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	s := newTarget(t, sharedPair(t), "alternating-users").open()
	s.config["memberOf"] = []any{"pg_monitor"}
	s = s.target.open()
	v := s.mint()
	s.accept(v)
	if got := s.scan("SELECT concat_ws(' ', rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls) FROM pg_roles WHERE rolname = '" + s.rotator + "'"); got != "f t f f f" {
		t.Errorf("the administrator's attributes are %q", got)
	}
	if got := s.scan("SELECT string_agg(g.rolname, ' ' ORDER BY g.rolname) FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles u ON u.oid = m.member WHERE u.rolname = '" + s.rotator + "'"); got != "pg_read_all_stats pg_signal_backend" {
		t.Errorf("the administrator is a member of %q", got)
	}
	if got := s.scan("SELECT pg_has_role(" + literal(s.group) + ", 'pg_monitor', 'USAGE')::text"); got != "true" {
		t.Errorf("memberOf was not granted to the group: %q", got)
	}
	if got := s.scan("SELECT concat_ws(' ', rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, rolcanlogin) FROM pg_roles WHERE rolname = " + literal(s.group)); got != "f f f f f f" {
		t.Errorf("the group's attributes are %q", got)
	}
}

// TestPreflightNamesMissingRights takes the administrator's rights one by one.
func TestPreflightNamesMissingRights(t *testing.T) {
	t.Parallel()
	s := newTarget(t, sharedPair(t), "alternating-users").open()
	for _, test := range []struct{ take, giveBack, mend string }{
		{"ALTER ROLE %s NOCREATEROLE", "ALTER ROLE %s CREATEROLE", "CREATEROLE"},
		{"REVOKE pg_signal_backend FROM %s", "GRANT pg_signal_backend TO %s", "GRANT pg_signal_backend"},
		{"REVOKE pg_read_all_stats FROM %s", "GRANT pg_read_all_stats TO %s", "GRANT pg_read_all_stats"},
	} {
		pgtest.Exec(t, s.primary, database, fmt.Sprintf(test.take, s.rotator))
		if _, err := s.preflight(); err == nil || !strings.Contains(err.Error(), test.mend) {
			t.Errorf("after %s: got %v, want advice with %q", test.take, err, test.mend)
		}
		pgtest.Exec(t, s.primary, database, fmt.Sprintf(test.giveBack, s.rotator))
	}
	pgtest.Eventually(t, "preflight passes again", func() bool { _, err := s.preflight(); return err == nil })
}

func (o *opened) preflight(live ...provider.Version) ([]provider.Finding, error) {
	return o.System.(provider.Preflighter).Preflight(o.t.Context(), o.call(), live)
}

func (o *opened) usage(v provider.Version) (provider.Usage, error) {
	return o.System.(provider.Meter).Usage(o.t.Context(), o.call(), v)
}

// scan runs a query for one text as the superuser.
func (tg *target) scan(sql string) string {
	tg.t.Helper()
	conn := pgtest.Connect(tg.t, tg.primary.SuperuserURL(database))
	var text *string
	if err := conn.QueryRow(tg.t.Context(), sql).Scan(&text); err != nil {
		tg.t.Fatalf("%s: %v", sql, err)
	}
	if text == nil {
		return ""
	}
	return *text
}

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
