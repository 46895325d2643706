package postgres_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/postgres"
)

// shared is the server of all tests that do not end it.
var shared *pgserver.Server

// databases numbers the databases of the tests.
var databases atomic.Int64

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	// The models run in full against SQLite; here a step costs a round trip. -rapid.checks says otherwise.
	if err := flag.Set("rapid.checks", "40"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx := context.Background()
	server, err := pgserver.Start(ctx, pgserver.Config{Settings: map[string]string{
		"wal_recycle": "off", "full_page_writes": "on", // for TestDeletedMaterialIsGone
	}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = server.Close() }() // it ends with this process in any case
	shared = server
	// Databases are copied from one whose schema is there already.
	if err := makeTemplate(ctx, server); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

const template = "keyturn_template"

func makeTemplate(ctx context.Context, server *pgserver.Server) error {
	if err := execIn(ctx, server, "postgres", "CREATE DATABASE "+template); err != nil {
		return err
	}
	s, err := postgres.Open(ctx, postgres.Config{URL: server.SuperuserURL(template)})
	if err != nil {
		return err
	}
	return s.Stop()
}

func execIn(ctx context.Context, server *pgserver.Server, database, statement string) error {
	conn, err := pgx.Connect(ctx, server.SuperuserURL(database))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // nothing is pending on it
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

// newDatabase returns the URL of a database with the schema and nothing else.
func newDatabase(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("test_%d", databases.Add(1))
	if err := execIn(t.Context(), shared, "postgres", "CREATE DATABASE "+name+" TEMPLATE "+template+""); err != nil {
		t.Fatal(err)
	}
	return shared.SuperuserURL(name)
}

func open(t testing.TB, url string) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), postgres.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Errorf("Stop: %v", err)
		}
	})
	return s
}

func update(t testing.TB, s store.Store, fn func(store.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
