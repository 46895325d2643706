package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/internal/store/storetest"
)

// reopenable is a store that the suite can close and open again.
type reopenable struct {
	*sqlite.Store
	path string
}

func (r reopenable) Reopen(t *testing.T) store.Store {
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	return open(t, r.path)
}

func open(t testing.TB, path string) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
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

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		path := filepath.Join(t.TempDir(), "store", "keyturn.db")
		return reopenable{open(t, path), path}
	})
}
