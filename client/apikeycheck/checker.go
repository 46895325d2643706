package apikeycheck

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/key"
)

var (
	// ErrRefused: the key is not valid.
	ErrRefused = errors.New("the API key is not valid")
	// ErrLimited: the key is good, and is used more often than it may be.
	ErrLimited = errors.New("the API key is used too often")
	// ErrUnsure: what is known here is too old to tell. It is no refusal.
	ErrUnsure = errors.New("API keys cannot be verified now")
	// ErrConfig is wrapped by every error about a Config.
	ErrConfig = errors.New("invalid configuration of an API key verifier")
)

// Config says how to reach the server. Address and Token are required.
type Config struct {
	// Address is the server's base URL; several on one store are separated by commas.
	Address string
	// Token has the role verifier; keys that it does not cover are unknown here.
	Token client.TokenSource
	// RootCAs are the authorities of the server's certificate. Nil: the system's.
	RootCAs *x509.CertPool
	// Name tells this process apart from the others with the token. It names who
	// still uses an old key, too. Default: the host's name and a random part. With a
	// Cache it is required, and the same after a restart.
	Name string
	// Cache keeps what is known over restarts. Nil: a restarted process waits for a
	// server.
	Cache Cache
	// MaxAge is for how long keys are let in without news of the server: 10 minutes
	// when zero, 15 seconds at least and a day at most. Revoking a key waits so long
	// for a verifier that cannot be reached.
	MaxAge time.Duration
	// ReportEvery is the time between two reports of uses; 3 s when zero.
	ReportEvery time.Duration
	// HTTPClient replaces the built-in client; RootCAs is then ignored. It must not
	// have a Timeout.
	HTTPClient *http.Client
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// Logger takes what is worth telling an operator, never a key. Nil discards.
	Logger *slog.Logger
}

// Result is whose key it is.
type Result struct {
	Key     key.Name
	Version key.Version
	Client  string
	// Scopes must not be changed.
	Scopes  []string
	Expires time.Time
	// Left is how many further uses are allowed now, -1 without a limit; Retry is in
	// what time the next one is, with ErrLimited.
	Left  int
	Retry time.Duration
}

// Checker verifies API keys. Its methods may be called concurrently.
type Checker struct {
	config    Config
	addresses []string

	clock  clock
	hasher atomic.Pointer[keytable.Hasher]
	table  atomic.Pointer[keytable.Table]
	// fresh is as of when the table is; rev is the revision that a restart, too, would
	// not fall behind.
	fresh atomic.Pointer[moment]
	rev   atomic.Uint64
	// reported is when the server last took a report: it waits for no verifier from
	// which it hears nothing for limit.
	reported atomic.Pointer[moment]
	// limit is MaxAge, or the one of the process before if that is less, until the
	// server has heard of it.
	limit atomic.Int64
	ready chan struct{}
	first sync.Once
	// saver is nil without a Cache.
	saver *saver

	uses uses
	// told receives when there is something to report at once.
	told chan struct{}

	cancel  context.CancelFunc
	running sync.WaitGroup
}

const (
	defaultMaxAge = 10 * time.Minute
	minMaxAge     = 15 * time.Second
	maxMaxAge     = 24 * time.Hour
	// silentAfter is after how long without a word of the server, or to it, a key that is
	// not known may be a new one.
	silentAfter = 12 * time.Second
)

func (c *Config) complete() ([]string, error) {
	if c.Token == nil {
		return nil, fmt.Errorf("%w: Token is missing", ErrConfig)
	}
	if c.Cache != nil && c.Name == "" {
		return nil, fmt.Errorf("%w: Name is missing; with a Cache it must be the same after each restart", ErrConfig)
	}
	var addresses []string
	for address := range strings.SplitSeq(c.Address, ",") {
		u, err := url.Parse(strings.TrimSpace(address))
		if err != nil || u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("%w: Address %q is no https:// URL", ErrConfig, address)
		}
		addresses = append(addresses, strings.TrimSuffix(u.String(), "/"))
	}
	if c.MaxAge == 0 {
		c.MaxAge = defaultMaxAge
	}
	if c.MaxAge < minMaxAge || c.MaxAge > maxMaxAge {
		return nil, fmt.Errorf("%w: MaxAge %v is not between %v and %v", ErrConfig, c.MaxAge, minMaxAge, maxMaxAge)
	}
	if c.ReportEvery == 0 {
		c.ReportEvery = 3 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("%w: Name: %w", ErrConfig, err)
		}
		c.Name = host + "-" + strings.ToLower(rand.Text()[:8])
	}
	if c.HTTPClient == nil {
		c.HTTPClient = newHTTPClient(c.RootCAs)
	}
	return addresses, nil
}

// Open connects, and returns once the first snapshot is there, or at once with one in
// the cache that may still be used. It fails when ctx ends before, or when config is
// wrong. Close must be called.
func Open(ctx context.Context, config Config) (*Checker, error) {
	addresses, err := config.complete()
	if err != nil {
		return nil, err
	}
	c := &Checker{
		config: config, addresses: addresses, clock: clock{config.Now()}, ready: make(chan struct{}), told: make(chan struct{}, 1),
	}
	c.table.Store(keytable.New())
	c.limit.Store(int64(config.MaxAge))
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.cancel = cancel
	if config.Cache != nil {
		c.saver = newSaver(c)
		if err := c.saver.load(ctx); err != nil {
			cancel()
			return nil, err
		}
		if c.age(c.config.Now()) <= c.limit.Load() {
			c.first.Do(func() { close(c.ready) })
		}
		c.running.Go(func() { c.saver.run(running) })
	}
	c.running.Go(func() { c.follow(running) })
	c.running.Go(func() { c.report(running) })
	select {
	case <-c.ready:
		return c, nil
	case <-ctx.Done():
		c.cancel()
		c.running.Wait()
		return nil, fmt.Errorf("no snapshot of API keys from %s: %w", config.Address, ctx.Err())
	}
}

// Close reports the last uses, tells the server not to wait for this verifier any
// more, and returns. Afterwards Check answers ErrUnsure.
//
// With a Cache the server goes on waiting, for MaxAge at the longest: what is kept may
// be used after a restart. Uses that cannot be reported are kept, too, and reported
// then. Close fails when they can be neither reported nor kept.
func (c *Checker) Close(ctx context.Context) error {
	c.stop()
	if c.saver == nil {
		return c.send(ctx, true)
	}
	return c.saver.close(ctx)
}

// Leave is Close for good: it empties the Cache first, and then tells the server not to
// wait for this verifier any more. When it fails the server goes on waiting.
func (c *Checker) Leave(ctx context.Context) error {
	c.stop()
	if c.saver != nil {
		if err := c.saver.empty(ctx); err != nil {
			return err
		}
	}
	return c.send(ctx, true)
}

func (c *Checker) stop() {
	c.cancel()
	c.running.Wait()
	c.fresh.Store(nil)
}

// CacheError returns why the Cache does not hold what is known here, or nil. While it
// does not, no further revision is confirmed to the server: it goes on waiting for this
// verifier before it counts a key as accepted or as refused, although both have their
// effect here.
func (c *Checker) CacheError() error {
	if c.saver == nil {
		return nil
	}
	return c.saver.failure()
}

// Check tells whose key text is, and counts the use; address says who showed it,
// and may be empty. It fails with ErrRefused, ErrLimited (with a result) or
// ErrUnsure.
func (c *Checker) Check(text, address string) (Result, error) {
	now := c.config.Now()
	table, found, err := c.judge(text, now)
	switch {
	case errors.Is(err, ErrRefused) && found.Reason != 0:
		c.uses.name(who{key: found.Key, version: found.Version, address: address, refused: true})
		return Result{}, err
	case err != nil:
		return resultOf(&found, err), err
	}
	table.Used(found.ID, 1, now)
	if c.table.Load() != table {
		c.uses.again(table) // another one took its place, and its uses may have been taken before this one
	}
	if address != "" {
		c.uses.name(who{key: found.Key, version: found.Version, address: address})
	}
	return resultOf(&found, nil), nil
}

// Identify tells whose key text is, like Check, without counting a use of what the key
// is for, and reports nothing.
func (c *Checker) Identify(text string) (Result, error) {
	_, found, err := c.judge(text, c.config.Now())
	return resultOf(&found, err), err
}

// judge looks a key up in the table that it returns, and says whether it is let in. What
// it finds has no reason if nothing was looked for.
func (c *Checker) judge(text string, now time.Time) (table *keytable.Table, found keytable.Found, err error) {
	hasher := c.hasher.Load()
	if hasher == nil {
		return nil, found, ErrUnsure
	}
	hash, err := hasher.SumString(text)
	if err != nil {
		return nil, found, ErrRefused
	}
	table = c.table.Load()
	found = table.Look(&hash, now)
	age := c.age(now)
	switch found.Reason {
	case keytable.Good, keytable.Limited:
		if age > c.limit.Load() {
			return nil, found, ErrUnsure
		}
		if found.Reason == keytable.Limited {
			return table, found, ErrLimited
		}
	case keytable.Malformed, keytable.Unknown, keytable.Suspended, keytable.Expired:
		if age > int64(silentAfter) {
			return nil, found, ErrUnsure
		}
		return table, found, ErrRefused
	}
	return table, found, nil
}

// resultOf is what a caller learns of what was found.
func resultOf(found *keytable.Found, err error) Result {
	if err != nil && !errors.Is(err, ErrLimited) {
		return Result{}
	}
	return Result{
		Key: found.Key, Version: found.Version, Client: found.Client, Scopes: found.Scopes, Expires: found.Expires, Left: found.Left, Retry: found.Retry,
	}
}

// Age is how old what is known here is.
func (c *Checker) Age() time.Duration {
	return time.Duration(c.clock.since(c.fresh.Load(), c.config.Now()))
}

// age is how long ago both was true: what is known here was so, and the server had
// heard of this verifier.
func (c *Checker) age(now time.Time) int64 {
	return max(c.clock.since(c.fresh.Load(), now), c.clock.since(c.reported.Load(), now))
}

// heard notes that the server heard of this verifier then.
func (c *Checker) heard(when *moment) {
	for {
		last := c.reported.Load()
		if last != nil && last.own >= when.own || c.reported.CompareAndSwap(last, when) {
			return
		}
	}
}

// Len is how many versions are known.
func (c *Checker) Len() int { return c.table.Load().Len() }
