package sqlite

import (
	"context"
	"errors"

	"github.com/keyturn/keyturn/internal/store"
)

// maxBatch bounds how many Updates share one commit, so that the first of them
// is not kept waiting by an endless stream of others.
const maxBatch = 256

// errLost says that the batch an Update took part in was rolled back for a
// reason that need not be its own: it runs again, alone.
var errLost = errors.New("shared transaction was rolled back")

// writer is the group committer. Exactly one goroutine at a time holds the turn
// and with it the connection. An Update takes the turn, runs inside a savepoint
// of the open transaction (the batch), and hands the turn on while others wait
// for it; the last one commits for all. Nobody waits for company: an Update that
// finds no queue commits at once, and those that arrive meanwhile are the next
// batch.
type writer struct {
	store *Store

	conn  *conn  // used by the holder of the turn
	batch *batch // nil: no transaction is open; used by the holder of the turn

	turns store.Turns
}

func newWriter(s *Store, c *conn) *writer {
	w := &writer{store: s, conn: c}
	w.turns.Ends, w.turns.End = w.ends, w.end
	return w
}

// batch is one transaction, shared by Updates.
type batch struct {
	size     int
	solo     bool
	counters counters
	touched  store.Topics
	shredded bool // material was deleted: the log must be emptied

	done chan struct{} // closed when err is set
	err  error
}

// counters hands out the store-wide numbers. They are written once, when the
// batch commits; what a rolled-back Update took is a gap.
type counters struct {
	rev, fence int64
	changed    bool
}

func (c *counters) nextRev() int64 {
	c.rev++
	c.changed = true
	return c.rev
}

func (c *counters) nextFence() int64 {
	c.fence++
	c.changed = true
	return c.fence
}

// update runs fn until its batch was committed or it failed by itself.
func (w *writer) update(ctx context.Context, fn func(store.Tx) error) error {
	err := w.attempt(ctx, fn, false)
	if errors.Is(err, errLost) {
		return w.attempt(ctx, fn, true)
	}
	return err
}

// attempt returns errLost when fn has to run again, which never happens to a
// solo attempt: it has nobody to suffer from.
func (w *writer) attempt(ctx context.Context, fn func(store.Tx) error, solo bool) error {
	if err := w.turns.Take(ctx, solo); err != nil {
		return err
	}
	b, err := w.begin(ctx, solo)
	if err != nil {
		w.turns.Pass()
		return err
	}
	err = w.run(b, fn)
	<-b.done
	if b.err == nil || (solo && err != nil) {
		return err
	}
	// Also when fn failed: what it saw, and so what it decided, never came to be.
	return b.err
}

// ends implements store.Turns: a batch ends when it is full, or either wants to be
// alone.
func (w *writer) ends(alone bool) bool {
	return w.batch != nil && (w.batch.size >= maxBatch || w.batch.solo || alone)
}

func (w *writer) end() {
	if w.batch != nil {
		w.commit(w.batch)
	}
}

// begin returns the open batch, or opens one.
func (w *writer) begin(ctx context.Context, solo bool) (*batch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if w.batch != nil {
		return w.batch, nil
	}
	if moved := w.store.moved.Load(); moved != nil {
		return nil, moved
	}
	if _, err := w.conn.exec("BEGIN IMMEDIATE"); err != nil {
		return nil, w.store.fault("begin to write", err)
	}
	b := &batch{solo: solo, done: make(chan struct{})}
	if _, err := w.conn.row("SELECT rev, fence FROM counters WHERE id = 1", nil, &b.counters.rev, &b.counters.fence); err != nil {
		_, _ = w.conn.exec("ROLLBACK") // nothing was written
		return nil, w.store.fault("begin to write", err)
	}
	w.batch = b
	return b, nil
}

// run calls fn inside a savepoint and passes the turn on, also when fn panics
// or ends its goroutine.
func (w *writer) run(b *batch, fn func(store.Tx) error) (err error) {
	defer w.turns.Pass()
	b.size++
	if _, err := w.conn.exec("SAVEPOINT member"); err != nil {
		err = w.store.fault("begin to write", err)
		w.abandon(b)
		return err
	}
	t := &tx{store: w.store, conn: w.conn, batch: b}
	keep := false
	defer func() {
		t.done = true
		if keep {
			b.touched |= t.touched
			b.shredded = b.shredded || t.shredded
			return
		}
		// SQLite rolls back the whole transaction by itself after some failures,
		// such as a full disk; then there is no savepoint to return to.
		if _, err := w.conn.exec("ROLLBACK TO member"); err != nil {
			w.abandon(b)
		} else if _, err := w.conn.exec("RELEASE member"); err != nil {
			w.abandon(b)
		}
	}()
	if err := fn(t.parts()); err != nil {
		return err
	}
	if t.doomed != nil {
		return t.doomed
	}
	if _, err := w.conn.exec("RELEASE member"); err != nil {
		return w.store.fault("end of the transaction", err)
	}
	keep = true
	return nil
}

// abandon rolls the batch back; its members run again.
func (w *writer) abandon(b *batch) {
	_, _ = w.conn.exec("ROLLBACK") // fails when SQLite did it already
	b.err = errLost
	w.batch = nil
	close(b.done)
}

// commit ends the batch and wakes the watchers.
func (w *writer) commit(b *batch) {
	w.batch = nil
	err := w.flush(b)
	if err != nil {
		_, _ = w.conn.exec("ROLLBACK") // fails when SQLite did it already
		err = w.store.fault("commit", err)
		if errors.Is(err, store.ErrFull) && b.size > 1 {
			err = errLost // a smaller one may fit
		}
	}
	b.err = err
	close(b.done)
	if err != nil {
		return
	}
	w.store.watches.Wake(b.touched)
	if b.shredded {
		w.store.emptyLogSoon()
	}
}

func (w *writer) flush(b *batch) error {
	if b.counters.changed {
		if _, err := w.conn.exec("UPDATE counters SET rev = ?, fence = ? WHERE id = 1", b.counters.rev, b.counters.fence); err != nil {
			return err
		}
	}
	_, err := w.conn.exec("COMMIT")
	return err
}
