package forward

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// counts are how many requests there were, by gate, kind and outcome: as many series as
// the configuration has gates, times what this package names.
type counts struct {
	nobody *[lastOutcome + 1]prometheus.Counter
	gates  map[*gate]*[AccessToken + 1][lastOutcome + 1]prometheus.Counter
}

func newCounts(registry prometheus.Registerer, gates map[string]*gate) (counts, error) {
	c := counts{}
	if registry == nil {
		return c, nil
	}
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keyturn_gateway_decisions_total", Help: "Requests of proxies about a credential, by gate, kind of credential (apikey, token, none) and outcome.",
	}, []string{"gate", "kind", "outcome"})
	if err := registry.Register(vec); err != nil {
		return c, err
	}
	c.nobody = &[lastOutcome + 1]prometheus.Counter{}
	c.gates = map[*gate]*[AccessToken + 1][lastOutcome + 1]prometheus.Counter{}
	for o := Admitted; o <= lastOutcome; o++ {
		if o == NoGate || o == BadCaller {
			c.nobody[o] = vec.WithLabelValues("", Kind(0).String(), o.String())
		}
	}
	for name, g := range gates {
		all := &[AccessToken + 1][lastOutcome + 1]prometheus.Counter{}
		for kind := range all {
			for o := Admitted; o < NoGate; o++ {
				if read := o != Missing && o != Malformed && o != TooLarge; read == (kind > 0) {
					all[kind][o] = vec.WithLabelValues(name, Kind(kind).String(), o.String())
				}
			}
		}
		c.gates[g] = all
	}
	return c, nil
}

// add counts one; g is nil if there is no gate.
func (c *counts) add(g *gate, kind Kind, outcome Outcome) {
	var counter prometheus.Counter
	if all := c.gates[g]; all != nil {
		counter = all[kind][outcome]
	} else if c.nobody != nil {
		counter = c.nobody[outcome]
	}
	if counter != nil {
		counter.Inc()
	}
}

const (
	// maxSaid bounds what is logged of a name that a proxy gave, in bytes.
	maxSaid = 64
	// sayEvery is how often the same thing is logged.
	sayEvery = 10 * time.Minute
	// maxThings bounds the things of which it is known when they were logged.
	maxThings = 500
)

// said keeps the log short: the same thing is logged once in a while.
type said struct {
	now func() time.Time
	log *slog.Logger

	mu   sync.Mutex
	last map[string]time.Time
}

func (s *said) warn(ctx context.Context, thing, message string, args ...any) {
	now := s.now()
	s.mu.Lock()
	last, known := s.last[thing]
	if known && now.Sub(last) < sayEvery && !now.Before(last) || !known && len(s.last) >= maxThings {
		s.mu.Unlock()
		return
	}
	if s.last == nil {
		s.last = map[string]time.Time{}
	}
	s.last[thing] = now
	s.mu.Unlock()
	s.log.WarnContext(ctx, message, args...) //nolint:sloglint // a constant of whoever calls
}
