package sqlite

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/store"
)

// inOneBatch runs the functions as Updates that share a transaction, in order,
// and returns their errors.
func inOneBatch(t *testing.T, s *Store, fns ...func(store.Tx) error) []error {
	t.Helper()
	errs := make([]error, len(fns))
	done := make(chan struct{})
	started := false
	errs[0] = s.Update(t.Context(), func(tx store.Tx) error {
		if !started { // it may run again
			started = true
			for i, fn := range fns[1:] {
				go func() {
					errs[i+1] = s.Update(t.Context(), fn)
					done <- struct{}{}
				}()
				for queued := 0; queued <= i; { // in order
					queued = s.writer.turns.Waiting()
				}
			}
		}
		return fns[0](tx)
	})
	for range fns[1:] {
		<-done
	}
	return errs
}

// TestFailureIsToldAfterTheCommit: a function that fails because of what its
// neighbour wrote runs again when that write is lost.
func TestFailureIsToldAfterTheCommit(t *testing.T) {
	s := openInternal(t)
	boom := errors.New("boom")
	firstRuns := 0
	create := func(tx store.Tx) error {
		_, err := tx.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: "a"})
		return err
	}
	errs := inOneBatch(t, s,
		func(tx store.Tx) error {
			if firstRuns++; firstRuns > 1 {
				return boom // alone it decides otherwise
			}
			return create(tx)
		},
		create, // fails beside the first one
		func(store.Tx) error {
			_, _ = s.writer.conn.exec("ROLLBACK") // what SQLite does when the disk is full
			return boom
		})
	if firstRuns != 2 || !errors.Is(errs[0], boom) || errs[1] != nil || !errors.Is(errs[2], boom) {
		t.Errorf("the first ran %d times; the Updates returned %v", firstRuns, errs)
	}
}

// TestEndedContextHarmsNoOther: SQLite would roll back the shared transaction if
// it were told of the context.
func TestEndedContextHarmsNoOther(t *testing.T) {
	s := openInternal(t)
	runs := 0
	errs := inOneBatch(t, s,
		func(tx store.Tx) error {
			runs++
			_, err := tx.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: "innocent"})
			return err
		},
		func(tx store.Tx) error {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go cancel()
			for {
				if _, err := tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "big", Body: make([]byte, 1<<20)}); err != nil {
					return err
				}
				if doc, err := tx.Docs.Get(ctx, "k", "big"); err != nil {
					return err
				} else if err := tx.Docs.Delete(ctx, "k", "big", doc.Rev); err != nil {
					return err
				}
			}
		})
	if errs[0] != nil || runs != 1 || !errors.Is(errs[1], context.Canceled) {
		t.Errorf("the innocent Update ran %d times; the Updates returned %v", runs, errs)
	}
}

// TestHiddenFailure: an Update whose function hides that a statement failed is
// not committed.
func TestHiddenFailure(t *testing.T) {
	s := openInternal(t)
	if _, err := s.writer.conn.exec("CREATE TEMP TRIGGER fails BEFORE INSERT ON main.docs WHEN new.name = 'bad' BEGIN SELECT RAISE(ABORT, 'deliberate'); END"); err != nil {
		t.Fatal(err)
	}
	err := s.Update(t.Context(), func(tx store.Tx) error {
		if _, err := tx.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: "good"}); err != nil {
			t.Error(err)
		}
		_, _ = tx.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: "bad"})
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "deliberate") {
		t.Errorf("Update returned %v", err)
	}
	err = s.View(t.Context(), func(tx store.Tx) error {
		_, err := tx.Docs.Get(t.Context(), "k", "good")
		return err
	})
	if !errors.Is(err, store.ErrNotFound) {
		t.Errorf("half of the Update was committed: %v", err)
	}
}
