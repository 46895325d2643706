package sqlkey

import (
	"context"
	"database/sql/driver"
	"errors"
	"sync"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/key"
)

// reopenTimeout bounds the log-in that replaces a connection before its first use.
const reopenTimeout = 30 * time.Second

// use is where a connection stands. The zero value is invalid.
type use uint8

const (
	// unused: opened and never used. database/sql keeps such a connection in its
	// pool when the one who waited for it was served otherwise, and will not
	// announce its first use by ResetSession.
	unused use = iota + 1
	// busy: somebody works with it.
	busy
	// idle: it lies in the pool.
	idle
	// retired: closed by the connector while it was unused or idle.
	retired
	// ended: closed by database/sql.
	ended
)

// conn is a connection of the wrapped driver and knows whether it is in use.
//
// database/sql tells of the end of a use by IsValid and of the beginning of the
// next by ResetSession; anything else that it calls on an idle connection is
// Close, and Close of a statement. mu makes each of these and the retirement
// exclude each other, so that the driver's connection is never used concurrently.
type conn struct {
	owner *Connector

	mu    sync.Mutex
	inner driver.Conn
	cred  client.Credential
	state use
	since time.Time // of state
}

func newConn(owner *Connector, inner driver.Conn, cred client.Credential) *conn {
	return &conn{owner: owner, inner: inner, cred: cred, state: unused, since: time.Now()}
}

// begin returns the driver's connection for an operation. A connection that was
// retired before its first use is replaced: it has no state that could be lost.
func (c *conn) begin(ctx context.Context) (driver.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.state {
	case unused, idle:
		c.enter(busy)
	case retired:
		ctx, cancel := context.WithTimeout(ctx, reopenTimeout)
		defer cancel()
		inner, cred, err := c.owner.login(ctx)
		if err != nil {
			return nil, err
		}
		c.inner, c.cred = inner, cred
		c.enter(busy)
	case ended:
		return nil, driver.ErrBadConn
	case busy:
	}
	return c.inner, nil
}

func (c *conn) enter(state use) { c.state, c.since = state, time.Now() }

func (c *conn) stale() bool { return c.owner.handle.Current().Version != c.cred.Version }

// ResetSession implements driver.SessionResetter: a use begins.
func (c *conn) ResetSession(ctx context.Context) error {
	if !c.take() {
		return driver.ErrBadConn
	}
	if resetter, ok := c.inner.(driver.SessionResetter); ok {
		return resetter.ResetSession(ctx)
	}
	return nil
}

// take makes an idle connection busy, unless it is retired or should be.
func (c *conn) take() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.state {
	case retired, ended:
		return false
	case idle:
		// Handed over directly it serves once more: see handOver.
		if c.stale() && time.Since(c.since) > handOver {
			return false
		}
	case unused, busy:
	}
	c.enter(busy)
	return true
}

// IsValid implements driver.Validator: a use has ended. A connection of another
// version than the current one is not valid any more.
func (c *conn) IsValid() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == retired || c.state == ended || c.stale() {
		return false
	}
	if validator, ok := c.inner.(driver.Validator); ok && !validator.IsValid() {
		return false
	}
	if c.state == busy { // one that was never used stays so
		c.enter(idle)
	}
	return true
}

// retire closes the connection if it lies idle with another version than
// current. It reports whether it must be looked at again.
func (c *conn) retire(current key.Version) (again bool) {
	c.mu.Lock()
	waiting := c.state == idle || c.state == unused
	if !waiting || c.cred.Version == current {
		c.mu.Unlock()
		return false
	}
	if time.Since(c.since) <= handOver {
		c.mu.Unlock()
		return true
	}
	wasIdle := c.state == idle
	c.enter(retired)
	inner := c.inner
	c.mu.Unlock()
	// Nobody but us uses it any more; closing may take the network's time.
	_ = inner.Close()
	if wasIdle {
		c.owner.forget(c)
	}
	return false
}

// Close implements driver.Conn.
func (c *conn) Close() error {
	c.owner.forget(c)
	c.mu.Lock()
	was := c.state
	c.enter(ended)
	inner := c.inner
	c.mu.Unlock()
	if was == retired || was == ended {
		return nil
	}
	return inner.Close()
}

// status returns the version and whether the connection is open.
func (c *conn) status() (key.Version, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cred.Version, c.state != retired && c.state != ended
}

// noContext is for calls to which database/sql gives no context.
func noContext() context.Context {
	return context.Background() //nolint:forbidigo // see above
}

func (c *conn) unwrap() driver.Conn {
	inner, err := c.begin(noContext())
	if err != nil {
		return nil
	}
	return inner
}

// Ping implements driver.Pinger. Without it database/sql's Ping does nothing
// but open a connection; so does this for a driver that has none.
func (c *conn) Ping(ctx context.Context) error {
	inner, err := c.begin(ctx)
	if err != nil {
		return err
	}
	if pinger, ok := inner.(driver.Pinger); ok {
		return pinger.Ping(ctx)
	}
	return nil
}

// Prepare implements driver.Conn.
func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(noContext(), query)
}

// PrepareContext implements driver.ConnPrepareContext.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	inner, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	if preparer, ok := inner.(driver.ConnPrepareContext); ok {
		return c.wrap(preparer.PrepareContext(ctx, query))
	}
	s, err := inner.Prepare(query)
	if err == nil && ctx.Err() != nil {
		_ = s.Close()
		return nil, ctx.Err()
	}
	return c.wrap(s, err)
}

// Begin implements driver.Conn.
func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(noContext(), driver.TxOptions{})
}

// BeginTx implements driver.ConnBeginTx. For a driver without it, it does what
// database/sql does then.
func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	inner, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	if beginner, ok := inner.(driver.ConnBeginTx); ok {
		return beginner.BeginTx(ctx, opts)
	}
	if opts.Isolation != 0 {
		return nil, errors.New("sqlkey: the driver does not support non-default isolation levels")
	}
	if opts.ReadOnly {
		return nil, errors.New("sqlkey: the driver does not support read-only transactions")
	}
	tx, err := inner.Begin() //nolint:staticcheck // the only way to begin with such a driver
	if err == nil && ctx.Err() != nil {
		_ = tx.Rollback()
		return nil, ctx.Err()
	}
	return tx, err
}

// CheckNamedValue implements driver.NamedValueChecker. ErrSkip makes
// database/sql go on as if the driver had none.
func (c *conn) CheckNamedValue(value *driver.NamedValue) error {
	inner, err := c.begin(noContext())
	if err != nil {
		return err
	}
	if checker, ok := inner.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(value)
	}
	return driver.ErrSkip
}
