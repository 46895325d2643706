package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/store"
)

// brimful is a store that can be full: what would write fails.
type brimful struct {
	store.Store
	full atomic.Bool
}

func (s *brimful) Update(ctx context.Context, fn func(store.Tx) error) error {
	if !s.full.Load() {
		return s.Store.Update(ctx, fn)
	}
	writes := errors.New("it wrote")
	err := s.Store.Update(ctx, func(tx store.Tx) error {
		counted := &counting{Docs: tx.Docs}
		tx.Docs = counted
		if err := fn(tx); err != nil || !counted.wrote {
			return err
		}
		return writes
	})
	if errors.Is(err, writes) {
		return fmt.Errorf("test: %w", store.ErrFull)
	}
	return err
}

type counting struct {
	store.Docs
	wrote bool
}

func (c *counting) Put(ctx context.Context, doc store.Doc) (uint64, error) {
	c.wrote = true
	return c.Docs.Put(ctx, doc)
}

// TestFullStore: that the store is full is known from the first write that it
// refuses until it takes a large one, whatever reads succeed in between; and the
// audit log can be exported and verified meanwhile, all of it.
func TestFullStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		full := &brimful{Store: w.store}
		w.config.Store, w.config.Now = full, time.Now
		w.Engine = w.another(t)
		w.apply(t, policyDoc("p", ""), keyDoc("a", "p"))
		if _, err := w.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.apply(t, keyDoc("b", "p")) // no signature covers it yet
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.TryFullStore(ctx)
		if refusal := w.Refusal(); !refusal.Since.IsZero() {
			t.Errorf("it is full from the beginning: %+v", refusal)
		}
		full.full.Store(true)
		since := time.Now()
		if _, err := w.Checkpoint(t.Context()); !errors.Is(err, store.ErrFull) {
			t.Fatalf("a full store: %v", err)
		}
		rest(time.Minute)
		if _, _, err := w.TakePage(t.Context(), "n", "x"); !errors.Is(err, store.ErrFull) {
			t.Errorf("a page was noted in a full store: %v", err)
		}
		if refusal := w.Refusal(); !refusal.Since.Equal(since) || refusal.Cause == "" {
			t.Errorf("after a minute: %+v, want it to be full since %v", refusal, since)
		}
		var bundle bytes.Buffer
		if err := w.ExportLog(t.Context(), &bundle, w.config.Signer.(*audit.Signer).VerifierKey()); err != nil {
			t.Fatalf("export from a full store: %v", err)
		}
		report, err := audit.VerifyBundle(&bundle, audit.Options{})
		if err != nil || report.Entries != 3 || report.Proven != 3 || report.Checkpoints != 2 {
			t.Errorf("the bundle of a full store: %v, %+v", err, report)
		}
		verifier, err := audit.ParseVerifier(w.config.Signer.(*audit.Signer).VerifierKey())
		if err != nil {
			t.Fatal(err)
		}
		if report, err := w.VerifyLog(t.Context(), verifier); err != nil || report.Proven != 3 {
			t.Errorf("verification of a full store: %v, %+v", err, report)
		}
		full.full.Store(false)
		rest(6 * time.Second)
		if refusal := w.Refusal(); !refusal.Since.IsZero() {
			t.Errorf("it takes writes again: %+v", refusal)
		}
		if err := w.store.View(t.Context(), func(tx store.Tx) error {
			_, err := tx.Docs.Get(t.Context(), "trial", "store")
			return err
		}); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("what it was tried with: %v", err)
		}
	})
}
