package server_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/internal/server/servertest"
	"github.com/keyturn/keyturn/test/pgtest"
)

// onPostgres is the configuration of a server on a folder and a database.
func onPostgres(t *testing.T, dir string, database *pgserver.Server) server.Config {
	t.Helper()
	password := filepath.Join(dir, "store.password")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(password, []byte(database.Password()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := configOf(dir)
	config.Store.Postgres = &server.PostgresConfig{URL: database.URL(pgserver.Superuser, "", "keyturn"), PasswordFile: password}
	return config
}

// onPostgresNamed is a folder of its own and a database with another name.
func onPostgresNamed(t *testing.T, database *pgserver.Server, name string) server.Config {
	t.Helper()
	config := onPostgres(t, t.TempDir(), database)
	config.Store.Postgres.URL = database.URL(pgserver.Superuser, "", name)
	return config
}

// TestServerOnPostgres: a server keeps everything in PostgreSQL, starts again
// with it, and refuses a folder with other keys.
func TestServerOnPostgres(t *testing.T) {
	database := pgtest.Start(t, pgserver.Config{})
	pgtest.Exec(t, database, "postgres", "CREATE DATABASE keyturn")
	dir := t.TempDir()
	config := onPostgres(t, dir, database)
	w := startServer(t, config)
	w.mustApply(t)
	if _, err := os.Stat(filepath.Join(dir, "keyturn.db")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is an SQLite file: %v", err)
	}
	if err := w.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	w = startServer(t, config)
	if w.TokenFile() != "" {
		t.Error("a second first token was made")
	}
	w.mustApply(t)
	err := refuse(t, onPostgres(t, t.TempDir(), database), "kek.json")
	if err == nil {
		t.Fatal("a folder without keys was taken")
	}
	// Keys of another installation.
	other := t.TempDir()
	if err := startServer(t, configOf(other)).Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := refuse(t, onPostgres(t, other, database), "copy kek.json"); !errors.Is(err, server.ErrForeignKeys) {
		t.Error(err)
	}
}

// secondNode starts another server on the store of a first one, whose keys it has.
func secondNode(t *testing.T, first *world, config server.Config) *world {
	t.Helper()
	config.DataDir = t.TempDir()
	servertest.CopyKeys(t, first.dir, config.DataDir)
	return startServer(t, config)
}

// TestEndsAtOtherNodes: a token that is revoked, or a party that is removed, at one
// server loses its streams at the others at once, long before their next
// heartbeat; a party that comes back since keeps its new one.
func TestEndsAtOtherNodes(t *testing.T) {
	database := pgtest.Start(t, pgserver.Config{})
	pgtest.Exec(t, database, "postgres", "CREATE DATABASE keyturn")
	config := onPostgres(t, t.TempDir(), database)
	one := startServer(t, config)
	one.mustApply(t)
	two := secondNode(t, one, config)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // a heartbeat is 15 s
	defer cancel()
	control := one.control(one.root)
	issue := func(name, role string) (id, token string) {
		t.Helper()
		answer, err := control.CreateToken(ctx, &keyturnv1.CreateTokenRequest{Name: name, Role: role, Keys: []string{"**"}})
		if err != nil {
			t.Fatal(err)
		}
		return answer.GetId(), answer.GetToken()
	}
	open := func(w *world, token, party string) *connect.ServerStreamForClient[keyturnv1.WatchResponse] {
		t.Helper()
		stream, err := w.watched(t, ctx, token, watchOf("agents/"+party, "dev/db"))
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	ends := func(what string, stream interface {
		Receive() bool
		Err() error
	}, want connect.Code,
	) {
		t.Helper()
		for stream.Receive() {
		}
		wantCode(t, what, stream.Err(), want)
	}

	agents, agent := issue("agents", "agent")
	stays, removed := open(two, agent, "stays"), open(two, agent, "removed")
	if _, err := control.RemoveParty(ctx, &keyturnv1.RemovePartyRequest{Id: "agents/removed"}); err != nil {
		t.Fatal(err)
	}
	ends("the stream of a party that was removed", removed, connect.CodeAborted)
	back := open(two, agent, "removed")

	viewers, viewer := issue("viewers", "viewer")
	rotation, err := control.Rotate(ctx, &keyturnv1.RotateRequest{Name: "prod/db"}) // it waits for an approval
	if err != nil {
		t.Fatal(err)
	}
	watch, err := two.control(viewer).WatchRotation(ctx, &keyturnv1.WatchRotationRequest{Id: rotation.GetRotationId()})
	if err != nil || !watch.Receive() {
		t.Fatal(err, watch.Err())
	}
	for _, id := range []string{viewers, agents} {
		if _, err := control.RevokeToken(ctx, &keyturnv1.RevokeTokenRequest{Id: id}); err != nil {
			t.Fatal(err)
		}
	}
	ends("an operator's stream whose token was revoked", watch, connect.CodeUnauthenticated)
	ends("a party's stream whose token was revoked", stays, connect.CodeUnauthenticated)
	ends("the stream of a party that came back", back, connect.CodeUnauthenticated)
	if _, err := two.watched(t, ctx, agent, watchOf("agents/stays", "dev/db")); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("a token revoked elsewhere: %v", err)
	}
}
