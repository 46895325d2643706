package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// The pause between two attempts to learn how a commit ended.
const (
	firstPause = 50 * time.Millisecond
	maxPause   = time.Second
	// unknownAfter is how long Stop waits for the answer.
	unknownAfter = 2 * time.Second
)

// resolve finds out how a transaction ended whose COMMIT was not answered: it
// returns nil when it was committed, and a *lost when it was not. A transaction
// holds the commit lock until it has ended, so whoever gets the lock sees it or
// never will.
func (w *writer) resolve(number int64, cause error) error {
	w.drop(w.store.endless)
	ctx, cancel := context.WithCancel(w.store.endless)
	defer cancel()
	go func() {
		select {
		case <-w.store.stopping:
		case <-ctx.Done():
			return
		}
		timer := time.NewTimer(unknownAfter)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-ctx.Done():
		}
	}()
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		last, err := w.lastBatch(ctx)
		switch {
		case err == nil && last == number:
			return nil
		case err == nil:
			return &lost{cause: cause, passing: true}
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("postgres: commit: %w: %w (look for what it should have written before you repeat it)", ErrUnknown, cause)
		}
	}
}

// lastBatch returns the number of the last transaction of this process that was
// committed, once none of it is under way.
func (w *writer) lastBatch(ctx context.Context) (int64, error) {
	conn, err := w.store.settings.connect(ctx, w.store.settings.writing())
	if err != nil {
		return 0, err
	}
	w.conn = conn
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var number int64
	err = pgx.BeginFunc(ctx, conn, func(t pgx.Tx) error {
		if _, err := t.Exec(ctx, "SELECT pg_advisory_xact_lock($1::integer, $2::integer)", lockClass, commitLock); err != nil {
			return err
		}
		return t.QueryRow(ctx, "SELECT batch FROM nodes WHERE id = $1", w.store.node).Scan(&number)
	})
	if err != nil {
		w.drop(ctx)
	}
	return number, err
}
