package sqlkey_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
)

// database is a fake one: it knows which passwords it accepts, and finds fault
// with everything a driver must not be asked to do.
type database struct {
	t       *testing.T
	latency time.Duration
	shape   func(*fakeConn) driver.Conn

	mu     sync.Mutex
	accept map[string]bool
	open   map[*fakeConn]struct{}
	logins map[string]int
}

func newDatabase(t *testing.T, accept ...string) *database {
	db := &database{
		t: t, latency: time.Millisecond, accept: make(map[string]bool),
		open: make(map[*fakeConn]struct{}), logins: make(map[string]int),
		shape: func(c *fakeConn) driver.Conn { return modern{c} },
	}
	for _, password := range accept {
		db.accept[password] = true
	}
	return db
}

func (db *database) set(password string, accepted bool) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.accept[password] = accepted
}

// opened returns how many connections of a password are open.
func (db *database) opened(password string) int {
	db.mu.Lock()
	defer db.mu.Unlock()
	n := 0
	for c := range db.open {
		if c.password == password {
			n++
		}
	}
	return n
}

func (db *database) connector(_ context.Context, cred client.Credential) (driver.Connector, error) {
	return fakeConnector{db, cred.Password().RevealString()}, nil
}

type refused struct{ state string }

func (refused) Error() string      { return "password authentication failed" }
func (r refused) SQLState() string { return r.state }

type fakeConnector struct {
	db       *database
	password string
}

func (c fakeConnector) Driver() driver.Driver { return nil }

func (c fakeConnector) Connect(ctx context.Context) (driver.Conn, error) {
	select {
	case <-ctx.Done():
	case <-time.After(c.db.latency):
	}
	c.db.mu.Lock()
	defer c.db.mu.Unlock()
	c.db.logins[c.password]++
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !c.db.accept[c.password] {
		return nil, fmt.Errorf("failed to connect: %w", refused{"28P01"})
	}
	conn := &fakeConn{db: c.db, password: c.password}
	c.db.open[conn] = struct{}{}
	return c.db.shape(conn), nil
}

// fakeConn is the least a driver offers.
type fakeConn struct {
	db       *database
	password string
	using    atomic.Int32
	inTx     atomic.Bool
	closed   atomic.Bool
	resets   atomic.Int32
}

// use notes one call; a driver is never called concurrently nor after Close.
func (c *fakeConn) use(what string) (done func()) {
	if c.using.Add(1) > 1 {
		c.db.t.Errorf("%s while the connection is in use", what)
	}
	if c.closed.Load() {
		c.db.t.Errorf("%s after Close", what)
	}
	// No sleep: database/sql holds mutexes here, and simulated time stands still
	// while somebody waits for a mutex.
	runtime.Gosched()
	return func() { c.using.Add(-1) }
}

func (c *fakeConn) Close() error {
	defer c.use("Close")()
	if c.inTx.Load() {
		c.db.t.Error("Close within a transaction")
	}
	c.closed.Store(true)
	c.db.mu.Lock()
	defer c.db.mu.Unlock()
	delete(c.db.open, c)
	return nil
}

func (c *fakeConn) Begin() (driver.Tx, error) {
	defer c.use("Begin")()
	c.inTx.Store(true)
	return fakeTx{c}, nil
}

func (c *fakeConn) Prepare(query string) (driver.Stmt, error) {
	defer c.use("Prepare")()
	return &fakeStmt{c, query}, nil
}

type fakeTx struct{ c *fakeConn }

func (tx fakeTx) Commit() error   { return tx.end("Commit") }
func (tx fakeTx) Rollback() error { return tx.end("Rollback") }
func (tx fakeTx) end(what string) error {
	defer tx.c.use(what)()
	tx.c.inTx.Store(false)
	return nil
}

type fakeStmt struct {
	c     *fakeConn
	query string
}

func (s *fakeStmt) Close() error {
	defer s.c.use("Stmt.Close")()
	return nil
}
func (s *fakeStmt) NumInput() int { return -1 }
func (s *fakeStmt) Exec([]driver.Value) (driver.Result, error) {
	defer s.c.use("Stmt.Exec")()
	return driver.RowsAffected(1), nil
}

func (s *fakeStmt) Query([]driver.Value) (driver.Rows, error) {
	defer s.c.use("Stmt.Query")()
	return &fakeRows{c: s.c}, nil
}

// fakeRows has one row: the password of the connection.
type fakeRows struct {
	c    *fakeConn
	done bool
}

func (*fakeRows) Columns() []string { return []string{"password"} }
func (r *fakeRows) Close() error    { return nil }
func (r *fakeRows) Next(dest []driver.Value) error {
	defer r.c.use("Next")()
	if r.done {
		return io.EOF
	}
	r.done, dest[0] = true, r.c.password
	return nil
}

// modern has every optional interface.
type modern struct{ *fakeConn }

func (c modern) Ping(context.Context) error {
	defer c.use("Ping")()
	return nil
}

func (c modern) BeginTx(_ context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if opts.ReadOnly {
		return nil, errors.New("modern got read-only")
	}
	return c.Begin()
}

func (c modern) PrepareContext(_ context.Context, query string) (driver.Stmt, error) {
	return c.Prepare(query)
}

func (c modern) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	defer c.use("Exec")()
	return driver.RowsAffected(7), nil
}

func (c modern) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	defer c.use("Query")()
	return &fakeRows{c: c.fakeConn}, nil
}

func (c modern) CheckNamedValue(value *driver.NamedValue) error {
	if _, ok := value.Value.(complex128); ok {
		return nil // an argument only this driver knows
	}
	return driver.ErrSkip
}

func (c modern) ResetSession(context.Context) error {
	defer c.use("ResetSession")()
	c.resets.Add(1)
	return nil
}
func (c modern) IsValid() bool { return !c.closed.Load() }
