package backup

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
)

// link is one server's way to the store. It can be cut.
type link struct {
	store.Store
	cut atomic.Bool
}

func (l *link) Update(ctx context.Context, fn func(store.Tx) error) error {
	if l.cut.Load() {
		return errors.New("the store cannot be reached")
	}
	return l.Store.Update(ctx, fn)
}

// TestTurn: one server at a time backs up, however long it takes; another one is told
// who and since when. The turn of a server that has died, or is cut off from the
// store, can be taken after its lease, and by then that server backs up no more.
func TestTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(t.TempDir(), "test.db")})
		must(t, err)
		defer func() { must(t, s.Stop()) }()
		one, two := &link{Store: s}, &link{Store: s}
		since := time.Now().UTC()
		busy := func(node string) {
			t.Helper()
			_, _, err := TakeTurn(t.Context(), two, time.Now, "two")
			if !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), node) || !strings.Contains(err.Error(), since.Format(time.RFC3339)) {
				t.Errorf("while %s backs up: %v", node, err)
			}
		}
		ctx, release, err := TakeTurn(t.Context(), one, time.Now, "one (https://one)")
		must(t, err)
		time.Sleep(time.Hour)
		busy("one (https://one)")
		if ctx.Err() != nil {
			t.Error(context.Cause(ctx))
		}
		release()
		release()
		ctx, release, err = TakeTurn(t.Context(), two, time.Now, "two")
		must(t, err)
		release()
		if !errors.Is(context.Cause(ctx), context.Canceled) {
			t.Error(context.Cause(ctx))
		}

		// It is cut off, or dies: for the store that is the same.
		since = time.Now().UTC()
		ctx, release, err = TakeTurn(t.Context(), one, time.Now, "one")
		must(t, err)
		one.cut.Store(true)
		time.Sleep(turnKept - time.Second)
		if ctx.Err() != nil {
			t.Error("it ended early: ", context.Cause(ctx))
		}
		busy("one")
		time.Sleep(2 * time.Second)
		if !errors.Is(context.Cause(ctx), ErrTurnLost) {
			t.Error("it goes on without its turn: ", context.Cause(ctx))
		}
		busy("one")
		time.Sleep(turnLease - turnKept)
		_, second, err := TakeTurn(t.Context(), two, time.Now, "two")
		must(t, err)
		one.cut.Store(false)
		release() // it has no turn to give back
		since = time.Now().UTC()
		_, _, err = TakeTurn(t.Context(), one, time.Now, "one")
		if !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "two") {
			t.Errorf("the turn of another server was given back: %v", err)
		}
		second()
	})
}
