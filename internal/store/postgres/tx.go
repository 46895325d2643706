package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/store"
)

// tx is one transaction as its function sees it.
//
// In an Update, writes are kept back until something is read or the function has
// returned: a function that fails before has written nothing, and one that only
// writes costs no round trip of its own. From the first write that was sent on,
// a savepoint keeps its writes apart from those of its neighbours.
//
// That is possible where the outcome of a write is known (see facts). Such a
// statement fails all the same if it has not the effect that was foreseen.
type tx struct {
	store  *Store
	reader *view  // nil in an Update
	batch  *batch // nil in a View

	solo    bool
	pending []statement // writes kept back
	bytes   int
	saved   bool // the savepoint was sent

	log      logSize
	known    *facts // what it has read and written; nil in a View
	touched  store.Topics
	shredded bool
	// doomed is the first failure that may have left an operation half done: the
	// transaction must not commit, whatever its function returns.
	doomed error
	done   bool
}

func (t *tx) parts() store.Tx {
	return store.Tx{
		Docs: docs{t}, Index: index{t}, Events: events{t}, Queue: queue{t},
		Leases: leases{t}, Log: auditLog{t}, Materials: materials{t},
	}
}

// reading must be called first by every operation.
func (t *tx) reading(ctx context.Context) error {
	switch {
	case t.done:
		return fmt.Errorf("postgres: %w", store.ErrTxDone)
	case t.doomed != nil:
		return t.doomed
	}
	return ctx.Err()
}

// writing must be called first by every operation that writes.
func (t *tx) writing(ctx context.Context) error {
	if err := t.reading(ctx); err != nil {
		return err
	}
	if t.batch == nil {
		return fmt.Errorf("postgres: %w (use Update)", store.ErrReadOnly)
	}
	return nil
}

// fail dooms the transaction and returns what its caller should see.
func (t *tx) fail(doing string, err error) error {
	if err == nil {
		return nil
	}
	var l *lost
	if !errors.As(err, &l) {
		err = fault(doing, err)
	} else if t.solo {
		err = fmt.Errorf("%w (%s)", l, doing)
	}
	if t.doomed == nil {
		t.doomed = err
	}
	return err
}

// query reads rows, after what was written before.
func (t *tx) query(read func(pgx.Rows) error, sql string, args ...any) error {
	if t.batch == nil {
		return t.reader.query(read, sql, args...)
	}
	t.flush()
	return t.store.writer.send(t.batch, &statement{sql: sql, args: args, by: t}, read)
}

// row reads the only row of a result into dest; false means there is none.
func (t *tx) row(dest []any, sql string, args ...any) (found bool, err error) {
	err = t.query(func(rows pgx.Rows) error {
		for rows.Next() {
			found = true
			if err := rows.Scan(dest...); err != nil {
				return err
			}
		}
		return nil
	}, sql, args...)
	return found && err == nil, err
}

// collectRows reads what scan makes of each row.
func collectRows[T any](t *tx, scan func(pgx.Rows) (T, error), sql string, args ...any) (all []T, err error) {
	err = t.query(func(rows pgx.Rows) error {
		for rows.Next() {
			one, err := scan(rows)
			if err != nil {
				return err
			}
			all = append(all, one)
		}
		return nil
	}, sql, args...)
	return all, err
}

// exec writes, at the latest with the commit.
func (t *tx) exec(sql string, args ...any) error {
	one := statement{sql: sql, args: args, by: t}
	t.pending = append(t.pending, one)
	t.bytes += one.size()
	if t.bytes <= flushAfter {
		return nil
	}
	t.flush()
	return t.store.writer.send(t.batch, nil)
}

// execNow writes and returns how many rows the statement returns.
func (t *tx) execNow(sql string, args ...any) (n int, err error) {
	t.flush()
	t.save()
	err = t.query(func(rows pgx.Rows) error {
		for rows.Next() {
			n++
		}
		return nil
	}, sql, args...)
	t.batch.wrote = t.batch.wrote || n > 0
	return n, err
}

// flush hands the writes kept back to the batch, behind a savepoint.
func (t *tx) flush() {
	if len(t.pending) == 0 {
		return
	}
	t.save()
	t.batch.pending = append(t.batch.pending, t.pending...)
	t.batch.wrote = true
	t.pending, t.bytes = nil, 0
}

// save makes the savepoint. What is alone needs none: all of it is rolled back.
func (t *tx) save() {
	if t.saved || t.solo {
		return
	}
	t.saved = true
	t.batch.pending = append(t.batch.pending, statement{sql: "SAVEPOINT member"})
}

// join makes the writes part of the batch.
func (t *tx) join() {
	b := t.batch
	if len(t.pending) > 0 {
		b.pending = append(b.pending, t.pending...)
		b.bytes += t.bytes
		b.wrote = true
	}
	if t.saved {
		b.pending = append(b.pending, statement{sql: "RELEASE member"})
	}
	b.log = t.log
	t.store.writer.known.add(t.known)
	b.touched |= t.touched
	b.shredded = b.shredded || t.shredded
	if b.bytes > flushAfter && b.closed == nil {
		_ = t.store.writer.send(b, nil) // a failure closes the batch
	}
}

// rollback undoes what was sent; the rest was never written.
func (t *tx) rollback() {
	b := t.batch
	switch {
	case b.closed != nil:
	case t.solo:
		b.closed = &lost{cause: errors.New("postgres: the Update failed"), guilty: t}
	case t.saved:
		b.pending = append(b.pending, statement{sql: "ROLLBACK TO member"}, statement{sql: "RELEASE member"})
	}
}

// plain reports whether PostgreSQL can hold s as text; nothing stored is
// otherwise.
func plain(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// toInt stores a number from outside; none that is stored is larger than the
// largest signed one, which is what larger ones become.
func toInt(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

func toMicros(t time.Time) int64 { return t.UnixMicro() }

func fromMicros(us int64) time.Time { return time.UnixMicro(us).UTC() }

// blob returns b, or an empty one: NULL is not allowed in the schema.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
