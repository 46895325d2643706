package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
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

// KindCheckpoint is a kind that tests count.
const KindCheckpoint = kindCheckpoint

// Sweep deletes what has expired, as the engine does every minute.
func Sweep(ctx context.Context, e *Engine) { e.sweep(ctx) }

// MaxEpochAhead is how far a party's epoch may be ahead.
const MaxEpochAhead = maxEpochAhead

// Reviews returns how far the looks at all keys are that are under way, by what changed.
func Reviews(ctx context.Context, e *Engine) (map[string]string, error) {
	found := map[string]string{}
	err := e.store.View(ctx, func(tx store.Tx) error {
		docs, err := tx.Index.List(ctx, kindReview, "", "", 100)
		for _, doc := range docs {
			var record reviewRecord
			if err := decodeInto(doc.Body, &record); err != nil {
				return err
			}
			found[doc.Name] = record.After
		}
		return err
	})
	return found, err
}

// Review carries a look at all keys on by one batch.
func Review(ctx context.Context, e *Engine, name string) error { return e.review(ctx, name) }

// KeyDue returns when a key is to be considered, as it is noted.
func KeyDue(ctx context.Context, e *Engine, name key.Name) (due time.Time, err error) {
	err = e.store.View(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindKey, string(name))
		due = doc.Due
		return err
	})
	return due, err
}

// JudgeUses records and judges what was observed.
func JudgeUses(ctx context.Context, e *Engine) error { return e.judgeUses(ctx, true) }

// JudgeUrgent does so with what must not wait.
func JudgeUrgent(ctx context.Context, e *Engine) error { return e.judgeUses(ctx, false) }
