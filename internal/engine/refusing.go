package engine

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

const (
	// refusalTried is how often a store that was full is tried with a write.
	refusalTried = 5 * time.Second
	// refusalTrial is how large that write is, in bytes: what little a full disk may
	// still take says nothing.
	refusalTrial = 64 << 10
)

// kindTrial is the document of that write; it exists only while a store is tried.
const kindTrial = "trial"

// StoreRefusal says that the store takes no more: its disk or quota is full.
type StoreRefusal struct {
	// Since is when it refused first; zero while it takes what it is given.
	Since time.Time
	Cause string
}

// watchedStore is the store, and remembers that it was full.
type watchedStore struct {
	store.Store
	now func() time.Time

	mu      sync.Mutex
	refusal StoreRefusal
}

// Update implements store.Store.
func (s *watchedStore) Update(ctx context.Context, fn func(store.Tx) error) error {
	err := s.Store.Update(ctx, fn)
	if errors.Is(err, store.ErrFull) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.refusal.Since.IsZero() {
			s.refusal = StoreRefusal{Since: s.now(), Cause: err.Error()}
		}
	}
	return err
}

func (s *watchedStore) refuses() StoreRefusal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refusal
}

func (s *watchedStore) takes() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusal = StoreRefusal{}
}

// Refusal says since when the store is full for this server node, if it is.
func (e *Engine) Refusal() StoreRefusal { return e.watched.refuses() }

// TryFullStore tries a store that was full until it takes a write again, until ctx
// ends: then Refusal says so. That a small transaction went through tells nothing,
// and one that writes nothing never fails.
func (e *Engine) TryFullStore(ctx context.Context) {
	ticker := time.NewTicker(refusalTried)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		since := e.watched.refuses().Since
		if since.IsZero() || e.tryStore(ctx) != nil {
			continue
		}
		e.watched.takes()
		e.log.InfoContext(ctx, "the store takes writes again", "refused_since", since)
	}
}

// tryStore writes a document and deletes it again.
func (e *Engine) tryStore(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, refusalTried)
	defer cancel()
	err := e.watched.Store.Update(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindTrial, "store")
		if errors.Is(err, store.ErrNotFound) {
			doc, err = store.Doc{Kind: kindTrial, Name: "store"}, nil
		}
		if err == nil {
			doc.Body = make([]byte, refusalTrial)
			_, err = tx.Docs.Put(ctx, doc)
		}
		return err
	})
	if err != nil {
		return err
	}
	return e.watched.Store.Update(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindTrial, "store")
		if errors.Is(err, store.ErrNotFound) {
			return nil // another node has tried it, too
		}
		if err != nil {
			return err
		}
		return tx.Docs.Delete(ctx, doc.Kind, doc.Name, doc.Rev)
	})
}
