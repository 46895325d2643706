package engine

import (
	"context"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

const (
	// sweepEvery is how often what has expired is looked for.
	sweepEvery = time.Minute
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
	for _, kind := range []string{kindRequest, kindCheckpoint, kindPage, KindRemoved, kindUses, kindMemory, kindAlarm, kindActs, kindFindings} {
		var end func(store.Tx, store.Doc) error
		if kind == kindCheckpoint {
			end = func(tx store.Tx, doc store.Doc) error { return thinOut(ctx, tx, doc) }
		}
		if err := store.Sweep(ctx, e.store, kind, e.config.Now, end); err != nil && ctx.Err() == nil {
			e.log.WarnContext(ctx, "what has expired could not be deleted; trying again later", "error", err)
		}
	}
}

// thinOut leaves the last checkpoint of every hour, by the clock at which it was
// signed. It deletes one only when the next one is of the same hour, so that the last
// one of all remains.
func thinOut(ctx context.Context, tx store.Tx, doc store.Doc) error {
	next, err := tx.Index.List(ctx, kindCheckpoint, "", doc.Name, 1)
	if err != nil {
		return err
	}
	if len(next) == 1 && !next[0].Due.IsZero() && next[0].Due.Truncate(checkpointsApart).Equal(doc.Due.Truncate(checkpointsApart)) {
		return tx.Docs.Delete(ctx, doc.Kind, doc.Name, doc.Rev)
	}
	doc.Due = time.Time{}
	_, err = tx.Docs.Put(ctx, doc)
	return err
}
