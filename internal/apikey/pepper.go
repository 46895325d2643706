package apikey

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/internal/store"
)

// pepperPlace is what the sealed pepper is bound to.
func pepperPlace() keeper.Place { return keeper.Place{Key: "keyturn/apikey/pepper", Version: 1} }

const pepperSize = 32

// peppers hash keys for the table and for snapshots.
type peppers struct {
	mu        sync.Mutex
	hasher    atomic.Pointer[keytable.Hasher]
	snapshots atomic.Pointer[keytable.Hasher]
	// forSnapshots is what a verifier is given to hash with: nothing else can be
	// computed from it.
	forSnapshots atomic.Pointer[[]byte]
}

// load opens the pepper once; create says whether to draw one if there is none.
func (p *peppers) load(ctx context.Context, config *Config, create bool) error {
	if p.hasher.Load() != nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hasher.Load() != nil {
		return nil
	}
	sealed, err := readPepper(ctx, config)
	if errors.Is(err, store.ErrNotFound) {
		if !create {
			return nil
		}
		sealed, err = makePepper(ctx, config)
	}
	if err != nil {
		return fmt.Errorf("the pepper of API keys: %w", err)
	}
	pepper, err := keeper.Open(ctx, config.Keeper, pepperPlace(), sealed)
	if err != nil {
		return fmt.Errorf("the pepper of API keys: %w", err)
	}
	defer clear(pepper)
	if len(pepper) != pepperSize {
		return fmt.Errorf("the pepper of API keys: %w", keeper.ErrCorrupt)
	}
	table, snapshots := keytable.Derive(pepper, "table"), keytable.Derive(pepper, "snapshots")
	p.forSnapshots.Store(&snapshots)
	p.snapshots.Store(keytable.NewHasher(snapshots))
	p.hasher.Store(keytable.NewHasher(table))
	return nil
}

func readPepper(ctx context.Context, config *Config) (sealed []byte, err error) {
	err = config.Store.View(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindPepper, "1")
		sealed = doc.Body
		return err
	})
	return sealed, err
}

// makePepper stores a new pepper, and returns that of another node if one was
// faster.
func makePepper(ctx context.Context, config *Config) ([]byte, error) {
	pepper := make([]byte, pepperSize)
	defer clear(pepper)
	if _, err := io.ReadFull(config.Random, pepper); err != nil {
		return nil, err
	}
	sealed, err := keeper.Seal(ctx, config.Keeper, pepperPlace(), pepper)
	if err != nil {
		return nil, err
	}
	err = config.Store.Update(ctx, func(tx store.Tx) error {
		_, err := tx.Docs.Put(ctx, store.Doc{Kind: kindPepper, Name: "1", Body: sealed})
		return err
	})
	if errors.Is(err, store.ErrConflict) {
		return readPepper(ctx, config)
	}
	return sealed, err
}
