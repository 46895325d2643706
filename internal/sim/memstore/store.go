package memstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// Store implements store.Store.
type Store struct {
	mu sync.Mutex // held by the Update that runs
	// state is what was committed last; it is replaced, never changed.
	state atomic.Pointer[state]
	// rev and fence were given out last. What an Update that failed took is not
	// given out again.
	rev, fence uint64
	jobSeq     uint64
	watches    store.Watches
}

// state is one committed state. What it refers to is never changed in place,
// but for the free room behind slices that only grow.
type state struct {
	docs      map[string][]store.Doc // by kind, in the order of names
	events    map[key.Name][]store.Event
	jobs      []job // in queueing order
	records   [][]byte
	hashes    []store.Hash
	materials map[materialOf][]byte
}

type materialOf struct {
	name    key.Name
	version key.Version
}

// New returns an empty store.
func New() *Store {
	s := &Store{}
	s.state.Store(&state{})
	return s
}

// View implements store.Store.
func (s *Store) View(ctx context.Context, fn func(store.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t := &tx{store: s, state: *s.state.Load()}
	defer func() { t.done = true }()
	return fn(t.parts())
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, fn func(store.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	touched, err := s.update(fn)
	s.watches.Wake(touched)
	return err
}

func (s *Store) update(fn func(store.Tx) error) (store.Topics, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &tx{store: s, state: *s.state.Load(), writes: true}
	defer func() { t.done = true }()
	if err := fn(t.parts()); err != nil {
		return 0, err
	}
	committed := t.state
	s.state.Store(&committed)
	return t.touched, nil
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, topic store.Topic) <-chan struct{} {
	return s.watches.Add(ctx, topic)
}

// Backup is the state of a store at one moment.
type Backup struct {
	state              state
	rev, fence, jobSeq uint64
}

// Backup returns the state as it is now.
func (s *Store) Backup() Backup {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Backup{*s.state.Load(), s.rev, s.fence, s.jobSeq}
}

// Restore puts an earlier state back, numbers included. Nobody may be using the
// store meanwhile, and nobody may rely on what was read before.
func (s *Store) Restore(b Backup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := b.state
	// The histories part here: what grows from now on must not share room with what
	// grew before.
	old.events = maps.Clone(old.events)
	for name, events := range old.events {
		old.events[name] = slices.Clone(events)
	}
	old.records, old.hashes = slices.Clone(old.records), slices.Clone(old.hashes)
	s.state.Store(&old)
	s.rev, s.fence, s.jobSeq = b.rev, b.fence, b.jobSeq
}

// tx is one transaction: a state of its own that becomes the store's.
type tx struct {
	store   *Store
	state   state
	writes  bool
	done    bool
	touched store.Topics
	// own* tell that a part was copied and may be changed.
	ownDocs, ownEvents, ownJobs, ownMaterials bool
	ownKinds                                  map[string]bool
}

func (t *tx) parts() store.Tx {
	return store.Tx{
		Docs: docs{t}, Index: index{t}, Events: events{t}, Queue: queue{t},
		Leases: leases{t}, Log: auditLog{t}, Materials: materials{t},
	}
}

func (t *tx) reading(ctx context.Context) error {
	if t.done {
		return fmt.Errorf("memstore: %w", store.ErrTxDone)
	}
	return ctx.Err()
}

func (t *tx) writing(ctx context.Context) error {
	if err := t.reading(ctx); err != nil {
		return err
	}
	if !t.writes {
		return fmt.Errorf("memstore: %w (use Update)", store.ErrReadOnly)
	}
	return nil
}
