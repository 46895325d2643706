package server_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/server"
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
