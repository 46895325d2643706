package apikeycheck_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/apikeycheck"
	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// centre is a server without a network: it sends changes as they come, not everything
// anew, and a mark each second.
type centre struct {
	t testing.TB

	mu      sync.Mutex
	pepper  string
	texts   map[key.Version]string
	hashes  map[key.Version]keytable.Hash
	states  []map[key.Version]bool // by revision: the versions that there are, and whether they are accepted
	changes []key.Version          // by revision
	changed chan struct{}
	away    bool // nothing is answered
	deaf    bool // reports are refused
	streams int
	// lag is how long the first snapshot of a stream takes.
	lag time.Duration
	// confirmed is what the last report said, with everything that it told.
	confirmed uint64
	reports   []report
}

func newCentre(t testing.TB) *centre {
	return &centre{
		t: t, pepper: pepper, texts: map[key.Version]string{}, hashes: map[key.Version]keytable.Hash{}, states: []map[key.Version]bool{{}}, changes: []key.Version{0},
		changed: make(chan struct{}),
	}
}

// text returns the key of a version, which need not exist.
func (c *centre) text(v key.Version) string {
	c.t.Helper()
	if c.texts[v] == "" {
		text, err := keytable.Draw("kt_test", strings.NewReader(strings.Repeat(fmt.Sprintf("%05d", v), 20)))
		if err != nil {
			c.t.Fatal(err)
		}
		if c.hashes[v], err = keytable.NewHasher([]byte(c.pepper)).Sum(text); err != nil {
			c.t.Fatal(err)
		}
		c.texts[v] = string(text)
	}
	return c.texts[v]
}

// set changes a version: accepted, refused, or gone.
func (c *centre) set(v key.Version, accepted, gone bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text(v)
	state := maps.Clone(c.states[len(c.states)-1])
	state[v] = accepted
	if gone {
		delete(state, v)
	}
	c.states, c.changes = append(c.states, state), append(c.changes, v)
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *centre) line(v key.Version, state map[key.Version]bool) keytable.Line {
	accepted, there := state[v]
	e := keytable.Entry{
		Key: "partners/acme", Version: v, Other: c.hashes[v], Accepted: accepted, Rules: keytable.Rules{Client: "ACME", Scopes: []string{"orders"}, PerSecond: 1e6, Burst: 1e6},
	}
	return keytable.LineOf(&e, !there)
}

// process is one run of a verifier, which ends when it is killed.
type process struct {
	centre *centre
	dead   bool // guarded by the centre's lock
}

func (p *process) RoundTrip(r *http.Request) (*http.Response, error) {
	c := p.centre
	c.mu.Lock()
	defer c.mu.Unlock()
	answer := &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}
	switch {
	case p.dead || c.away:
		return nil, errors.New("nobody answers")
	case r.URL.Path == "/v1/apikeys/snapshot":
		reader, writer := io.Pipe()
		context.AfterFunc(r.Context(), func() { _ = reader.CloseWithError(r.Context().Err()) })
		c.streams++
		go p.stream(r.Context(), writer)
		answer.Body = reader
	default:
		var one report
		if err := json.NewDecoder(r.Body).Decode(&one); err != nil || c.deaf {
			answer.StatusCode = http.StatusServiceUnavailable
			return answer, err
		}
		c.reports, c.confirmed = append(c.reports, one), one.Rev
	}
	return answer, nil
}

func (p *process) stream(ctx context.Context, w *io.PipeWriter) {
	c := p.centre
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	lines := []keytable.Line{{Pepper: []byte(c.pepper)}, {Reset: true}}
	for has := -1; ; {
		c.mu.Lock()
		if p.dead || c.away {
			c.mu.Unlock()
			_ = w.CloseWithError(io.ErrUnexpectedEOF)
			return
		}
		rev, changed := len(c.states)-1, c.changed
		state := c.states[rev]
		if has < 0 {
			for v := range state {
				lines = append(lines, c.line(v, state))
			}
		} else {
			for r := has + 1; r <= rev; r++ {
				lines = append(lines, c.line(c.changes[r], c.states[r]))
			}
		}
		c.mu.Unlock()
		if has < 0 && c.lag > 0 {
			<-time.After(c.lag)
		}
		has = rev
		for _, line := range append(lines, keytable.Line{Rev: uint64(rev)}) {
			text, err := line.Encode()
			if err != nil {
				c.t.Error(err)
			}
			if _, err := w.Write(text); err != nil {
				return // it has gone
			}
		}
		lines = nil
		select {
		case <-changed:
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// open starts a verifier with a cache.
func (p *process) open(cache apikeycheck.Cache, change func(*apikeycheck.Config)) (*apikeycheck.Checker, error) {
	config := apikeycheck.Config{
		Address: "https://centre.example", Token: client.StaticToken(secret.NewString("token")), Name: "test", Cache: cache,
		HTTPClient: &http.Client{Transport: p}, ReportEvery: time.Second,
	}
	if change != nil {
		change(&config)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return apikeycheck.Open(ctx, config)
}

// kill ends what the process does outside.
func (p *process) kill() {
	p.centre.mu.Lock()
	defer p.centre.mu.Unlock()
	p.dead = true
}

func (c *centre) is(what *bool, value bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*what = value
}

func (c *centre) confirms() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.confirmed
}

// told adds up the uses of a version.
func (c *centre) told(v key.Version) (n uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.reports {
		for _, u := range c.reports[i].Uses {
			if u.Version == v && !u.Refused {
				n += u.Count
			}
		}
	}
	return n
}

var errBroken = errors.New("the disk is broken")

// disk is a cache in memory. Its calls can be made to fail, or to end the process.
type disk struct {
	mu      sync.Mutex
	records map[string][]byte
	// broken calls fail.
	broken bool
	// updates and wholes count calls, failed those that did; last is how long the last
	// update was, written how long all were, in bytes.
	updates, wholes, failed, last, written int
	// slow is how long a write takes, and a Replace between two records.
	slow time.Duration
	// killAt is the write that ends the process, killAfter whether it is done.
	killAt    int
	killAfter bool
	process   *process
}

func (d *disk) Load(_ context.Context, each func(apikeycheck.Record) error) error {
	for _, name := range slices.Sorted(maps.Keys(d.records)) {
		if err := each(apikeycheck.Record{Name: name, Data: d.records[name]}); err != nil {
			return err
		}
	}
	return nil
}

func (d *disk) Replace(ctx context.Context, records iter.Seq[apikeycheck.Record]) error {
	next := map[string][]byte{}
	for r := range records {
		next[r.Name] = r.Data
		d.wait()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	d.wholes++
	return d.commit(func() { d.records = next })
}

func (d *disk) Update(_ context.Context, records ...apikeycheck.Record) error {
	d.updates++
	return d.commit(func() {
		d.last = 0
		for _, r := range records {
			if d.last += len(r.Data); len(r.Data) == 0 {
				delete(d.records, r.Name)
			} else {
				d.records[r.Name] = r.Data
			}
		}
		d.written += d.last
	})
}

func (d *disk) wait() {
	if d.slow > 0 {
		<-time.After(d.slow)
	}
}

func (d *disk) commit(write func()) error {
	d.wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken || d.process != nil && d.process.isDead() {
		d.failed++
		return errBroken
	}
	if d.killAt--; d.killAt == -1 && d.process != nil {
		d.process.kill()
		if d.killAfter {
			write()
		}
		return errBroken
	}
	write()
	return nil
}

func (d *disk) set(broken bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken = broken
}

// journal keeps what is logged.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *journal) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *journal) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

func (l *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
