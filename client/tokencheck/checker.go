package tokencheck

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/internal/dpop"
)

// Checker verifies tokens. Its methods may be called concurrently.
type Checker struct {
	config Config
	http   *http.Client
	set    atomic.Pointer[keySet]
	proofs *dpop.Seen
	nonces nonces
	// told are refused tokens that the server is to be told of.
	told refusals

	mu sync.Mutex
	// asked is when the last fetch began, asking that it goes on, failure why the last
	// that has ended failed; changed is closed at the end of each.
	asked   time.Time
	asking  bool
	failure error
	changed chan struct{}
	closed  bool
	// wanted asks for a fetch now.
	wanted chan struct{}

	cancel  context.CancelFunc
	running sync.WaitGroup
}

// Open fetches the set of keys and keeps it fresh until Close, which must be called. It
// returns once the first set is there, and fails when ctx ends before, or when config
// is wrong.
func Open(ctx context.Context, config Config) (*Checker, error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	c := &Checker{
		config: config, proofs: dpop.NewSeen(config.MaxProofs), nonces: newNonces(), asking: true,
		changed: make(chan struct{}), wanted: make(chan struct{}, 1),
	}
	var err error
	if c.http, err = config.newHTTPClient(); err != nil {
		return nil, err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.cancel = cancel
	c.running.Go(func() { c.follow(running) })
	if config.Report != nil {
		c.running.Go(func() { c.reportRefusals(running) })
	}
	for c.set.Load() == nil {
		c.mu.Lock()
		changed, failure := c.changed, c.failure
		c.mu.Unlock()
		if c.set.Load() != nil {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			c.Close()
			if failure != nil {
				return nil, fmt.Errorf("no set of keys from %s: %w; the last try: %w", config.KeySet, ctx.Err(), failure)
			}
			return nil, fmt.Errorf("no set of keys from %s: %w", config.KeySet, ctx.Err())
		}
	}
	return c, nil
}

// Close ends the fetches, and reports what was not reported yet, for two seconds at most. Afterwards Check uses the last set, until that is too old.
func (c *Checker) Close() {
	c.cancel()
	c.running.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		close(c.changed)
		c.http.CloseIdleConnections()
	}
}

// Age is how old the set of keys is.
func (c *Checker) Age() time.Duration {
	set := c.set.Load()
	if set == nil {
		return 0
	}
	return set.age(c.config.Now())
}

// Nonce is one for the header DPoP-Nonce of answers.
func (c *Checker) Nonce() string { return c.nonces.make(c.config.Now()) }
