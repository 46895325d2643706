package tokencheck

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/keyturn/keyturn/internal/webtoken"
)

const (
	// fetchTime bounds one fetch.
	fetchTime = 10 * time.Second
	// patience is how long a token waits for a fetch.
	patience = 3 * time.Second
	// refetchEvery is how often an unknown kid makes the set be fetched.
	refetchEvery = 5 * time.Second
	// shortest and longest bound the time between two fetches by the clock.
	shortest = 500 * time.Millisecond
	longest  = 10 * time.Minute
	// backoffFirst and backoffLast bound the pause after a failure.
	backoffFirst = 500 * time.Millisecond
	backoffLast  = 15 * time.Second
)

// follow fetches the set until ctx ends.
func (c *Checker) follow(ctx context.Context) {
	backoff := backoffFirst
	for {
		life, err := c.fetch(ctx)
		if ctx.Err() != nil {
			return
		}
		// Twice as often as it must be, so that a late answer makes no set too old.
		wait := min(max(life/2-time.Duration(rand.Float64()*float64(life)/8), shortest), longest) //nolint:gosec // it spreads verifiers
		if err != nil {
			wait = backoffFirst/4 + rand.N(backoff) //nolint:gosec // it spreads verifiers
			backoff = min(2*backoff, backoffLast)
		} else {
			backoff = backoffFirst
		}
		c.noted(ctx, err)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-c.wanted:
		}
		timer.Stop()
	}
}

// noted tells the outcome of a fetch to those who wait, and of a change to the log.
func (c *Checker) noted(ctx context.Context, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select { // a wish from before is granted
	case <-c.wanted:
	default:
	}
	switch {
	case err != nil && c.failure == nil:
		c.config.Logger.WarnContext(ctx, "the set of keys cannot be fetched; the one from before is used on", "set", c.config.KeySet, "age", c.Age(), "error", err)
	case err == nil && c.failure != nil:
		c.config.Logger.InfoContext(ctx, "the set of keys is fetched again", "set", c.config.KeySet)
	}
	c.failure, c.asking = err, false
	close(c.changed)
	c.changed = make(chan struct{})
}

// fetch fetches the set, and returns for how long it may be kept.
func (c *Checker) fetch(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	began := c.config.Now()
	c.mu.Lock()
	c.asked, c.asking = began, true
	c.mu.Unlock()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.config.KeySet, http.NoBody)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	old := c.set.Load()
	if old != nil && old.etag != "" {
		r.Header.Set("If-None-Match", old.etag)
	}
	response, err := c.http.Do(r)
	if err != nil {
		return 0, err
	}
	defer func() { _ = response.Body.Close() }() // it was read
	next := &keySet{life: lifeOf(response.Header), fetched: began}
	switch {
	case response.StatusCode == http.StatusNotModified && old != nil:
		next.keys, next.etag = old.keys, old.etag
	case response.StatusCode == http.StatusOK:
		body, err := io.ReadAll(io.LimitReader(response.Body, maxSet+1))
		if err != nil {
			return 0, fmt.Errorf("read the set of keys: %w", err)
		}
		if next.keys, err = readSet(body, c.config.Algorithms); err != nil {
			return 0, fmt.Errorf("%s: %w", c.config.KeySet, err)
		}
		next.etag = response.Header.Get("ETag")
	default:
		return 0, fmt.Errorf("%s answers %s", c.config.KeySet, response.Status)
	}
	c.set.Store(next)
	return next.life, nil
}

// newer waits for a fetch that is under way, or for one more if the last is some time
// ago, and returns the set of then.
func (c *Checker) newer(ctx context.Context) *keySet {
	c.mu.Lock()
	changed := c.changed
	switch {
	case c.closed:
		changed = nil
	case c.asking:
	case c.config.Now().Sub(c.asked) >= refetchEvery:
		select {
		case c.wanted <- struct{}{}:
		default:
		}
	default:
		changed = nil
	}
	c.mu.Unlock()
	if changed != nil {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-changed:
		case <-ctx.Done():
		case <-timer.C:
		}
	}
	return c.set.Load()
}

// unsure reports whether nothing can be said by a set: it is too old.
func (c *Checker) unsure(set *keySet) bool {
	return set == nil || set.age(c.config.Now()) > max(c.config.MaxAge, set.life)
}

// find returns the key of a kid. It fails with ErrRefused, and with ErrUnsure.
func (c *Checker) find(ctx context.Context, kid string) (webtoken.Key, error) {
	set := c.set.Load()
	if c.unsure(set) {
		if set = c.newer(ctx); c.unsure(set) {
			return webtoken.Key{}, ErrUnsure
		}
	}
	k, ok := set.keys[kid]
	if ok {
		return k, nil
	}
	// It may be new. Keyturn publishes a key long before it signs, so that this is rare.
	if set = c.newer(ctx); set != nil {
		if k, ok = set.keys[kid]; ok && !c.unsure(set) {
			return k, nil
		}
		if set.age(c.config.Now()) <= 2*refetchEvery {
			return webtoken.Key{}, bad("its kid names no published key")
		}
	}
	return webtoken.Key{}, ErrUnsure
}
