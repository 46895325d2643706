package identity_test

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/identity"
	"github.com/keyturn/keyturn/internal/store"
)

// slow is a store whose reads take as long as the test wants, and are counted.
type slow struct {
	store.Store
	mu    sync.Mutex
	views int
	hold  chan struct{}
}

func (s *slow) View(ctx context.Context, fn func(store.Tx) error) error {
	s.mu.Lock()
	s.views++
	hold := s.hold
	s.mu.Unlock()
	err := s.Store.View(ctx, fn)
	if hold != nil {
		<-hold
	}
	return err
}

func (s *slow) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.views
}

// TestManyShareOneReading: those who show or check the same token at the same moment
// cost one access to the store; and nobody who asks after a revocation gets what was
// read before it.
func TestManyShareOneReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		db := &slow{Store: w.journal.Store}
		r := identity.New(identity.Config{Store: db, Journal: w.journal, Random: rand.Reader, Now: time.Now})
		token, text, err := r.Issue(t.Context(), admin, identity.Request{Name: "eu", Role: authz.Gateway, Keys: []string{"**"}})
		if err != nil {
			t.Fatal(err)
		}
		many := func() (wait func() (bad int)) {
			var running sync.WaitGroup
			var mu sync.Mutex
			bad := 0
			for i := range 100 {
				running.Go(func() {
					var err error
					if i%2 == 0 {
						_, err = r.Authenticate(t.Context(), text)
					} else {
						err = r.Check(t.Context(), token.ID)
					}
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						bad++
						if !errors.Is(err, identity.ErrUnauthenticated) {
							t.Error(err)
						}
					}
				})
			}
			return func() int { running.Wait(); return bad }
		}
		hold := make(chan struct{})
		db.hold = hold
		before := db.count()
		wait := many()
		synctest.Wait()
		if n := db.count() - before; n != 1 {
			t.Errorf("%d accesses for 100 callers", n)
		}

		// It is revoked while they wait for what was read before.
		if err := r.Revoke(t.Context(), admin, token.ID); err != nil {
			t.Fatal(err)
		}
		late := many()
		synctest.Wait()
		close(hold)
		if bad := wait(); bad != 0 {
			t.Errorf("%d of those who came before the revocation were refused", bad)
		}
		if bad := late(); bad != 100 {
			t.Errorf("%d of 100 who came after the revocation were let in", 100-bad)
		}
		if err := r.Check(t.Context(), token.ID); !errors.Is(err, identity.ErrUnauthenticated) {
			t.Errorf("what was read before it is remembered: %v", err)
		}
		if bad := many()(); bad != 100 {
			t.Errorf("%d of 100 were let in", 100-bad)
		}
	})
}

// TestCheckRemembers: streams that look at one token cost one access a second.
func TestCheckRemembers(t *testing.T) {
	w := newWorld(t)
	db := &slow{Store: w.journal.Store}
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	r := identity.New(identity.Config{Store: db, Journal: w.journal, Random: rand.Reader, Now: func() time.Time { return now }})
	token, _, err := r.Issue(t.Context(), admin, identity.Request{Name: "eu", Role: authz.Gateway, Keys: []string{"**"}})
	if err != nil {
		t.Fatal(err)
	}
	before := db.count()
	for range 1000 {
		if err := r.Check(t.Context(), token.ID); err != nil {
			t.Fatal(err)
		}
	}
	if n := db.count() - before; n != 1 {
		t.Errorf("%d accesses in a moment", n)
	}
	now = now.Add(2 * time.Second)
	if err := r.Check(t.Context(), token.ID); err != nil || db.count()-before != 2 {
		t.Errorf("%v, %d accesses", err, db.count()-before)
	}
	if err := r.Check(t.Context(), "0123456789abcdef"); !errors.Is(err, identity.ErrUnauthenticated) {
		t.Errorf("an unknown ID: %v", err)
	}
	list, err := r.List(t.Context())
	if err != nil || len(list) != 1 || !list[0].LastUsed.IsZero() {
		t.Errorf("a check counts as a use: %+v, %v", list, err)
	}
}
