package snapshot_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/client/apikeycheck"
	"github.com/keyturn/keyturn/client/apikeycheck/cachetest"
	"github.com/keyturn/keyturn/internal/gateway/snapshot"
	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/keeper/file"
	"github.com/keyturn/keyturn/internal/sim/memstore"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
)

// newKeeper makes a key file.
func newKeeper(t testing.TB) *file.Keeper {
	t.Helper()
	k, err := file.Open(file.Config{Path: filepath.Join(t.TempDir(), "keys.json")})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestCache runs the suite of caches on both stores.
func TestCache(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		cachetest.Run(t, func(t *testing.T) func() apikeycheck.Cache {
			t.Helper()
			config := snapshot.Config{Store: memstore.New(), Keeper: newKeeper(t)}
			return func() apikeycheck.Cache { return snapshot.New(config) }
		})
	})
	t.Run("sqlite", func(t *testing.T) {
		cachetest.Run(t, func(t *testing.T) func() apikeycheck.Cache {
			t.Helper()
			keys, path := newKeeper(t), filepath.Join(t.TempDir(), "gateway.db")
			s := openSQLite(t, path)
			t.Cleanup(func() { _ = s.Stop() }) // it is stopped already, or the test has failed
			return func() apikeycheck.Cache {
				if err := s.Stop(); err != nil {
					t.Fatal(err)
				}
				s = openSQLite(t, path)
				return snapshot.New(snapshot.Config{Store: s, Keeper: keys})
			}
		})
	})
}

func openSQLite(t testing.TB, path string) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// errCut is what a store answers whose process was killed.
var errCut = errors.New("killed")

// cutStore is a store whose process is killed at one of its commits: before it, or after
// it and before anybody hears of it. After that nothing of it works.
type cutStore struct {
	store.Store
	left   int // commits until then
	before bool
	cut    bool
}

func (s *cutStore) View(ctx context.Context, fn func(store.Tx) error) error {
	if s.cut {
		return errCut
	}
	return s.Store.View(ctx, fn)
}

func (s *cutStore) Update(ctx context.Context, fn func(store.Tx) error) error {
	if s.cut {
		return errCut
	}
	if s.left--; s.left >= 0 {
		return s.Store.Update(ctx, fn)
	}
	s.cut = true
	if s.before {
		return errCut
	}
	return errors.Join(s.Store.Update(ctx, fn), errCut)
}

// contents returns what is kept, as text.
func contents(t *testing.T, s store.Store, keys keeper.Keeper) string {
	t.Helper()
	var b strings.Builder
	err := snapshot.New(snapshot.Config{Store: s, Keeper: keys}).Load(t.Context(), func(r apikeycheck.Record) error {
		fmt.Fprintf(&b, "%s=%s\n", r.Name, r.Data)
		return nil
	})
	if err != nil {
		t.Fatalf("what a kill has left cannot be read: %v", err)
	}
	return b.String()
}

// step is one call of a cache.
func step(ctx context.Context, c *snapshot.Cache, i int) error {
	text := fmt.Sprint(i)
	if i%3 == 2 {
		return c.Update(ctx, apikeycheck.Record{Name: "keys-1", Data: []byte(text)}, apikeycheck.Record{Name: "more", Data: []byte(text)}, apikeycheck.Record{Name: "keys-3"})
	}
	records := []apikeycheck.Record{{Name: apikeycheck.SecretRecord, Data: []byte(text)}}
	for n := range 600 { // three transactions
		records = append(records, apikeycheck.Record{Name: fmt.Sprintf("keys-%d", n), Data: []byte(text)})
	}
	return c.Replace(ctx, slices.Values(records))
}

// TestKilledAtEveryCommit: whichever commit the process is killed at, what is there
// after a restart is the state before the call or the one after it; never one before a
// call that had returned; and it goes on from there, with nothing left over.
func TestKilledAtEveryCommit(t *testing.T) {
	const steps = 5
	keys := newKeeper(t)
	var states []string // after so many steps
	whole := memstore.New()
	states = append(states, contents(t, whole, keys))
	for i := range steps {
		if err := step(t.Context(), snapshot.New(snapshot.Config{Store: whole, Keeper: keys}), i); err != nil {
			t.Fatal(err)
		}
		states = append(states, contents(t, whole, keys))
	}
	kills := 0
	for _, before := range []bool{true, false} {
		for at := 0; ; at++ {
			memory := memstore.New()
			s := &cutStore{Store: memory, left: at, before: before}
			returned := 0
			for i := range steps {
				if step(t.Context(), snapshot.New(snapshot.Config{Store: s, Keeper: keys}), i) != nil {
					break
				}
				returned++
			}
			if !s.cut {
				break
			}
			kills++
			left := contents(t, memory, keys)
			if next := min(returned+1, steps); left != states[returned] && left != states[next] {
				t.Fatalf("killed at commit %d (before it: %v), after %d calls: there is %.80q", at, before, returned, left)
			}
			for i := range steps {
				if err := step(t.Context(), snapshot.New(snapshot.Config{Store: memory, Keeper: keys}), i); err != nil {
					t.Fatalf("after a kill at commit %d: %v", at, err)
				}
			}
			if end := contents(t, memory, keys); end != states[steps] || documents(t, memory) != documents(t, whole) {
				t.Fatalf("after a kill at commit %d: %d documents are left, %d without a kill", at, documents(t, memory), documents(t, whole))
			}
		}
	}
	if kills < 40 {
		t.Errorf("only %d kills", kills)
	}
}

func documents(t *testing.T, s store.Store) (n int) {
	t.Helper()
	err := s.View(t.Context(), func(tx store.Tx) error {
		docs, err := tx.Index.List(t.Context(), "gateway-apikeys", "", "", store.MaxLimit)
		n = len(docs)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestPepperIsSealed: the store shows nothing of the pepper; it opens under the keeper's
// keys only, and under the next one alone once it was read.
func TestPepperIsSealed(t *testing.T) {
	s, keys := memstore.New(), newKeeper(t)
	c := snapshot.New(snapshot.Config{Store: s, Keeper: keys})
	pepper := []byte(rand.Text())
	if err := c.Replace(t.Context(), slices.Values([]apikeycheck.Record{{Name: "mark", Data: []byte("m")}, {Name: apikeycheck.SecretRecord, Data: pepper}})); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := s.View(t.Context(), func(tx store.Tx) error {
			docs, err := tx.Index.List(t.Context(), "gateway-apikeys", "", "", 10)
			for _, doc := range docs {
				if bytes.Contains(doc.Body, pepper) {
					t.Errorf("%s shows the pepper", doc.Name)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Update(t.Context(), apikeycheck.Record{Name: apikeycheck.SecretRecord, Data: pepper}); err != nil {
			t.Fatal(err)
		}
	}
	nothing := func(apikeycheck.Record) error { return nil }
	if err := snapshot.New(snapshot.Config{Store: s, Keeper: newKeeper(t)}).Load(t.Context(), nothing); !errors.Is(err, keeper.ErrUnknownKEK) {
		t.Errorf("with another keeper: %v", err)
	}
	old := keys.Primary()
	if _, err := keys.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Load(t.Context(), nothing); err != nil {
		t.Fatal(err)
	}
	if err := keys.Remove(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if got := contents(t, s, keys); got != "mark=m\nsecret="+string(pepper)+"\n" {
		t.Errorf("under the next KEK alone: %q", got)
	}
}
