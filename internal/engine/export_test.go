package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

// DueKeys is how many keys wait to be considered, at most 1,000.
func DueKeys(ctx context.Context, e *Engine) (n int, err error) {
	err = e.store.View(ctx, func(tx store.Tx) error {
		docs, err := tx.Index.Due(ctx, kindKey, e.config.Now(), 1000)
		n = len(docs)
		return err
	})
	return n, err
}

// PutDamagedKey stores a key that cannot be read and has been due for long.
func PutDamagedKey(ctx context.Context, e *Engine, i int) error {
	return e.store.Update(ctx, func(tx store.Tx) error {
		_, err := tx.Docs.Put(ctx, store.Doc{
			Kind: kindKey, Name: fmt.Sprint("damaged/", i), Due: e.config.Now().UTC().Add(-time.Hour), Body: []byte("{"),
		})
		return err
	})
}

// Count is how many documents of a kind there are, at most 10,000.
func Count(ctx context.Context, e *Engine, kind string) (n int, err error) {
	err = e.store.View(ctx, func(tx store.Tx) error {
		docs, err := tx.Index.List(ctx, kind, "", "", 10_000)
		n = len(docs)
		return err
	})
	return n, err
}

// The kinds that tests count.
const (
	KindCheckpoint = kindCheckpoint
	KindRequest    = kindRequest
)

// Sweep deletes what has expired, as the engine does every minute.
func Sweep(ctx context.Context, e *Engine) { e.sweep(ctx) }

// MaxEpochAhead is how far a party's epoch may be ahead.
const MaxEpochAhead = maxEpochAhead
