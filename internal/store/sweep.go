package store

import (
	"context"
	"errors"
	"time"
)

const (
	// sweepBatch is how many documents one transaction of Sweep ends: others write
	// between two of them.
	sweepBatch = 256
	// sweepBatches is how many transactions there are at most.
	sweepBatches = 80
)

// Sweep ends the documents of a kind that are due by the time that now returns, about
// 20,000 at most: it is called now and then, and what is left is for the next time. end
// is called in the transaction for each, and must delete it or write it with another
// Due; nil deletes. The documents of a batch end together, or none. Several processes may
// sweep at once: one that comes too late leaves it to the other.
func Sweep(ctx context.Context, in Store, kind string, now func() time.Time, end func(Tx, Doc) error) error {
	if end == nil {
		end = func(tx Tx, doc Doc) error { return tx.Docs.Delete(ctx, doc.Kind, doc.Name, doc.Rev) }
	}
	for range sweepBatches {
		ended := 0
		err := in.Update(ctx, func(tx Tx) error {
			docs, err := tx.Index.Due(ctx, kind, now(), sweepBatch)
			if err != nil {
				return err
			}
			for _, doc := range docs {
				if err := end(tx, doc); err != nil {
					return err
				}
			}
			ended = len(docs)
			return nil
		})
		if errors.Is(err, ErrConflict) {
			return nil
		}
		if err != nil || ended < sweepBatch {
			return err
		}
	}
	return nil
}
