package sqlite_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
)

// TestSimulatedTime: the store works under the simulated clock that whole fleets
// are tested with, leaves no goroutine behind, and never lets time pass.
func TestSimulatedTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyturn.db")
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		woken := s.Watch(ctx, store.TopicDocs)
		results := make(chan error)
		for i := range 20 {
			go func() {
				results <- s.Update(ctx, func(tx store.Tx) error {
					_, err := tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: fmt.Sprint(i)})
					return err
				})
			}()
		}
		for range 20 {
			must(t, <-results)
		}
		<-woken
		update(t, s, func(tx store.Tx) error { return tx.Materials.Put(ctx, "a", 1, []byte("sealed")) })
		update(t, s, func(tx store.Tx) error { return tx.Materials.Delete(ctx, "a", 1) })
		synctest.Wait() // the log is emptied in the background
		cancel()
		must(t, s.Stop())
		if passed := time.Since(began); passed != 0 {
			t.Errorf("%v passed", passed)
		}
	})
}
