package rpc

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// How many texts one token may have compared with the secrets of managed versions, and
// how many hand-outs it may tell of: per second, and at once. A scan of a large
// repository passes; whoever tries guesses gets no further than this.
const (
	askedPerSecond = 2000
	askedAtOnce    = 50_000
	maxAskers      = 1000
)

// askers bound how much each of them asks. The zero value is ready; its methods may be
// called concurrently.
type askers struct {
	mu sync.Mutex
	by map[string]*rate.Limiter
}

// admit reports whether an asker may have n texts compared now, and how long to wait
// if not. Who has asked nothing lately is forgotten to make room for others.
func (a *askers) admit(id string, n int, now time.Time) (time.Duration, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	limiter := a.by[id]
	if limiter == nil {
		if len(a.by) >= maxAskers {
			for other, l := range a.by {
				if l.TokensAt(now) >= askedAtOnce {
					delete(a.by, other)
				}
			}
		}
		if len(a.by) >= maxAskers {
			return time.Second, false
		}
		if a.by == nil {
			a.by = map[string]*rate.Limiter{}
		}
		limiter = rate.NewLimiter(askedPerSecond, askedAtOnce)
		a.by[id] = limiter
	}
	if limiter.AllowN(now, max(n, 1)) {
		return 0, true
	}
	missing := float64(n) - limiter.TokensAt(now)
	return time.Duration(missing/askedPerSecond*float64(time.Second)) + time.Second, false
}
