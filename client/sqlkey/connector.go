package sqlkey

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/key"
)

const (
	// maxAttempts bounds the log-ins of one Connect.
	maxAttempts = 3
	// handOver is how long a connection may be on its way from one user to the
	// next. It is never closed in that time: database/sql gives up on a query that
	// meets three bad connections in a row.
	handOver = 250 * time.Millisecond
)

// ErrClosed is returned by Connect after Close.
var ErrClosed = errors.New("the connector is closed")

// OpenFunc returns a connector of the wrapped driver that logs in with cred and
// nothing else. It is called for every new connection and should be cheap; it
// may be called concurrently.
type OpenFunc func(ctx context.Context, cred client.Credential) (driver.Connector, error)

// Config changes how a Connector behaves. The zero value suits PostgreSQL.
type Config struct {
	// IsAuthError reports whether an error means that the credential was refused.
	// When nil, an error with a method SQLState() string counts if that state is of
	// class 28 (invalid authorization), as PostgreSQL's drivers have it.
	IsAuthError func(error) bool
	// RefreshWait is how long a refused log-in waits for a newer version; 2 s when
	// zero. A negative value means not at all.
	RefreshWait time.Duration
	// SkipProbe makes new versions current without a log-in to try them.
	SkipProbe bool
}

// Connector implements driver.Connector and io.Closer; give it to sql.OpenDB.
// sql.DB.Close closes it. It is safe for concurrent use.
type Connector struct {
	handle *client.Handle
	open   OpenFunc
	cfg    Config
	stop   []func()
	group  sync.WaitGroup
	done   chan struct{}
	look   chan struct{} // holds a token when a stale connection was added
	once   sync.Once

	mu     sync.Mutex
	conns  map[*conn]struct{}
	closed bool
}

// New returns a connector for the key that handle holds.
func New(handle *client.Handle, open OpenFunc, cfg Config) *Connector {
	if cfg.IsAuthError == nil {
		cfg.IsAuthError = isClass28
	}
	if cfg.RefreshWait == 0 {
		cfg.RefreshWait = 2 * time.Second
	}
	c := &Connector{handle: handle, open: open, cfg: cfg, done: make(chan struct{}), look: make(chan struct{}, 1), conns: make(map[*conn]struct{})}
	if !cfg.SkipProbe {
		c.stop = append(c.stop, handle.OnApply(c.probe))
	}
	changes, stop := handle.Changes()
	c.stop = append(c.stop, stop)
	c.group.Go(func() { c.retire(changes) })
	return c
}

// isClass28 recognises SQLSTATE class 28 (ISO/IEC 9075-2, table 38).
func isClass28(err error) bool {
	var state interface{ SQLState() string }
	return errors.As(err, &state) && len(state.SQLState()) == 5 && state.SQLState()[:2] == "28"
}

// Connect implements driver.Connector: it logs in with the current version. When
// that is refused it asks the server for a newer one and tries that.
func (c *Connector) Connect(ctx context.Context) (driver.Conn, error) {
	inner, cred, err := c.login(ctx)
	if err != nil {
		return nil, err
	}
	wrapped := newConn(c, inner, cred)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = inner.Close()
		return nil, ErrClosed
	}
	c.conns[wrapped] = struct{}{}
	if wrapped.stale() { // the version changed during the log-in
		select {
		case c.look <- struct{}{}:
		default:
		}
	}
	return wrapped.face(), nil
}

// Driver implements driver.Connector. The driver refuses to open by name.
func (c *Connector) Driver() driver.Driver { return byName{} }

type byName struct{}

func (byName) Open(string) (driver.Conn, error) {
	return nil, errors.New("sqlkey: connections are opened by sql.OpenDB(connector), not by name")
}

// Close stops the retirement. sql.DB closes the connections themselves.
func (c *Connector) Close() error {
	c.once.Do(func() {
		c.mu.Lock()
		c.closed = true
		c.mu.Unlock()
		for _, stop := range c.stop {
			stop()
		}
		close(c.done)
		c.group.Wait()
	})
	return nil
}

// Versions returns how many open connections use each version.
func (c *Connector) Versions() map[key.Version]int {
	count := make(map[key.Version]int)
	for _, one := range c.list() {
		if version, open := one.status(); open {
			count[version]++
		}
	}
	return count
}

// login opens a connection with the current version, or a newer one if that is
// refused and a newer one comes in time.
func (c *Connector) login(ctx context.Context) (driver.Conn, client.Credential, error) {
	cred := c.handle.Current()
	for attempt := 1; ; attempt++ {
		inner, err := c.loginWith(ctx, cred)
		if err == nil {
			return inner, cred, nil
		}
		if attempt == maxAttempts || ctx.Err() != nil || !c.cfg.IsAuthError(err) {
			return nil, client.Credential{}, err
		}
		newer, found := c.newer(ctx, cred)
		if !found {
			return nil, client.Credential{}, err
		}
		cred = newer
	}
}

// newer returns the credential that has replaced cred, and waits for it a moment.
func (c *Connector) newer(ctx context.Context, cred client.Credential) (client.Credential, bool) {
	if c.cfg.RefreshWait < 0 {
		current := c.handle.Current()
		return current, current.Epoch > cred.Epoch
	}
	c.handle.Refresh()
	ctx, cancel := context.WithTimeout(ctx, c.cfg.RefreshWait)
	defer cancel()
	newer, err := c.handle.WaitNewer(ctx, cred.Epoch)
	return newer, err == nil
}

func (c *Connector) loginWith(ctx context.Context, cred client.Credential) (driver.Conn, error) {
	connector, err := c.open(ctx, cred)
	if err != nil {
		return nil, fmt.Errorf("prepare a connection with key %s %s: %w", cred.Key, cred.Version, err)
	}
	inner, err := connector.Connect(ctx)
	switch {
	case err == nil:
		c.handle.RecordUse(cred.Version, client.UseSucceeded)
		return inner, nil
	case c.cfg.IsAuthError(err):
		c.handle.RecordUse(cred.Version, client.UseRefused)
	case ctx.Err() == nil:
		c.handle.RecordUse(cred.Version, client.UseBroken)
	}
	return nil, fmt.Errorf("connect with key %s %s: %w", cred.Key, cred.Version, err)
}

// probe is the applier: it tries a new version before it becomes current.
func (c *Connector) probe(ctx context.Context, next client.Credential) error {
	inner, err := c.loginWith(ctx, next)
	if err != nil {
		return err
	}
	defer func() { _ = inner.Close() }()
	if pinger, ok := inner.(driver.Pinger); ok {
		if err := pinger.Ping(ctx); err != nil {
			return fmt.Errorf("ping with key %s %s: %w", next.Key, next.Version, err)
		}
	}
	return nil
}

// retire closes idle connections of other versions after each change.
func (c *Connector) retire(changes <-chan client.Credential) {
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-c.done:
			return
		case _, open := <-changes:
			if !open {
				changes = nil // the keys were closed before the connector
				continue
			}
		case <-again.C:
		case <-c.look:
		}
		current, left := c.handle.Current().Version, false
		for _, one := range c.list() {
			left = one.retire(current) || left
		}
		// One that is in use is discarded by database/sql when it is given back; the
		// others have only just been given back, or are new.
		if left {
			again.Reset(handOver)
		}
	}
}

func (c *Connector) list() []*conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*conn, 0, len(c.conns))
	for one := range c.conns {
		out = append(out, one)
	}
	return out
}

func (c *Connector) forget(one *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, one)
}

// Unwrap returns the driver's own connection, for use within sql.Conn.Raw. It
// returns anything else unchanged.
func Unwrap(driverConn any) any {
	if wrapped, ok := driverConn.(interface{ unwrap() driver.Conn }); ok {
		return wrapped.unwrap()
	}
	return driverConn
}

var (
	_ driver.Connector = (*Connector)(nil)
	_ io.Closer        = (*Connector)(nil)
)
