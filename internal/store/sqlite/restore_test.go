package sqlite_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/internal/store/storetest"
)

// TestRestore makes a file from another store, cut off at each step: none of what
// is left can be opened, and a repetition makes the whole.
func TestRestore(t *testing.T) {
	ctx := t.Context()
	source, err := sqlite.Open(ctx, sqlite.Config{Path: filepath.Join(t.TempDir(), "source.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Stop()
	storetest.Fill(t, source)
	dir := t.TempDir()
	path := filepath.Join(dir, "keyturn.db")
	cut := errors.New("cut off")
	unfinished := func(what string, from store.Dumper, finish func(store.Store) error) {
		t.Helper()
		if err := sqlite.Restore(ctx, path, from, finish); !errors.Is(err, cut) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := sqlite.Open(ctx, sqlite.Config{Path: path}); !errors.Is(err, sqlite.ErrRestoring) {
			t.Errorf("%s: opened what is unfinished: %v", what, err)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s: there is a database", what)
		}
	}
	unfinished("while it reads", cutting{source, cut}, func(store.Store) error { return nil })
	unfinished("before it is finished", source, func(store.Store) error { return cut })

	err = sqlite.Restore(ctx, path, source, func(restored store.Store) error {
		for _, path := range []string{path, path + sqlite.Restoring} {
			if err := sqlite.Restore(ctx, path, source, nil); !errors.Is(err, sqlite.ErrLocked) {
				t.Errorf("twice at once: %v", err)
			}
		}
		if _, err := sqlite.Open(ctx, sqlite.Config{Path: path}); !errors.Is(err, sqlite.ErrRestoring) {
			t.Errorf("a server beside it: %v", err)
		}
		return restored.Update(ctx, func(tx store.Tx) error {
			_, err := tx.Docs.Put(ctx, store.Doc{Kind: "mark", Name: "restored"})
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(path + sqlite.Restoring + "*")
	if err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
	if err := sqlite.Restore(ctx, path, source, nil); !errors.Is(err, sqlite.ErrNotEmpty) || !strings.Contains(err.Error(), path) {
		t.Errorf("over a database: %v", err)
	}

	restored, err := sqlite.Open(ctx, sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer restored.Stop()
	err = restored.Update(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, "mark", "restored")
		if err != nil {
			return err
		}
		return tx.Docs.Delete(ctx, doc.Kind, doc.Name, doc.Rev)
	})
	if err != nil {
		t.Fatal(err)
	}
	want, wantErr := store.DigestOf(ctx, source)
	got, gotErr := store.DigestOf(ctx, restored)
	if wantErr != nil || gotErr != nil {
		t.Fatal(wantErr, gotErr)
	}
	// The mark took numbers, and the lease of the process before has run out.
	for _, table := range []string{"counters", "jobs"} {
		got[table] = want[table]
	}
	if difference := want.Difference(got); difference != "" {
		t.Error(difference)
	}
}

// cutting fails at the end.
type cutting struct {
	store.Dumper
	err error
}

func (c cutting) Dump(ctx context.Context, fn func(func(store.Table) store.Rows) error) error {
	return errors.Join(c.Dumper.Dump(ctx, fn), c.err)
}
