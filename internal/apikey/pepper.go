package apikey

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/internal/sealed"
	"github.com/keyturn/keyturn/internal/store"
)

// Pepper is what the keyed hashes of API keys are made with.
func Pepper() sealed.Secret {
	return sealed.Secret{Purpose: "keyturn/apikey/pepper", Kind: kindPepper, Size: 32, Called: "the pepper of API keys"}
}

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
	box := sealed.Box{Store: config.Store, Keeper: config.Keeper, Random: config.Random}
	open := box.Open
	if create {
		open = box.Draw
	}
	pepper, err := open(ctx, Pepper())
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer clear(pepper)
	table, snapshots := keytable.Derive(pepper, "table"), keytable.Derive(pepper, "snapshots")
	p.forSnapshots.Store(&snapshots)
	p.snapshots.Store(keytable.NewHasher(snapshots))
	p.hasher.Store(keytable.NewHasher(table))
	return nil
}
