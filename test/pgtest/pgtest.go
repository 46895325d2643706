// Package pgtest gives tests real PostgreSQL servers, and what it takes to
// disturb them.
//
// Guarantees: a missing PostgreSQL fails the test when the environment says
// CI=true and skips it otherwise, naming the command that installs it; what was
// started ends with the test.
package pgtest

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/pgserver"
)

// Install is the command that installs the programs that tests need.
const Install = "scripts/install-parts"

const (
	startWithin = time.Minute
	pollEvery   = 20 * time.Millisecond
	pollWithin  = 20 * time.Second
)

// Require fails or skips the test where PostgreSQL is not installed.
func Require(t testing.TB) {
	t.Helper()
	_, err := pgserver.Find()
	if err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%v; CI must run `%s` first", err, Install)
	}
	t.Skipf("%v; `%s` does it", err, Install)
}

// Start starts a primary that is closed when the test ends.
func Start(t testing.TB, config pgserver.Config) *pgserver.Server {
	t.Helper()
	Require(t)
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	server, err := pgserver.Start(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("close PostgreSQL: %v", err)
		}
	})
	return server
}

// StartPair starts a primary and one standby in the given region.
func StartPair(t testing.TB, config pgserver.Config, region string) (primary, replica *pgserver.Server) {
	t.Helper()
	primary = Start(t, config)
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	replica, err := primary.StartReplica(ctx, region)
	if err != nil {
		t.Fatal(err)
	}
	return primary, replica
}

// Connect logs in with a connection URL; the session ends with the test.
func Connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // the test may have ended the server before
	})
	return conn
}

// Exec runs statements as the superuser in a database. It may be called from
// t.Cleanup.
func Exec(t testing.TB, server *pgserver.Server, database string, statements ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), pollWithin)
	defer cancel()
	conn, err := pgx.Connect(ctx, server.SuperuserURL(database))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is pending on it
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// Eventually polls condition until it holds, for at most 20 seconds.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	timeout := time.After(pollWithin)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !condition() {
		select {
		case <-timeout:
			t.Fatalf("it did not come true within %v: %s", pollWithin, what)
		case <-tick.C:
		}
	}
}
