package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/key"
)

// ErrClosed is returned by what waits on Keys that were closed.
var ErrClosed = errors.New("the keys are closed")

// undoTimeout bounds the appliers that are called with the current version again.
const undoTimeout = 10 * time.Second

// Applier tries a credential before it becomes current, for example by logging
// in with it. It may be called again for a credential it has seen, and must
// return when ctx ends. Its error goes to the server as the reason.
type Applier func(ctx context.Context, next Credential) error

// Handle holds the current version of one key. It is safe for concurrent use.
type Handle struct {
	name    key.Name
	samples *samples
	refresh chan<- struct{}

	mu       sync.Mutex
	current  Credential
	changed  chan struct{} // closed and replaced at every change
	closed   bool
	appliers []*Applier
	subs     []chan Credential
}

func newHandle(name key.Name, s *samples, refresh chan<- struct{}) *Handle {
	return &Handle{name: name, samples: s, refresh: refresh, changed: make(chan struct{})}
}

// Name returns the key's name.
func (h *Handle) Name() key.Name { return h.name }

// Current returns the version to present now. It never blocks, and never
// returns the zero Credential once Open has returned.
func (h *Handle) Current() Credential {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.current
}

// OnApply registers an applier. A new version becomes current only after every
// applier has accepted it, in the order of registration; otherwise the current
// version stays, the server is told that the new one failed, and the appliers
// that had accepted it are called with the current version again. All of them
// together have Config.ApplyTimeout. The applier is not called for the version
// that is current already. stop unregisters it.
func (h *Handle) OnApply(apply Applier) (stop func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	own := &apply
	h.appliers = append(h.appliers, own)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.appliers = slices.DeleteFunc(slices.Clone(h.appliers), func(a *Applier) bool { return a == own })
	}
}

// Changes returns a channel that gets each version that becomes current from
// now on. A slow reader misses versions in between, never the latest. The
// channel is closed by stop and by Keys.Close.
func (h *Handle) Changes() (changes <-chan Credential, stop func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	sub := make(chan Credential, 1)
	if h.closed {
		close(sub)
		return sub, func() {}
	}
	h.subs = append(h.subs, sub)
	return sub, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if i := slices.Index(h.subs, sub); i >= 0 {
			h.subs = slices.Delete(h.subs, i, i+1)
			close(sub)
		}
	}
}

// OnChange calls f with each version that becomes current from now on, one call
// at a time, in a goroutine of its own. When f is slow it misses versions in
// between, never the latest. After stop, which may be called within f, no new
// call begins.
func (h *Handle) OnChange(f func(Credential)) (stop func()) {
	changes, unsubscribe := h.Changes()
	done := make(chan struct{})
	go func() {
		for cred := range changes {
			select {
			case <-done:
				return
			default:
				f(cred)
			}
		}
	}()
	return sync.OnceFunc(func() { close(done); unsubscribe() })
}

// Wait returns once version is current. It returns the error of ctx, or ErrClosed.
func (h *Handle) Wait(ctx context.Context, version key.Version) (Credential, error) {
	return h.wait(ctx, func(c Credential) bool { return c.Version == version })
}

// WaitNewer returns the current credential once its epoch is greater than epoch.
// It returns the error of ctx, or ErrClosed.
func (h *Handle) WaitNewer(ctx context.Context, epoch uint64) (Credential, error) {
	return h.wait(ctx, func(c Credential) bool { return c.Epoch > epoch })
}

func (h *Handle) wait(ctx context.Context, enough func(Credential) bool) (Credential, error) {
	for {
		h.mu.Lock()
		current, changed, closed := h.current, h.changed, h.closed
		h.mu.Unlock()
		switch {
		case enough(current):
			return current, nil
		case closed:
			return Credential{}, ErrClosed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Credential{}, fmt.Errorf("wait for key %s, which is at %s: %w", h.name, current.Version, ctx.Err())
		}
	}
}

// Refresh asks the server, in the background and at most once a second, whether
// a newer version exists. Integrations call it when a credential is refused.
func (h *Handle) Refresh() {
	select {
	case h.refresh <- struct{}{}:
	default: // one is on its way
	}
}

// RecordUse counts one use of a version. The counts are reported to the server,
// which judges a rotation by them.
func (h *Handle) RecordUse(version key.Version, use Use) {
	h.samples.record(h.name, version, use)
}

// take offers an assignment to the appliers and makes it current when they
// accept. The handle's keeper calls it for one assignment at a time.
func (h *Handle) take(ctx context.Context, a Assignment) Outcome {
	next := NewCredential(a)
	h.mu.Lock()
	current, appliers := h.current, h.appliers
	h.mu.Unlock()

	out := Outcome{Key: a.Key, Version: a.Version, Epoch: a.Epoch, Code: Applied, Using: a.Version}
	if next.Version != current.Version {
		if err := tryAppliers(ctx, appliers, current, next); err != nil {
			out.Code, out.Using, out.Detail = Failed, current.Version, err.Error()
			return out
		}
	}
	h.set(next)
	return out
}

// tryAppliers offers next to each applier. After a refusal those that had
// accepted are offered the current version again.
func tryAppliers(ctx context.Context, appliers []*Applier, current, next Credential) error {
	for i, apply := range appliers {
		err := (*apply)(ctx, next)
		if err == nil {
			continue
		}
		if current.IsZero() {
			return err
		}
		return errors.Join(err, undoAppliers(ctx, appliers[:i], current))
	}
	return nil
}

// undoAppliers offers the current version again to those that accepted another.
// The time for it is their own: ctx may have ended already.
func undoAppliers(ctx context.Context, accepted []*Applier, current Credential) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var errs []error
	for _, apply := range slices.Backward(accepted) {
		if err := (*apply)(ctx, current); err != nil {
			errs = append(errs, fmt.Errorf("going back to %s: %w", current.Version, err))
		}
	}
	return errors.Join(errs...)
}

// set makes a credential current and tells everybody when the version changed.
func (h *Handle) set(next Credential) {
	h.mu.Lock()
	defer h.mu.Unlock()
	news := next.Version != h.current.Version
	h.current = next
	close(h.changed)
	h.changed = make(chan struct{})
	if !news || h.closed {
		return
	}
	for _, sub := range h.subs {
		select { // only this goroutine sends, so after the drain there is room
		case <-sub:
		default:
		}
		sub <- next
	}
}

func (h *Handle) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.closed = true
	close(h.changed)
	h.changed = make(chan struct{})
	for _, sub := range h.subs {
		close(sub)
	}
	h.subs = nil
}
