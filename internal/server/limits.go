package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Timeouts of calls. Streams are bounded by their heartbeats instead; a request
// must have arrived in full within callTimeout even so.
const (
	headerTimeout = 5 * time.Second
	idleTimeout   = 2 * time.Minute
	callTimeout   = 30 * time.Second
	pollTimeout   = 90 * time.Second
	exportTimeout = 10 * time.Minute
	// backupTimeout bounds how long a snapshot keeps what has changed since.
	backupTimeout = time.Hour
	// answerTimeout is how long the last piece of an answer may take to be read.
	answerTimeout = 10 * time.Second
)

// compressFrom is the size of an answer, in bytes, from which on it is compressed.
const compressFrom = 4 << 10

const (
	// maxLimited bounds the memory of one set of rate limits.
	maxLimited = 65_536
	// Refused tokens per address: so many at once, then so many per second.
	refusedBurst     = 50
	refusedPerSecond = 1
)

// limiters bounds a rate for each of many callers.
type limiters struct {
	perSecond rate.Limit
	burst     int

	mu      sync.Mutex
	callers map[string]*rate.Limiter
}

func newLimiters(perSecond float64, burst int) *limiters {
	return &limiters{perSecond: rate.Limit(perSecond), burst: burst, callers: map[string]*rate.Limiter{}}
}

// of returns the limiter of a caller, a new one if there is none.
func (l *limiters) of(caller string) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if limit, ok := l.callers[caller]; ok {
		return limit
	}
	if len(l.callers) >= maxLimited {
		clear(l.callers)
	}
	limit := rate.NewLimiter(l.perSecond, l.burst)
	l.callers[caller] = limit
	return limit
}

// exhausted reports whether a caller has no call left; it keeps nothing of
// callers that were never limited.
func (l *limiters) exhausted(caller string, now time.Time) bool {
	l.mu.Lock()
	limit, ok := l.callers[caller]
	l.mu.Unlock()
	return ok && limit.TokensAt(now) < 1
}

// tallyEvery is how often what was refused is told of.
const tallyEvery = time.Minute

// tally logs what happens often with its number, and at most once a minute: a
// flood must not fill the log's disk.
type tally struct {
	log *slog.Logger
	now func() time.Time

	mu    sync.Mutex
	lines map[string]*tallied
}

type tallied struct {
	n    int
	told time.Time
}

func newTally(log *slog.Logger, now func() time.Time) *tally {
	return &tally{log: log, now: now, lines: map[string]*tallied{}}
}

// add counts. what is one of a fixed few.
func (t *tally) add(what string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	line := t.lines[what]
	if line == nil {
		line = &tallied{}
		t.lines[what] = line
	}
	line.n++
	now := t.now()
	if !line.told.IsZero() && now.Sub(line.told) < tallyEvery {
		return
	}
	t.log.Warn("refused", append([]any{"what", what, "times", line.n}, args...)...)
	line.n, line.told = 0, now
}

// gate bounds what clients can ask for: addresses that show bad tokens, the
// rate of each token, and the size and time of calls. It implements rpc.Gate.
type gate struct {
	refused *limiters
	tokens  *limiters
	maxBody int64
	// times are the limits of calls by the end of their path; 0 means a stream.
	times map[string]time.Duration
	// call is the limit of all others, and of the arrival of every request.
	call time.Duration
	// stall is how long a client may take to read a piece of a stream.
	stall time.Duration
	now   func() time.Time
	// told says, at most once a minute, what was refused.
	told *tally
}

// addressOf is the client's address; of an IPv6 address the network of one
// subscriber (RFC 6177), who could otherwise count as 2^64 clients.
func addressOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	address, err := netip.ParseAddr(host)
	if err != nil || address.Unmap().Is4() {
		return host
	}
	network, err := address.WithZone("").Prefix(64)
	if err != nil {
		return host
	}
	return network.String()
}

// Blocked implements rpc.Gate.
func (g *gate) Blocked(r *http.Request) bool { return g.refused.exhausted(addressOf(r), g.now()) }

// Refused implements rpc.Gate.
func (g *gate) Refused(r *http.Request) {
	address := addressOf(r)
	g.refused.of(address).AllowN(g.now(), 1)
	g.told.add("bad tokens", "lastFrom", address)
}

// Admit implements rpc.Gate.
func (g *gate) Admit(token string) bool { return g.tokens.of(token).AllowN(g.now(), 1) }

// wrap applies the limits that hold before a caller is known.
func (g *gate) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		timeout := g.call
		for suffix, other := range g.times {
			if strings.HasSuffix(r.URL.Path, suffix) {
				timeout = other
			}
		}
		control := http.NewResponseController(w)
		until := time.Time{}
		if timeout > 0 {
			until = time.Now().Add(timeout + answerTimeout)
		}
		// A writer that knows no deadlines is one of a test.
		if err := control.SetWriteDeadline(until); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return // the connection is gone
		}
		r.Body = boundBody(control, http.MaxBytesReader(w, r.Body, g.maxBody), g.call)
		if timeout == 0 || timeout > g.call { // the answer may come in pieces
			w = &streamWriter{ResponseWriter: w, control: control, within: g.stall}
		}
		if timeout == 0 {
			next.ServeHTTP(w, r)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// body is a request's body that must arrive in time. The deadline ends with it:
// it must not cut off the answer.
type body struct {
	io.ReadCloser
	control *http.ResponseController
	once    sync.Once
}

func boundBody(control *http.ResponseController, r io.ReadCloser, within time.Duration) io.ReadCloser {
	if err := control.SetReadDeadline(time.Now().Add(within)); err != nil {
		return r // the connection is gone, or knows no deadlines
	}
	return &body{ReadCloser: r, control: control}
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.once.Do(func() { _ = b.control.SetReadDeadline(time.Time{}) }) // the connection is gone if this fails
	}
	return n, err
}
