package apikeycheck

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/keyturn/keyturn/internal/keytable"
)

const (
	// backoffFirst and backoffLast bound the time between two tries to connect.
	backoffFirst = 200 * time.Millisecond
	backoffLast  = 10 * time.Second
	// silence is how long a stream may be without a line: the server sends one each
	// second.
	silence = 15 * time.Second
	// maxTold bounds the reasons that are logged until a stream stands again.
	maxTold = 20
	// stoodStill is how long after the last line the next one shows that the process did
	// not run in between. What it finds then was sent long ago: it is not fresh.
	stoodStill = silence + 10*time.Second
	// maxAgeSent is the age of a mark that is old in any case, in milliseconds.
	maxAgeSent = int64(2 * maxMaxAge / time.Millisecond)
)

func newHTTPClient(roots *x509.CertPool) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:     (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: 30 * time.Second, ResponseHeaderTimeout: 30 * time.Second, IdleConnTimeout: 2 * time.Minute,
			Proxy: http.ProxyFromEnvironment,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// request makes one to the server that is next.
func (c *Checker) request(ctx context.Context, method, path string, turn int, body io.Reader) (*http.Request, error) {
	token, err := c.config.Token.Token(ctx)
	if err != nil {
		return nil, err
	}
	query := url.Values{"verifier": {c.config.Name}, "maxAge": {c.config.MaxAge.String()}}
	r, err := http.NewRequestWithContext(ctx, method, c.addresses[turn%len(c.addresses)]+path+"?"+query.Encode(), body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+token.RevealString())
	return r, nil
}

// follow keeps the table equal to the server's, until ctx ends.
func (c *Checker) follow(ctx context.Context) {
	backoff := backoffFirst
	told := map[string]bool{}
	for turn := 0; ctx.Err() == nil; turn++ {
		began := c.config.Now()
		err := c.stream(ctx, turn)
		if ctx.Err() != nil {
			return
		}
		if c.config.Now().Sub(began) > backoffLast {
			backoff = backoffFirst
			clear(told)
		}
		// A server may be away for hours: the same is said once.
		level := slog.LevelWarn
		if told[err.Error()] || len(told) == maxTold {
			level = slog.LevelDebug
		} else {
			told[err.Error()] = true
		}
		c.config.Logger.Log(ctx, level, "the stream of API keys ended; connecting again until it stands", "error", err, "age", c.Age())
		timer := time.NewTimer(rand.N(backoff) + backoffFirst/2) //nolint:gosec // it spreads clients and guards no secret
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		backoff = min(2*backoff, backoffLast)
	}
}

// stream takes lines until there are no more.
func (c *Checker) stream(ctx context.Context, turn int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	began := c.clock.at(c.config.Now(), 0)
	r, err := c.request(ctx, http.MethodGet, "/v1/apikeys/snapshot", turn, http.NoBody)
	if err != nil {
		return err
	}
	response, err := c.config.HTTPClient.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }() // the stream has ended
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1024)) // the status says enough
		return fmt.Errorf("status %d: %s", response.StatusCode, text)
	}
	watchdog := time.AfterFunc(silence, func() { cancel(errors.New("the server has fallen silent")) })
	defer watchdog.Stop()
	lines := bufio.NewReaderSize(response.Body, keytable.MaxLine)
	taking := &taking{checker: c, began: began}
	for last := c.clock.read(c.config.Now()); ; {
		text, err := lines.ReadSlice('\n')
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
		now := c.config.Now()
		if stood := c.clock.since(&last, now); stood > int64(stoodStill) {
			return fmt.Errorf("this process has stood still for %v", time.Duration(stood))
		}
		last = c.clock.read(now)
		watchdog.Reset(silence)
		line, err := keytable.DecodeLine(text)
		if err == nil {
			err = taking.take(&line)
		}
		if err != nil {
			return err
		}
	}
}

// taking is what one stream has sent so far.
type taking struct {
	checker *Checker
	// began is when it was asked for: the server noted this verifier after that, and
	// before it sent anything. It is nil once that is said.
	began *moment
	// next is the table that a reset fills; it takes the place of the present one with
	// the next mark.
	next   *keytable.Table
	hasher *keytable.Hasher
	pepper []byte
}

func (t *taking) take(line *keytable.Line) error {
	c := t.checker
	switch {
	case len(line.Pepper) > 0:
		t.hasher, t.pepper = keytable.NewHasher(line.Pepper), line.Pepper
	case line.Reset:
		t.next = keytable.New()
	case line.Rev != 0:
		return t.mark(line)
	default:
		e, err := line.Entry()
		if err != nil {
			return err
		}
		if t.next != nil {
			return change(t.next, &e, line.Gone)
		}
		if err := change(c.table.Load(), &e, line.Gone); err != nil {
			return err
		}
		if c.saver != nil {
			c.saver.change(&e, line.Gone)
		}
	}
	return nil
}

func change(table *keytable.Table, e *keytable.Entry, gone bool) error {
	if gone {
		table.Delete(&e.Hash)
		return nil
	}
	return table.Put(e)
}

// mark takes over everything up to a revision.
func (t *taking) mark(line *keytable.Line) error {
	c := t.checker
	if t.hasher == nil {
		return errors.New("the server has sent no pepper")
	}
	fresh := c.clock.at(c.config.Now(), time.Duration(min(max(line.Age, 0), maxAgeSent))*time.Millisecond)
	if t.next != nil {
		// Who counts a use in the old table after this sees that it is not the present one.
		old := c.table.Swap(t.next)
		c.uses.drain(old)
		if c.saver != nil {
			c.saver.swapped(t.pepper, old, t.next)
		}
		t.next = nil
	}
	c.hasher.Store(t.hasher)
	c.fresh.Store(fresh)
	if t.began != nil {
		c.heard(t.began)
		c.limit.Store(int64(c.config.MaxAge))
		t.began = nil
	}
	if c.saver != nil {
		c.saver.mark(line.Rev, fresh)
	} else {
		c.confirm(line.Rev)
	}
	c.first.Do(func() { close(c.ready) })
	return nil
}

// confirm has the server told of a revision.
func (c *Checker) confirm(rev uint64) {
	if c.rev.Swap(rev) == rev {
		return
	}
	select {
	case c.told <- struct{}{}:
	default:
	}
}
