package sqlite_test

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
)

func TestFilesBelongToTheOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "er?#%", "keyturn.db")
	s := open(t, path)
	put(t, s, "k", "a")
	names, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
	if err != nil || len(names) != 4 {
		t.Fatalf("files: %q, %v; want the database, its log, its shared memory and its lock", names, err)
	}
	for _, name := range append(names, filepath.Dir(path), filepath.Dir(filepath.Dir(path))) {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(t *testing.T, path string)
		want    error
		hint    string
	}{
		{"open to others", func(t *testing.T, path string) {
			must(t, open(t, path).Stop())
			must(t, os.Chmod(path, 0o640))
		}, sqlite.ErrPermissions, "chmod 0600"},
		{"log open to others", func(t *testing.T, path string) {
			must(t, open(t, path).Stop())
			must(t, os.WriteFile(path+"-wal", nil, 0o600))
			must(t, os.Chmod(path+"-wal", 0o604))
		}, sqlite.ErrPermissions, "chmod 0600"},
		{"no database", func(t *testing.T, path string) {
			must(t, os.WriteFile(path, []byte(strings.Repeat("this is no database\n", 500)), 0o600))
		}, sqlite.ErrCorrupt, "restore"},
		{"damaged", func(t *testing.T, path string) {
			must(t, open(t, path).Stop())
			file, err := os.OpenFile(path, os.O_RDWR, 0)
			must(t, err)
			_, err = file.WriteAt(make([]byte, 3000), 100)
			must(t, errors.Join(err, file.Close()))
		}, sqlite.ErrCorrupt, "restore"},
		{"another program's", func(t *testing.T, path string) {
			raw(t, path, "CREATE TABLE theirs (a)")
		}, sqlite.ErrCorrupt, "another program"},
		{"newer", func(t *testing.T, path string) {
			must(t, open(t, path).Stop())
			raw(t, path, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, 1)")
		}, sqlite.ErrNewer, "newer version"},
		{"in use", func(t *testing.T, path string) { open(t, path) }, sqlite.ErrLocked, "stop the other server"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "keyturn.db")
			test.prepare(t, path)
			s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
			if err == nil {
				must(t, s.Stop())
			}
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.hint) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want an error that wraps %q, names the file and says %q", err, test.want, test.hint)
			}
		})
	}
}

func TestConfig(t *testing.T) {
	for _, config := range []sqlite.Config{{}, {Path: "x", Readers: -1}, {Path: "x", Readers: 65}, {Path: "x", MaxBytes: -1}} {
		if _, err := sqlite.Open(t.Context(), config); err == nil {
			t.Errorf("Open(%+v) succeeded", config)
		}
	}
}

func TestStop(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyturn.db")
	s := open(t, path)
	inside, release, stopped := make(chan struct{}), make(chan struct{}), make(chan error)
	result := make(chan error, 1)
	go func() {
		result <- s.Update(t.Context(), func(tx store.Tx) error {
			close(inside)
			<-release
			_, err := tx.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: "a"})
			return err
		})
	}()
	<-inside
	go func() { stopped <- s.Stop() }()
	eventually(t, "Stop refuses what is new", func() bool {
		return errors.Is(s.View(t.Context(), func(store.Tx) error { return nil }), store.ErrClosed)
	})
	select {
	case <-stopped:
		t.Fatal("Stop did not wait for the Update")
	default:
	}
	close(release)
	must(t, <-result)
	must(t, <-stopped)
	must(t, s.Stop())
	if err := s.Update(t.Context(), func(store.Tx) error { return nil }); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Update after Stop: %v", err)
	}
	if err := s.Checkpoint(t.Context()); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Checkpoint after Stop: %v", err)
	}
	must(t, open(t, path).View(t.Context(), func(tx store.Tx) error {
		_, err := tx.Docs.Get(t.Context(), "k", "a")
		return err
	}))
}

// TestHistoryIsAppendOnly: the schema itself refuses to rewrite history.
func TestHistoryIsAppendOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyturn.db")
	s := open(t, path)
	update(t, s, func(tx store.Tx) error {
		return errors.Join(
			tx.Events.Append(t.Context(), store.Event{Key: "a", Seq: 1, Type: "t"}),
			tx.Log.Append(t.Context(), 0, [][]byte{{1}}, 0, []store.Hash{{1}}))
	})
	must(t, s.Stop())
	db, err := sql.Open("sqlite", path)
	must(t, err)
	defer func() { must(t, db.Close()) }()
	for _, statement := range []string{
		"DELETE FROM events", "UPDATE events SET type = 'x'",
		"DELETE FROM log_records", "UPDATE log_records SET record = x'00'",
		"DELETE FROM log_hashes", "UPDATE log_hashes SET number = 7",
	} {
		if _, err := db.ExecContext(t.Context(), statement); err == nil || !strings.Contains(err.Error(), "append-only") {
			t.Errorf("%s: %v", statement, err)
		}
	}
}

func raw(t *testing.T, path, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	must(t, err)
	_, err = db.ExecContext(t.Context(), statement)
	must(t, errors.Join(err, db.Close(), os.Chmod(path, 0o600)))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
