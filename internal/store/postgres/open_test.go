package postgres_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/postgres"
	"github.com/keyturn/keyturn/test/pgtest"
)

// TestOpenRefuses: each refusal says what to do, and none repeats the password.
func TestOpenRefuses(t *testing.T) {
	const secret = "hunter2"
	pgtest.Exec(t, shared, "postgres", "CREATE DATABASE theirs", "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
	pgtest.Exec(t, shared, "theirs", "CREATE SCHEMA keyturn", "CREATE TABLE keyturn.theirs (a int)")
	newer := newDatabase(t)
	if _, err := pgtest.Connect(t, newer).Exec(t.Context(), "INSERT INTO keyturn.goose_db_version (version_id, is_applied) VALUES (99999, true)"); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(t.TempDir(), "open")
	must(t, os.WriteFile(open, []byte(secret), 0o600))
	must(t, os.Chmod(open, 0o644))
	for name, test := range map[string]struct {
		config postgres.Config
		want   error
		hint   string
	}{
		"no URL":           {postgres.Config{}, postgres.ErrConfig, "required"},
		"bad URL":          {postgres.Config{URL: "postgres://u:" + secret + "@h:port/d"}, postgres.ErrConfig, "write for example"},
		"bad option":       {postgres.Config{URL: "postgres://u:" + secret + "@h/d?sslmode=" + secret}, postgres.ErrConfig, "write for example"},
		"connections":      {postgres.Config{URL: newer, Connections: 1000}, postgres.ErrConfig, "0 to 256"},
		"nobody there":     {postgres.Config{URL: "postgres://u:" + secret + "@127.0.0.1:1/d"}, postgres.ErrConnect, "is the server up"},
		"wrong password":   {postgres.Config{URL: shared.URL(pgserver.Superuser, secret, "theirs")}, postgres.ErrConnect, "password"},
		"open password":    {postgres.Config{URL: newer, PasswordFile: open}, postgres.ErrConfig, "chmod 0600"},
		"no password file": {postgres.Config{URL: newer, PasswordFile: open + "x"}, postgres.ErrConfig, "no such file"},
		"no database":      {postgres.Config{URL: shared.SuperuserURL("nowhere")}, postgres.ErrConnect, "does not exist"},
		"another program":  {postgres.Config{URL: shared.SuperuserURL("theirs")}, postgres.ErrForeign, "another program"},
		"encoding":         {postgres.Config{URL: shared.SuperuserURL("latin")}, postgres.ErrForeign, "ENCODING 'UTF8'"},
		"newer":            {postgres.Config{URL: newer}, postgres.ErrNewer, "newer version"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := postgres.Open(t.Context(), test.config)
			if err == nil {
				must(t, s.Stop())
			}
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.hint) {
				t.Errorf("got %v, want an error that wraps %q and says %q", err, test.want, test.hint)
			}
			if err != nil && (strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), shared.Password())) {
				t.Errorf("the password is in the error: %v", err)
			}
		})
	}
}

// TestPasswordFile: the password is read anew for each connection.
func TestPasswordFile(t *testing.T) {
	url := newDatabase(t)
	file := filepath.Join(t.TempDir(), "password")
	must(t, os.WriteFile(file, []byte("first\n"), 0o600))
	pgtest.Exec(t, shared, "postgres", "CREATE ROLE changing SUPERUSER LOGIN PASSWORD 'first'")
	database := url[strings.LastIndex(url, "/")+1 : strings.Index(url, "?")]
	s, err := postgres.Open(t.Context(), postgres.Config{URL: shared.URL("changing", "", database), PasswordFile: file})
	must(t, err)
	defer func() { must(t, s.Stop()) }()
	pgtest.Exec(t, shared, "postgres", "ALTER ROLE changing PASSWORD 'second'")
	must(t, os.WriteFile(file, []byte("second"), 0o600))
	conn := pgtest.Connect(t, url)
	cut(t, conn, "write")
	update(t, s, func(tx store.Tx) error { _, err := increment(t.Context(), tx, "a"); return err })
	if n := counted(t, s, "a"); n != 1 {
		t.Errorf("counted to %d", n)
	}
}

// TestHistoryIsAppendOnly: the schema itself refuses to rewrite history.
func TestHistoryIsAppendOnly(t *testing.T) {
	url := newDatabase(t)
	s := open(t, url)
	update(t, s, func(tx store.Tx) error {
		return errors.Join(
			tx.Events.Append(t.Context(), store.Event{Key: "a", Seq: 1, Type: "t"}),
			tx.Log.Append(t.Context(), 0, [][]byte{{1}}, 0, []store.Hash{{1}}))
	})
	conn := pgtest.Connect(t, url)
	for _, statement := range []string{
		"DELETE FROM keyturn.events", "UPDATE keyturn.events SET type = 'x'", "TRUNCATE keyturn.events",
		"DELETE FROM keyturn.log_records", "UPDATE keyturn.log_records SET record = ''", "TRUNCATE keyturn.log_records",
		"DELETE FROM keyturn.log_hashes", "UPDATE keyturn.log_hashes SET number = 7", "TRUNCATE keyturn.log_hashes",
	} {
		if _, err := conn.Exec(t.Context(), statement); err == nil || !strings.Contains(err.Error(), "append-only") {
			t.Errorf("%s: %v", statement, err)
		}
	}
}

// TestFull: what PostgreSQL says when its disk is full becomes store.ErrFull, and
// harms nobody whose writes fit.
func TestFull(t *testing.T) {
	url := newDatabase(t)
	pgtest.Exec(t, shared, url[strings.LastIndex(url, "/")+1:strings.Index(url, "?")],
		`CREATE FUNCTION keyturn.full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$`,
		`CREATE TRIGGER fails BEFORE INSERT ON keyturn.docs FOR EACH ROW WHEN (new.name LIKE 'big%') EXECUTE FUNCTION keyturn.full()`)
	s := open(t, url)
	const n = 60
	type outcome struct {
		i   int
		err error
	}
	outcomes := make(chan outcome, n)
	for i := range n {
		go func() {
			err := s.Update(t.Context(), func(tx store.Tx) error {
				name := "small"
				if i%6 == 0 {
					name = "big"
				}
				if _, err := increment(t.Context(), tx, name+string(rune('A'+i))); err != nil {
					return err
				}
				_, _ = tx.Docs.Get(t.Context(), "k", "a") // a function that hides the failure
				return nil
			})
			outcomes <- outcome{i, err}
		}()
	}
	for range n {
		o := <-outcomes
		if big := o.i%6 == 0; big != errors.Is(o.err, store.ErrFull) || !big && o.err != nil {
			t.Errorf("Update %d: %v", o.i, o.err)
		}
	}
	must(t, s.View(t.Context(), func(tx store.Tx) error {
		docs, err := tx.Index.List(t.Context(), "counter", "", "", 100)
		if len(docs) != n-n/6 {
			t.Errorf("%d documents are there", len(docs))
		}
		return err
	}))
}
