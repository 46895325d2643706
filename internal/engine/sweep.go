package engine

import (
	"context"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

const (
	// sweepEvery is how often what has expired is looked for.
	sweepEvery = time.Minute
	// sweepBatch bounds the documents that one transaction deletes.
	sweepBatch = 256
	// checkpointsDense is how long every checkpoint of the audit log is kept, in
	// this density; of older ones one an hour remains, and the last one always.
	checkpointsDense = 24 * time.Hour
	checkpointsApart = time.Hour
)

// keepClean deletes request IDs, notes of pages and notes of removed parties that
// have expired and thins out old checkpoints, until ctx ends.
func (e *Engine) keepClean(ctx context.Context) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		e.sweep(ctx)
		if err := e.backfillFingerprints(ctx); err != nil && ctx.Err() == nil {
			e.log.WarnContext(ctx, "versions could not be given the fingerprints that leaked secrets are recognised by; trying again later", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (e *Engine) sweep(ctx context.Context) {
	for _, clean := range []func(context.Context, store.Tx) (int, error){e.sweepRequests, e.sweepCheckpoints, e.sweepPages, e.sweepRemoved, e.sweepUses, e.sweepMemories, e.sweepAlarms, e.sweepActs, e.sweepFindings} {
		for {
			done := 0
			err := e.store.Update(ctx, func(tx store.Tx) error {
				var err error
				done, err = clean(ctx, tx)
				return err
			})
			if err != nil && ctx.Err() == nil {
				e.log.WarnContext(ctx, "what has expired could not be deleted; trying again later", "error", err)
			}
			if err != nil || done < sweepBatch {
				break
			}
		}
	}
}

func (e *Engine) sweepRequests(ctx context.Context, tx store.Tx) (int, error) {
	return e.sweepDue(ctx, tx, kindRequest)
}

func (e *Engine) sweepRemoved(ctx context.Context, tx store.Tx) (int, error) {
	return e.sweepDue(ctx, tx, KindRemoved)
}

// sweepDue deletes documents of a kind that are due.
func (e *Engine) sweepDue(ctx context.Context, tx store.Tx, kind string) (int, error) {
	docs, err := tx.Index.Due(ctx, kind, e.config.Now(), sweepBatch)
	if err != nil {
		return 0, err
	}
	for _, doc := range docs {
		if err := tx.Docs.Delete(ctx, doc.Kind, doc.Name, doc.Rev); err != nil {
			return 0, err
		}
	}
	return len(docs), nil
}

// sweepCheckpoints leaves the last checkpoint of every hour, by the clock at
// which it was signed. It deletes one only when the next one is of the same hour,
// so that the last one of all remains.
func (e *Engine) sweepCheckpoints(ctx context.Context, tx store.Tx) (int, error) {
	docs, err := tx.Index.Due(ctx, kindCheckpoint, e.config.Now(), sweepBatch)
	if err != nil {
		return 0, err
	}
	for _, doc := range docs {
		next, err := tx.Index.List(ctx, kindCheckpoint, "", doc.Name, 1)
		if err != nil {
			return 0, err
		}
		if len(next) == 1 && !next[0].Due.IsZero() && next[0].Due.Truncate(checkpointsApart).Equal(doc.Due.Truncate(checkpointsApart)) {
			if err := tx.Docs.Delete(ctx, doc.Kind, doc.Name, doc.Rev); err != nil {
				return 0, err
			}
			continue
		}
		doc.Due = time.Time{}
		if _, err := tx.Docs.Put(ctx, doc); err != nil {
			return 0, err
		}
	}
	return len(docs), nil
}
