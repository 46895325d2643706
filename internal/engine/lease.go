package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

// leased is a job that this node holds the lease of.
type leased struct {
	store.Job
	// at is when it was claimed, or a little earlier, by the clock of this process.
	at time.Time
}

// lease claims jobs in a transaction, as claimFree says.
func (e *Engine) lease(ctx context.Context, tx store.Tx, now time.Time, free, ordinary int) ([]leased, error) {
	at := e.config.Monotonic()
	jobs, err := e.claimFree(ctx, tx, now, free, ordinary)
	list := make([]leased, len(jobs))
	for i, job := range jobs {
		list[i] = leased{Job: job, at: at}
	}
	return list, err
}

// heldLeases are those of the effects that are carried out here.
type heldLeases struct {
	mu   sync.Mutex
	held map[*heldLease]struct{}
}

type heldLease struct {
	id    string
	fence uint64
	// cut ends the effect when the lease was not renewed in time.
	cut  *time.Timer
	lose context.CancelCauseFunc
}

// The reasons for which an effect is cut short.
var (
	errLeaseLost = fmt.Errorf("%w: another server node has taken the effect over", store.ErrFenced)
	errNotKept   = errors.New("the lease could not be renewed in time; the store does not answer")
)

// usable is the part of a lease during which its effect may run. The rest is what
// a call that was cut short may take to end.
func (e *Engine) usable() time.Duration { return e.config.Lease * 2 / 3 }

// hold returns the context of one try of an effect. It ends when the try has
// taken too long, or when the lease was lost or could not be renewed in time: no
// effect outlives its lease. Until release is called the lease is renewed.
func (e *Engine) hold(ctx context.Context, job leased) (_ context.Context, release func()) {
	ctx, lose := context.WithCancelCause(ctx)
	ctx, cancel := context.WithTimeout(ctx, e.config.EffectTime)
	h := &heldLease{id: job.ID, fence: job.Fence, lose: lose}
	h.cut = time.AfterFunc(e.usable()-e.config.Monotonic().Sub(job.at), func() { lose(errNotKept) })
	l := &e.held
	l.mu.Lock()
	if l.held == nil {
		l.held = map[*heldLease]struct{}{}
	}
	l.held[h] = struct{}{}
	l.mu.Unlock()
	drop := func() {
		l.mu.Lock()
		delete(l.held, h)
		l.mu.Unlock()
		h.cut.Stop()
	}
	// What heeds no context must not keep its lease for ever.
	stop := context.AfterFunc(ctx, drop)
	return ctx, func() {
		stop()
		drop()
		cancel()
		lose(nil)
	}
}

// all returns them in the order in which they were claimed.
func (l *heldLeases) all() []*heldLease {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]*heldLease, 0, len(l.held))
	for h := range l.held {
		list = append(list, h)
	}
	slices.SortFunc(list, func(a, b *heldLease) int { return cmp.Compare(a.fence, b.fence) })
	return list
}

// keepLeases renews the leases of the effects that run here, until ctx ends.
func (e *Engine) keepLeases(ctx context.Context) {
	again := time.NewTimer(e.config.Lease / 4)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-again.C:
		}
		if list := e.held.all(); len(list) > 0 {
			if err := e.renew(ctx, list); err != nil && ctx.Err() == nil {
				e.log.WarnContext(ctx, "the leases of effects could not be renewed; trying again", "effects", len(list), "error", err)
			}
		}
		again.Reset(e.config.Lease / 4)
	}
}

// renew renews leases in one transaction. One that was lost ends its effect.
func (e *Engine) renew(ctx context.Context, list []*heldLease) error {
	// Without an answer by then the effects have been cut short already.
	ctx, cancel := context.WithTimeout(ctx, e.usable())
	defer cancel()
	var began time.Time
	var lost []*heldLease
	err := e.store.Update(ctx, func(tx store.Tx) error {
		began, lost = e.config.Monotonic(), nil
		until := e.now().Add(e.config.Lease)
		for _, h := range list {
			err := tx.Leases.Renew(ctx, h.id, h.fence, until)
			switch {
			case errors.Is(err, store.ErrFenced):
				lost = append(lost, h)
			case err != nil:
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	e.held.mu.Lock()
	defer e.held.mu.Unlock()
	for _, h := range list {
		if _, held := e.held.held[h]; held {
			h.cut.Reset(e.usable() - e.config.Monotonic().Sub(began))
		}
	}
	for _, h := range lost {
		h.lose(errLeaseLost)
	}
	return nil
}
