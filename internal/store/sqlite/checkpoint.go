package sqlite

import (
	"context"
	"time"
)

// The pause between two attempts to empty the log while a View holds it.
const (
	firstPause = 10 * time.Millisecond
	maxPause   = time.Second
)

// Checkpoint moves what the write-ahead log holds into the database file and
// empties the log. When it returns nil, what was overwritten or deleted before
// is in neither file. It waits for Views that began earlier, until ctx ends.
// It runs by itself soon after the deletion of material.
func (s *Store) Checkpoint(ctx context.Context) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	return s.emptyLog(ctx)
}

func (s *Store) emptyLog(ctx context.Context) error {
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		if err := s.writer.turns.Take(ctx, true); err != nil {
			return err
		}
		emptied, err := s.writer.checkpoint()
		s.writer.turns.Pass()
		if err != nil || emptied {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// checkpoint makes one attempt, and reports whether the log is empty now. The
// caller holds the turn. Short Views are waited for, 0.1 s at most, because
// under a constant stream of them the log is never unused by chance.
func (w *writer) checkpoint() (emptied bool, err error) {
	if _, err := w.conn.exec("PRAGMA busy_timeout = 100"); err != nil {
		return false, w.store.fault("empty the log", err)
	}
	var busy, frames, moved int
	_, err = w.conn.row("PRAGMA wal_checkpoint(TRUNCATE)", nil, &busy, &frames, &moved)
	if _, resetErr := w.conn.exec("PRAGMA busy_timeout = 5000"); err == nil {
		err = resetErr
	}
	return err == nil && busy == 0, w.store.fault("empty the log", err)
}

// emptyLogSoon wakes the checkpointer.
func (s *Store) emptyLogSoon() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// checkpointer empties the log when asked, until ctx ends. A failure is not
// reported: the log stays as it is, and writing reports a disk that fails.
func (s *Store) checkpointer(ctx context.Context) {
	defer close(s.done)
	for {
		select {
		case <-s.kick:
			_ = s.emptyLog(ctx)
		case <-ctx.Done():
			return
		}
	}
}
