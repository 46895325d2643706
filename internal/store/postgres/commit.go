package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/store"
)

const (
	// maxBatch and maxHold bound how many Updates share one transaction and for how
	// long it takes further ones, so that the first of them, and the other nodes, are
	// not kept waiting by an endless stream.
	maxBatch = 256
	maxHold  = 50 * time.Millisecond
	// maxRuns is how often one Update is tried.
	maxRuns = 6
	// commitLock is the advisory lock (lockClass, commitLock) of every transaction
	// that writes, migrations included.
	lockClass   = 0x4b54524e // "KTRN"
	commitLock  = 1
	migrateLock = 2
)

// errLost says that the transaction an Update took part in was not committed, for
// a reason that need not be its own: it runs again.
var errLost = errors.New("shared transaction was rolled back")

// lost is the reason. The guilty member runs again alone.
type lost struct {
	cause  error
	guilty *tx
	// passing: an attempt under the same circumstances may succeed.
	passing bool
}

func (l *lost) Error() string { return errLost.Error() + ": " + l.cause.Error() }

func (l *lost) Unwrap() []error { return []error{errLost, l.cause} }

// writer is the group committer of this process. Exactly one goroutine at a time
// holds the turn and with it the connection. An Update takes the turn, runs
// inside the open transaction (the batch), and hands the turn on while others
// wait for it; the last one commits for all. Nobody waits for company.
type writer struct {
	store *Store

	conn    *pgx.Conn // used by the holder of the turn; nil: none is open
	batch   *batch    // nil: no transaction is open; used by the holder of the turn
	batches int64     // the number of the last transaction that wrote
	known   *facts    // what is known to be stored; used by the holder of the turn

	turns store.Turns
}

func newWriter(s *Store) *writer {
	w := &writer{store: s, known: newFacts()}
	w.turns.Ends, w.turns.End = w.ends, w.end
	return w
}

// batch is one transaction, shared by Updates.
type batch struct {
	size   int
	solo   bool
	full   *time.Timer // fires when it should take no more
	closed error       // why the transaction is over already
	rev    int64
	fence  int64
	log    logSize

	wrote    bool // something must be committed
	shredded bool
	touched  store.Topics

	pending []statement // of members that have returned, not sent yet
	bytes   int         // what they hold

	done chan struct{} // closed when err is set
	err  error
}

// logSize is how far the audit log goes.
type logSize struct{ records, hashes uint64 }

func (b *batch) nextRev() int64 {
	b.rev++
	return b.rev
}

// update runs fn until its batch was committed or it failed by itself.
func (w *writer) update(ctx context.Context, fn func(store.Tx) error) error {
	solo := false
	for run := 1; ; run++ {
		t := &tx{store: w.store, solo: solo}
		err := w.attempt(ctx, t, fn)
		var l *lost
		if !errors.As(err, &l) {
			return err
		}
		if run == maxRuns || solo && !l.passing {
			return l.cause
		}
		solo = solo || l.guilty == t || run > 1
	}
}

// attempt returns a *lost when fn may have to run again.
func (w *writer) attempt(ctx context.Context, t *tx, fn func(store.Tx) error) error {
	if err := w.turns.Take(ctx, t.solo); err != nil {
		return err
	}
	b, err := w.begin(ctx, t.solo)
	if err != nil {
		w.turns.Pass()
		return err
	}
	err = w.run(b, t, fn)
	<-b.done
	if b.err == nil || t.solo && err != nil && !errors.Is(err, errLost) {
		return err
	}
	// Also when fn failed: what it saw, and so what it decided, never came to be.
	return b.err
}

// ends implements store.Turns: a batch ends when it is full or over, or either
// wants to be alone.
func (w *writer) ends(alone bool) bool {
	b := w.batch
	return b != nil && (b.solo || b.closed != nil || alone || b.isFull())
}

func (w *writer) end() {
	if w.batch != nil {
		w.finish(w.batch)
	}
}

func (b *batch) isFull() bool {
	if b.size >= maxBatch {
		return true
	}
	select {
	case <-b.full.C:
		return true
	default:
		return false
	}
}

// begin returns the open batch, or opens one: it waits for the turn among the
// nodes. A connection that was cut since the last commit is replaced.
func (w *writer) begin(ctx context.Context, solo bool) (*batch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if w.batch != nil {
		return w.batch, nil
	}
	for {
		fresh := w.conn == nil
		if fresh {
			conn, err := w.store.settings.connect(ctx, w.store.settings.writing())
			if err != nil {
				return nil, err
			}
			w.conn = conn
		}
		b, err := w.open(ctx, solo)
		if err == nil {
			w.batch = b
			return b, nil
		}
		w.drop(ctx)
		if fresh || !isCut(err) {
			return nil, fault("begin to write", err)
		}
	}
}

// open begins a transaction in one round trip.
func (w *writer) open(ctx context.Context, solo bool) (*batch, error) {
	b := &batch{solo: solo, done: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statementTimeout)
	defer cancel()
	var opening pgx.Batch
	opening.Queue("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
	opening.Queue("SELECT pg_advisory_xact_lock($1::integer, $2::integer)", lockClass, commitLock)
	// A statement of its own, so that its snapshot is made once the lock is held.
	opening.Queue(`SELECT rev, fence, writer, batch, (SELECT coalesce(max(number) + 1, 0) FROM log_records), (SELECT coalesce(max(number) + 1, 0) FROM log_hashes)
		FROM counters WHERE id = 1`)
	var last struct {
		writer string
		batch  int64
	}
	results := w.conn.SendBatch(ctx, &opening)
	_, err := results.Exec()
	if err == nil {
		_, err = results.Exec()
	}
	if err == nil {
		err = results.QueryRow().Scan(&b.rev, &b.fence, &last.writer, &last.batch, &b.log.records, &b.log.hashes)
	}
	if closeErr := results.Close(); err == nil {
		err = closeErr
	}
	if last.writer != w.store.node || last.batch != w.batches {
		w.known.forget() // another node has written since
	}
	b.full = time.NewTimer(maxHold)
	return b, err
}

// drop closes the connection: the server rolls back what was open on it.
func (w *writer) drop(ctx context.Context) {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = w.conn.Close(ctx) // it is given up
	w.conn = nil
}

// run calls fn and passes the turn on, also when fn panics or ends its goroutine.
func (w *writer) run(b *batch, t *tx, fn func(store.Tx) error) (err error) {
	defer w.turns.Pass()
	b.size++
	t.batch, t.log = b, b.log
	t.known = newFacts()
	keep := false
	defer func() {
		t.done = true
		if keep {
			t.join()
		} else {
			t.rollback()
		}
	}()
	if err := fn(t.parts()); err != nil {
		return err
	}
	if t.doomed != nil {
		return t.doomed
	}
	keep = true
	return nil
}

// finish ends the batch and tells its members.
func (w *writer) finish(b *batch) {
	w.batch = nil
	b.full.Stop()
	err := b.closed
	if err == nil {
		err = w.commit(b)
	}
	if err != nil {
		// Whatever is left of it, the next one begins afresh.
		w.rollback()
		w.known.forget()
		var l *lost
		if !errors.As(err, &l) && !errors.Is(err, ErrUnknown) {
			err = &lost{cause: fault("commit", err), passing: mayPass(err)}
		}
	}
	b.err = err
	close(b.done)
	if err != nil {
		return
	}
	w.store.watches.Wake(b.touched)
	if b.shredded {
		w.store.shredSoon()
	}
}

// commit sends what is pending and COMMIT in one round trip. It returns nil only
// if the transaction was committed, and an error other than ErrUnknown only if it
// was not.
func (w *writer) commit(b *batch) error {
	if !b.wrote {
		b.pending = append(b.pending, statement{sql: "COMMIT", last: true})
		return w.send(b, nil)
	}
	w.batches++
	number := w.batches
	b.pending = append(b.pending, statement{
		sql:  "UPDATE counters SET rev = $1, fence = $2, writer = $3, batch = $4 WHERE id = 1",
		args: []any{b.rev, b.fence, w.store.node, number},
	}, statement{
		sql:  "INSERT INTO nodes (id, batch) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET batch = excluded.batch, seen = now()",
		args: []any{w.store.node, number},
	})
	if b.touched != 0 {
		b.pending = append(b.pending, statement{sql: "SELECT pg_notify($1::text, $2::text)", args: []any{channel, fmt.Sprintf("%d %s", b.touched, w.store.node)}})
	}
	b.pending = append(b.pending, statement{sql: "COMMIT", last: true})
	err := w.send(b, nil)
	if err == nil {
		return nil
	}
	if code := stateOf(err); code != "" && !isCut(err) {
		return err // the server has answered: it is rolled back
	}
	var l *lost
	if errors.As(err, &l) {
		if l.guilty != nil {
			return err
		}
		err = l.cause
	}
	return w.resolve(number, err)
}

// rollback ends the transaction that is open on the connection, or the connection.
func (w *writer) rollback() {
	if w.conn == nil {
		return
	}
	if !w.conn.IsClosed() {
		ctx, cancel := context.WithTimeout(w.store.endless, statementTimeout)
		defer cancel()
		if w.conn.PgConn().TxStatus() == 'I' {
			return
		}
		if _, err := w.conn.Exec(ctx, "ROLLBACK"); err == nil {
			return
		}
	}
	w.drop(w.store.endless)
}

// register notes this process, so that lastBatch finds it.
func (w *writer) register(ctx context.Context) error {
	conn, err := w.store.settings.connect(ctx, w.store.settings.writing())
	if err != nil {
		return err
	}
	w.conn = conn
	if _, err := conn.Exec(ctx, "INSERT INTO nodes (id, batch) VALUES ($1, 0)", w.store.node); err != nil {
		w.drop(ctx)
		return fault("register with the database", err)
	}
	return nil
}

// close is called when nothing is under way.
func (w *writer) close() error {
	if w.conn == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(w.store.endless, connectTimeout)
	defer cancel()
	_, err := w.conn.Exec(ctx, "DELETE FROM nodes WHERE id = $1", w.store.node)
	w.drop(ctx)
	if err != nil && isCut(err) {
		return nil // others forget this process in time
	}
	return fault("leave the database", err)
}
