package ingress

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"
)

const (
	// CallTimeout bounds calls, if nothing else is said, and the arrival of every request.
	CallTimeout = 30 * time.Second
	// stallTimeout is how long a client may take to read one piece of a stream.
	stallTimeout = 30 * time.Second
	// answerTimeout is how long the last piece of an answer may take to be read.
	answerTimeout = 10 * time.Second
	// Bad tokens per address: so many at once, then so many per second.
	refusedBurst     = 50
	refusedPerSecond = 1
)

// GateConfig is what a Gate goes by. What has no default is required.
type GateConfig struct {
	// Tokens is how many calls each token may make.
	Tokens Rate
	// MaxBody is the largest request, in bytes.
	MaxBody int64
	// Times are the limits of calls by the end of their path; 0 means a stream, which is
	// bounded by the pieces that its client reads. Others have CallTimeout.
	Times map[string]time.Duration
	// Client is the IP address of the client that a request comes from, as limits go by
	// it. Of an IPv6 address its network of 64 bits counts. Default: the other end of
	// the connection.
	Client func(*http.Request) string
	// Now is the clock that rates go by. Deadlines of connections are in real time.
	Now func() time.Time
	// Tally says what was refused.
	Tally *Tally
}

// Gate bounds what clients can ask for: addresses that show bad tokens, the
// rate of each token, and the size and time of calls.
type Gate struct {
	config  GateConfig
	refused *limiters
	tokens  *limiters
	// call bounds calls without a time of their own, stall one piece of a stream.
	call, stall time.Duration
}

// NewGate returns a Gate that has refused nobody.
func NewGate(config GateConfig) *Gate {
	return &Gate{config: config, refused: newLimiters(Rate{PerSecond: refusedPerSecond, Burst: refusedBurst}), tokens: newLimiters(config.Tokens), call: CallTimeout, stall: stallTimeout}
}

// WithTokens returns a gate for calls that tokens may make at another rate. Both
// count bad tokens together.
func (g *Gate) WithTokens(tokens Rate) *Gate {
	other := *g
	other.config.Tokens, other.tokens = tokens, newLimiters(tokens)
	return &other
}

// Blocked reports whether the address that a request comes from showed too many bad
// tokens lately.
func (g *Gate) Blocked(r *http.Request) bool {
	return g.refused.exhausted(subscriber(g.config.Client, r), g.config.Now())
}

// Refused counts a bad token against the address that a request comes from.
func (g *Gate) Refused(r *http.Request) { g.RefusedAs(r, "bad tokens") }

// RefusedAs does so for a bad proof of another kind; what names it in the log, and is
// one of a fixed few.
func (g *Gate) RefusedAs(r *http.Request, what string) {
	address := subscriber(g.config.Client, r)
	g.refused.of(address).AllowN(g.config.Now(), 1)
	g.config.Tally.Add(what, "lastFrom", address)
}

// Admit reports whether a token, by its ID, may make another call now.
func (g *Gate) Admit(token string) bool { return g.tokens.of(token).AllowN(g.config.Now(), 1) }

// Wrap applies the limits that hold before a caller is known.
func (g *Gate) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		timeout := g.call
		for suffix, other := range g.config.Times {
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
		r.Body = boundBody(control, http.MaxBytesReader(w, r.Body, g.config.MaxBody), g.call)
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
