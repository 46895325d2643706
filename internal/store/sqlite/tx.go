package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

// tx is one transaction as its function sees it.
type tx struct {
	store *Store
	conn  *conn
	batch *batch // nil in a View

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
		return fmt.Errorf("sqlite: %w", store.ErrTxDone)
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
		return fmt.Errorf("sqlite: %w (use Update)", store.ErrReadOnly)
	}
	return nil
}

// fail dooms the transaction and returns what its caller should see.
func (t *tx) fail(doing string, err error) error {
	if err == nil {
		return nil
	}
	err = t.store.fault(doing, err)
	if t.doomed == nil {
		t.doomed = err
	}
	return err
}

// rows collects what scan makes of each row, and stops early when scan returns
// false or ctx ends.
func rows[T any](ctx context.Context, c *conn, scan func(*sql.Rows) (T, bool, error), query string, args ...any) (_ []T, err error) {
	s, err := c.stmt(query)
	if err != nil {
		return nil, err
	}
	r, err := s.Query(args...)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closeErr := r.Close(); err == nil {
			err = closeErr
		}
	}()
	var all []T
	for r.Next() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		one, more, err := scan(r)
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
		all = append(all, one)
	}
	return all, r.Err()
}

// toInt stores a number from outside; none that is stored is larger than the
// largest signed one, which is what larger ones become.
func toInt(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

func toMicros(t time.Time) int64 { return t.UnixMicro() }

func fromMicros(us int64) time.Time { return time.UnixMicro(us).UTC() }

// blob returns b, or an empty blob: NULL is not allowed in the schema.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
