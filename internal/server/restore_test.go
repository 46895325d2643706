package server_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/backup"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/postgres"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/test/pgtest"
)

// backUp takes a backup of the running server.
func (w *world) backUp(t *testing.T, id *age.X25519Identity) (path string, manifest backup.Manifest) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "keyturn.backup")
	file, err := os.Create(path)
	must(t, err)
	must(t, server.Checkpoint(t.Context(), w.Server))
	manifest, err = backup.Write(t.Context(), file, server.DumperOf(w.Server), backup.Config{
		Recipients: []string{id.Recipient().String()}, Log: "keyturn", Version: "test", Now: time.Now(),
	})
	must(t, errors.Join(err, file.Close()))
	return path, manifest
}

// backUpAll returns a backup with what the store held at it: it is made again if
// anything happened meanwhile.
func (w *world) backUpAll(t *testing.T, id *age.X25519Identity) (file string, manifest backup.Manifest, held store.Digest) {
	t.Helper()
	digest := func() store.Digest {
		d, err := store.DigestOf(t.Context(), server.DumperOf(w.Server))
		must(t, err)
		return d
	}
	pgtest.Eventually(t, "nothing happens during a backup", func() bool {
		before := digest()
		file, manifest = w.backUp(t, id)
		held = digest()
		return before["events"] == held["events"]
	})
	return file, manifest, held
}

// settled waits until dev/db stands still, brings in a fresh version, and rotates.
func (w *world) settled(t *testing.T) {
	t.Helper()
	var key *keyturnv1.Key
	pgtest.Eventually(t, "the key stands still and was looked at", func() bool {
		answer, err := w.control(w.root).GetKey(t.Context(), &keyturnv1.GetKeyRequest{Name: "dev/db"})
		must(t, err)
		key = answer.GetKey()
		_, err = w.control(w.root).Reconcile(t.Context(), &keyturnv1.ReconcileRequest{Name: "dev/db", How: "replace", Reason: "restored"})
		return err == nil
	})
	if key.GetStanding() == "" {
		t.Errorf("it did not stand still after the restore: %v", key)
	}
	pgtest.Eventually(t, "the key goes on", func() bool {
		answer, err := w.control(w.root).GetKey(t.Context(), &keyturnv1.GetKeyRequest{Name: "dev/db"})
		must(t, err)
		return answer.GetKey().GetStanding() == "" && len(answer.GetKey().GetRotationIds()) == 0
	})
	w.rotateNow(t)
	w.verified(t)
}

// TestRestoreDrill loses the store of a server that rotates, SQLite first and then
// PostgreSQL, and goes on from a backup, each time in a store of the other kind.
func TestRestoreDrill(t *testing.T) {
	database := pgtest.Start(t, pgserver.Config{})
	pgtest.Exec(t, database, "postgres", "CREATE DATABASE keyturn", "CREATE DATABASE used")
	dir := t.TempDir()
	system := &memory{accepted: map[string]bool{}}
	drivers := map[string]provider.Driver{"memory": system}
	id, err := age.GenerateX25519Identity()
	must(t, err)
	restore := func(config server.Config, file string, id *age.X25519Identity) (*server.RestoreReport, error) {
		return server.Restore(t.Context(), config, server.RestoreOptions{File: file, Identities: []age.Identity{id}, Now: time.Now()})
	}
	refused := func(what string, config server.Config, file string, id *age.X25519Identity, want error, says string) {
		t.Helper()
		if _, err := restore(config, file, id); !errors.Is(err, want) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want an error that wraps %q and says %q", what, err, want, says)
		}
	}

	w := startServerWith(t, configOf(dir), drivers)
	w.mustApply(t)
	w.rotateNow(t)
	w.verified(t)
	file, manifest, want := w.backUpAll(t, id)
	if manifest.Keys.KEK == "" || manifest.Keys.Log == "" || manifest.Log.Size < 10 {
		t.Errorf("%+v", manifest)
	}
	w.rotateNow(t) // what the backup does not know
	refused("a running server", configOf(dir), file, id, sqlite.ErrLocked, "stop the other server")
	must(t, w.Stop(t.Context()))
	refused("over a database", configOf(dir), file, id, sqlite.ErrNotEmpty, "move it")

	lose(t, filepath.Join(dir, "keyturn.db"))
	stranger, err := age.GenerateX25519Identity()
	must(t, err)
	refused("another identity", configOf(dir), file, stranger, backup.ErrIdentity, "recipients")
	other := startServer(t, configOf(t.TempDir()))
	must(t, other.Stop(t.Context()))
	lose(t, filepath.Join(other.dir, "keyturn.db"))
	refused("another installation's keys", configOf(other.dir), file, id, backup.ErrInvalid, "checkpoint")
	refused("no keys", configOf(t.TempDir()), file, id, fs.ErrNotExist, "key")
	whole, err := os.ReadFile(file)
	must(t, err)
	short := filepath.Join(t.TempDir(), "short")
	must(t, os.WriteFile(short, whole[:len(whole)-1], 0o600))
	refused("a part", configOf(dir), short, id, backup.ErrInvalid, "whole")
	if _, err := os.Stat(filepath.Join(dir, "keyturn.db")); err == nil {
		t.Error("a refusal made a database")
	}

	// As if the process had ended in between.
	must(t, os.WriteFile(filepath.Join(dir, "keyturn.db"+sqlite.Restoring), []byte("half"), 0o600))
	if err := refuse(t, configOf(dir), "keyturn restore"); !errors.Is(err, sqlite.ErrRestoring) {
		t.Error(err)
	}

	// SQLite to SQLite, looked at before a server changes it.
	report, err := restore(configOf(dir), file, id)
	must(t, err)
	if report.Log.Entries != manifest.Log.Size || report.Log.Proven == 0 {
		t.Errorf("%+v", report)
	}
	same(t, "SQLite to SQLite", want, sqliteDigest(t, filepath.Join(dir, "keyturn.db")))
	lose(t, filepath.Join(dir, "keyturn.db"))

	// SQLite to PostgreSQL, which goes on.
	on := onPostgres(t, dir, database)
	used := *on.Store.Postgres
	used.URL = database.URL(pgserver.Superuser, "", "used")
	inUse := on
	inUse.Store.Postgres = &used
	must(t, startServer(t, onPostgresNamed(t, database, "used")).Stop(t.Context()))
	refused("a database in use", inUse, file, id, postgres.ErrNotEmpty, "DROP SCHEMA")
	_, err = restore(on, file, id)
	must(t, err)
	refused("twice", on, file, id, postgres.ErrNotEmpty, "DROP SCHEMA")
	same(t, "SQLite to PostgreSQL", want, postgresDigest(t, database))
	system.forget("dev/db ")
	options := server.WithEffectTime(server.Options{LogTo: t.Output(), Drivers: drivers}, 2*time.Second)
	w = startServerAs(t, on, options)
	w.settled(t)

	// PostgreSQL to SQLite.
	file, _, want = w.backUpAll(t, id)
	w.rotateNow(t)
	must(t, w.Stop(t.Context()))
	_, err = restore(configOf(dir), file, id)
	must(t, err)
	same(t, "PostgreSQL to SQLite", want, sqliteDigest(t, filepath.Join(dir, "keyturn.db")))
	system.forget("dev/db ")
	w = startServerAs(t, configOf(dir), options)
	w.settled(t)
}

// forget refuses whatever begins so: it was revoked in the time that is missing.
func (m *memory) forget(prefix string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for password := range m.accepted {
		if strings.HasPrefix(password, prefix) {
			m.accepted[password] = false
		}
	}
}

// TestRestoreIsFinished goes on where a restore into PostgreSQL was cut off.
func TestRestoreIsFinished(t *testing.T) {
	database := pgtest.Start(t, pgserver.Config{})
	pgtest.Exec(t, database, "postgres", "CREATE DATABASE keyturn")
	dir := t.TempDir()
	w := startServer(t, configOf(dir))
	w.mustApply(t)
	w.verified(t)
	id, err := age.GenerateX25519Identity()
	must(t, err)
	file, _ := w.backUp(t, id)
	must(t, w.Stop(t.Context()))
	on := onPostgres(t, dir, database)
	options := server.RestoreOptions{File: file, Identities: []age.Identity{id}, Earlier: []note.Verifier{}, Now: time.Now()}
	_, err = server.Restore(t.Context(), on, options)
	must(t, err)
	// As if the process had ended before the last step.
	pgtest.Exec(t, database, "keyturn", "UPDATE keyturn.moves SET done = false")
	if err := refuse(t, on, "keyturn restore"); !errors.Is(err, postgres.ErrArriving) {
		t.Error(err)
	}
	_, err = server.Restore(t.Context(), on, options)
	must(t, err)
	startServer(t, on).verified(t)
}

func lose(t *testing.T, path string) {
	t.Helper()
	names, err := filepath.Glob(path + "*")
	must(t, err)
	for _, name := range names {
		must(t, os.Remove(name))
	}
}

func sqliteDigest(t *testing.T, path string) store.Digest {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	must(t, err)
	digest, err := store.DigestOf(t.Context(), s)
	must(t, errors.Join(err, s.Stop()))
	return digest
}

func postgresDigest(t *testing.T, database *pgserver.Server) store.Digest {
	t.Helper()
	s, err := postgres.Open(t.Context(), postgres.Config{URL: database.SuperuserURL("keyturn")})
	must(t, err)
	digest, err := store.DigestOf(t.Context(), s)
	must(t, errors.Join(err, s.Stop()))
	return digest
}

// same wants the same in both but for the mark of the restore, which is one document.
func same(t *testing.T, what string, want, got store.Digest) {
	t.Helper()
	if docs := got["docs"].Rows; docs != want["docs"].Rows && docs != want["docs"].Rows+1 {
		t.Errorf("%s: %d documents of %d", what, docs, want["docs"].Rows)
	}
	for _, table := range []string{"counters", "docs"} {
		got[table] = want[table]
	}
	// Jobs go on while a backup is compared; those of SQLite lose their leases.
	got["jobs"] = want["jobs"]
	if difference := want.Difference(got); difference != "" {
		t.Errorf("%s: %s", what, difference)
	}
}
