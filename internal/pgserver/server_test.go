package pgserver_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/test/pgtest"
)

// TestPairLivesThroughRestarts starts a primary and a standby, and checks that
// data arrives, that a crash and a restart keep it, and that Close leaves nothing.
func TestPairLivesThroughRestarts(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	primary := pgtest.Start(t, pgserver.Config{LogStatements: true, Region: "a"})
	replica, err := primary.StartReplica(ctx, "b")
	if err != nil {
		t.Fatal(err)
	}
	if primary.Region() != "a" || replica.Region() != "b" {
		t.Errorf("regions are %q and %q", primary.Region(), replica.Region())
	}
	if _, err := replica.StartReplica(ctx, "c"); err == nil {
		t.Error("a standby was followed")
	}
	query(t, primary, "CREATE TABLE t AS SELECT 42 AS n")
	pgtest.Eventually(t, "the table is on the standby", func() bool { return tryQuery(ctx, replica, "SELECT n FROM t") == nil })

	port := primary.Port()
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := tryQuery(ctx, primary, "SELECT 1"); err == nil {
		t.Error("a killed server answers")
	}
	if err := primary.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if primary.Port() != port {
		t.Errorf("the port moved from %d to %d", port, primary.Port())
	}
	query(t, primary, "INSERT INTO t VALUES (43)")
	pgtest.Eventually(t, "the standby follows again", func() bool {
		return tryQuery(ctx, replica, "SELECT 1/(CASE WHEN count(*) = 2 THEN 1 ELSE 0 END) FROM t") == nil
	})
	if err := primary.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := primary.Stop(ctx); err != nil {
		t.Errorf("stopping twice: %v", err)
	}
	log, err := os.ReadFile(primary.LogFile())
	if err != nil || !strings.Contains(string(log), "INSERT INTO t") {
		t.Errorf("the statement is not in the log: %v", err)
	}
	if err := primary.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(primary.DataDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
	if err := tryQuery(ctx, replica, "SELECT 1"); err == nil {
		t.Error("the standby outlived its primary's Close")
	}
}

func TestOnlySCRAMLogsIn(t *testing.T) {
	primary := pgtest.Start(t, pgserver.Config{})
	_, err := pgx.Connect(t.Context(), primary.URL(pgserver.Superuser, "wrong", "postgres"))
	var refusal *pgconn.PgError
	if !errors.As(err, &refusal) || refusal.Code != "28P01" {
		t.Errorf("a wrong password: %v", err)
	}
	conn, err := pgx.Connect(t.Context(), primary.SuperuserURL("postgres")+"&require_auth=scram-sha-256")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var methods string
	if err := conn.QueryRow(t.Context(), "SELECT string_agg(DISTINCT auth_method, ',') FROM pg_hba_file_rules").Scan(&methods); err != nil || methods != "scram-sha-256" {
		t.Errorf("methods in pg_hba.conf: %q, %v", methods, err)
	}
}

func TestStartReportsWhatPostgreSQLSaid(t *testing.T) {
	pgtest.Require(t)
	_, err := pgserver.Start(t.Context(), pgserver.Config{Settings: map[string]string{"no_such_setting": "1"}})
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("got %v, want PostgreSQL's own complaint", err)
	}
}

func tryQuery(ctx context.Context, s *pgserver.Server, sql string) error {
	conn, err := pgx.Connect(ctx, s.SuperuserURL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

func query(t *testing.T, s *pgserver.Server, sql string) {
	t.Helper()
	if err := tryQuery(t.Context(), s, sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}
