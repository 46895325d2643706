package server

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Timeouts of calls. Streams are bounded by their heartbeats instead.
const (
	headerTimeout = 5 * time.Second
	idleTimeout   = 2 * time.Minute
	callTimeout   = 30 * time.Second
	pollTimeout   = 90 * time.Second
)

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

// gate bounds what clients can ask for: addresses that show bad tokens, the
// rate of each token, and the size and time of calls.
type gate struct {
	refused *limiters
	tokens  *limiters
	maxBody int64
	streams []string
	now     func() time.Time
}

func addressOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// refuse notes that an address showed a bad token.
func (g *gate) refuse(r *http.Request) { g.refused.of(addressOf(r)).AllowN(g.now(), 1) }

// admit reports whether a token may make another call now.
func (g *gate) admit(token string) bool { return g.tokens.of(token).AllowN(g.now(), 1) }

// wrap applies the limits that hold before a caller is known.
func (g *gate) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g.refused.of(addressOf(r)).TokensAt(g.now()) < 1 {
			w.Header().Set("Retry-After", "10")
			http.Error(w, "too many bad tokens from this address; wait ten seconds", http.StatusTooManyRequests)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, g.maxBody)
		timeout := callTimeout
		for _, stream := range g.streams {
			if strings.HasSuffix(r.URL.Path, stream) {
				next.ServeHTTP(w, r)
				return
			}
		}
		if strings.HasSuffix(r.URL.Path, "/Poll") {
			timeout = pollTimeout
		}
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}
