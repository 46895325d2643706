package server

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

const (
	// clockEvery is how often the clock of the store is asked; within it two nodes
	// drift apart by less than a millisecond.
	clockEvery = 10 * time.Second
	// clockWithin bounds one question. An answer that took longer than clockExact
	// says too little.
	clockWithin = 5 * time.Second
	clockExact  = 500 * time.Millisecond
	// clockTold is the difference from which on an operator is told.
	clockTold = 2 * time.Second
)

// clock is the time that this node goes by: its own clock, set by that of the
// store, so that nodes on one store agree on it, to within the time that a
// question takes. Leases, windows and bakes are measured by it.
type clock struct {
	own    func() time.Time
	store  store.Clock
	log    *slog.Logger
	offset atomic.Int64
	told   time.Duration
}

// newClock returns a clock that was set once, if the store has one.
func newClock(ctx context.Context, own func() time.Time, s store.Store, log *slog.Logger) *clock {
	c := &clock{own: own, log: log}
	if c.store, _ = s.(store.Clock); c.store != nil {
		c.set(ctx)
	}
	return c
}

// Now is the present time.
func (c *clock) Now() time.Time { return c.own().Add(time.Duration(c.offset.Load())) }

// run keeps the clock set until ctx ends. While the store does not answer, it
// goes on as it was set last.
func (c *clock) run(ctx context.Context) {
	if c.store == nil {
		return
	}
	ticker := time.NewTicker(clockEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		c.set(ctx)
	}
}

func (c *clock) set(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, clockWithin)
	defer cancel()
	asked, sent := c.own(), time.Now()
	at, err := c.store.Clock(ctx)
	took := time.Since(sent)
	if err != nil || took > clockExact {
		return
	}
	offset := at.Sub(asked.Add(took / 2))
	if (offset - time.Duration(c.offset.Load())).Abs() > took/2 {
		c.offset.Store(int64(offset))
	}
	if offset.Abs() >= clockTold && (offset-c.told).Abs() >= clockTold {
		c.told = offset
		c.log.WarnContext(ctx, "this machine's clock differs from the store's; the store's counts, but certificates go by this one: set it right",
			"store_is_ahead_by", offset.Round(time.Millisecond))
	}
}
