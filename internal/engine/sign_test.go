package engine_test

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/store/storetest"
)

// TestSignsAfterRestart: what a process left unsigned is signed by the next start,
// although nothing is added to the log, and also when the store does not answer at first.
func TestSignsAfterRestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		if err := w.Record(t.Context(), alice, audit.Entry{Action: "test.entry", Outcome: audit.OutcomeOK}); err != nil {
			t.Fatal(err)
		}
		// The engine that recorded it dies; another one starts without its store.
		cut := &storetest.Line{Store: w.store}
		cut.Cut.Store(true)
		var seen []byte
		w.config.Store, w.config.Seen = cut, func(signed []byte) { seen = bytes.Clone(signed) }
		next := w.another(t)
		next.Start(t.Context())
		defer next.Stop()
		time.Sleep(10 * time.Second)
		if n, err := engine.Count(t.Context(), w.Engine, engine.KindCheckpoint); n != 0 || err != nil {
			t.Fatalf("%d checkpoints, %v", n, err)
		}
		cut.Cut.Store(false)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if n, err := engine.Count(t.Context(), w.Engine, engine.KindCheckpoint); n != 1 || err != nil {
			t.Errorf("after the restart: %d checkpoints, %v", n, err)
		}
		if len(seen) == 0 {
			t.Error("the signature was not kept elsewhere")
		}
	})
}
