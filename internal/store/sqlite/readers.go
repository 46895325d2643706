package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"sync"
)

// readers lends connections, each with its prepared statements, opening them
// when they are needed first.
type readers struct {
	db    *sql.DB
	slots chan struct{} // as many as connections may be lent

	mu   sync.Mutex
	idle []*conn
}

func newReaders(db *sql.DB, size int) *readers {
	return &readers{db: db, slots: make(chan struct{}, size)}
}

func (r *readers) take(ctx context.Context) (*conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r.mu.Lock()
	if n := len(r.idle); n > 0 {
		c := r.idle[n-1]
		r.idle = r.idle[:n-1]
		r.mu.Unlock()
		return c, nil
	}
	r.mu.Unlock()
	c, err := newConn(context.WithoutCancel(ctx), r.db)
	if err != nil {
		<-r.slots
		return nil, err
	}
	return c, nil
}

func (r *readers) give(c *conn) {
	r.mu.Lock()
	r.idle = append(r.idle, c)
	r.mu.Unlock()
	<-r.slots
}

// close is called when no connection is lent.
func (r *readers) close() error {
	var errs []error
	for _, c := range r.idle {
		errs = append(errs, c.close())
	}
	return errors.Join(errs...)
}
