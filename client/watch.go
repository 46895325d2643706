package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// flushTimeout bounds the last try to send outcomes when a Watch ends.
const flushTimeout = 2 * time.Second

// HandleFunc takes assignments into use and returns one outcome for each. The
// keys that changed together arrive in one call; calls never overlap. What
// arrives in the meantime is collected, and of each key only the newest is
// handed over next. An assignment without an outcome is not acknowledged; use
// [Client.Ack] later. The handler's ctx ends with that of Watch.
type HandleFunc func(ctx context.Context, assignments []Assignment) []Outcome

// Watch hands every change of the known keys to handle, which runs in the
// calling goroutine, and acknowledges the outcomes. It blocks until ctx ends,
// sends what is left to acknowledge for at most 2 s, and returns the error of
// ctx. Before it connects it may return an error that wraps ErrConfig: no key,
// more than MaxKeys, one twice or with an invalid name.
//
// It reconnects for ever. It prefers a stream; where streams do not get through
// it falls back to long polls and then to plain polls, and tries the stream
// again from time to time. Config.OnStatus is told of every change.
//
// An assignment whose epoch equals the known one is handed over only when the
// server insists on it, which means that it lacks the acknowledgement.
func (c *Client) Watch(ctx context.Context, known []Known, handle HandleFunc) error {
	if err := checkKnown(known); err != nil {
		return err
	}
	return c.watch(ctx, known, handle, nil)
}

// watch is Watch with a channel by which the caller asks for an extra poll.
func (c *Client) watch(ctx context.Context, known []Known, handle HandleFunc, refresh <-chan struct{}) error {
	w := &watcher{client: c, box: newInbox(known), handle: handle, secrets: make(map[key.Name]map[string]secret.Value)}
	defer c.open(w.box)()
	running, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { newLink(c, w.box, refresh).run(running) })
	group.Go(func() { c.acknowledge(running) })
	defer func() {
		stop()
		group.Wait()
		c.flushAtEnd(ctx)
	}()
	w.run(running)
	return ctx.Err()
}

func checkKnown(known []Known) error {
	if len(known) == 0 {
		return fmt.Errorf("%w: there is no key to watch", ErrConfig)
	}
	if len(known) > MaxKeys {
		return fmt.Errorf("%w: %d keys to watch, at most %d are allowed; use several parties", ErrConfig, len(known), MaxKeys)
	}
	seen := make(map[key.Name]bool, len(known))
	for _, k := range known {
		if _, err := key.ParseName(k.Key.String()); err != nil {
			return fmt.Errorf("%w: %w", ErrConfig, err)
		}
		if seen[k.Key] {
			return fmt.Errorf("%w: key %s is named twice", ErrConfig, k.Key)
		}
		seen[k.Key] = true
	}
	return nil
}

// watcher hands what is in the inbox to the handler.
type watcher struct {
	client *Client
	box    *inbox
	handle HandleFunc
	// secrets are those of each key's latest two assignments, under distinct
	// names: details are cleaned of them.
	secrets map[key.Name]map[string]secret.Value
}

func (w *watcher) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.box.wake:
		}
		batch := w.box.take()
		if len(batch) == 0 || ctx.Err() != nil {
			continue
		}
		w.remember(batch)
		outcomes := w.check(batch, w.handle(ctx, batch))
		for _, o := range outcomes {
			w.box.done(o)
		}
		if _, err := w.client.acks.add(outcomes, nil); err != nil {
			w.client.cfg.Logger.ErrorContext(ctx, "outcomes are not acknowledged", "error", err)
		}
	}
}

func (w *watcher) remember(batch []Assignment) {
	for _, a := range batch {
		kept := make(map[string]secret.Value, 2*len(a.Secrets))
		for field, value := range w.secrets[a.Key] {
			if previous, old := cutPrevious(field); !old {
				kept[previous] = value
			}
		}
		for field, value := range a.Secrets {
			kept[field] = value
		}
		w.secrets[a.Key] = kept
	}
}

// check drops outcomes that belong to no assignment of the batch, fills in what
// the handler may leave out, and cleans the details.
func (w *watcher) check(batch []Assignment, outcomes []Outcome) []Outcome {
	byKey := make(map[key.Name]Assignment, len(batch))
	for _, a := range batch {
		byKey[a.Key] = a
	}
	kept := make([]Outcome, 0, len(outcomes))
	for _, o := range outcomes {
		a, found := byKey[o.Key]
		if o.Epoch == 0 && o.Version == 0 {
			o.Epoch, o.Version = a.Epoch, a.Version
		}
		if !found || o.Epoch != a.Epoch || o.Version != a.Version || checkOutcome(o) != nil {
			w.client.cfg.Logger.Error("the handler returned an outcome of no assignment; it is dropped",
				"key", o.Key.String(), "version", uint64(o.Version), "epoch", o.Epoch, "code", o.Code.String())
			continue
		}
		if o.Code == Applied && o.Using == 0 {
			o.Using = o.Version
		}
		o.Detail = scrub(o.Detail, w.secrets[o.Key])
		o.order = w.client.number()
		kept = append(kept, o)
	}
	return kept
}

const previousPrefix = "previous\x00"

// cutPrevious returns the name under which a field of the last assignment is
// kept on, and whether the field already belongs to the one before.
func cutPrevious(field string) (string, bool) {
	if len(field) >= len(previousPrefix) && field[:len(previousPrefix)] == previousPrefix {
		return field, true
	}
	return previousPrefix + field, false
}

// acknowledge sends queued outcomes until ctx ends.
func (c *Client) acknowledge(ctx context.Context) {
	for attempt := 0; ctx.Err() == nil; {
		if c.acks.empty() {
			attempt = 0
			select {
			case <-ctx.Done():
			case <-c.acks.wake:
			}
			continue
		}
		if wait := c.acks.hold(); wait > 0 {
			c.waitFor(ctx, wait)
			continue
		}
		err := c.acks.flush(ctx)
		if err == nil {
			attempt = 0
			continue
		}
		if ctx.Err() != nil {
			return
		}
		attempt++
		wait := c.retryIn(err, attempt)
		c.cfg.Logger.WarnContext(ctx, "outcomes are not acknowledged yet", "attempt", attempt, "retry_in", wait, "error", err)
		if c.waitOrNew(ctx, wait) {
			attempt = min(attempt, 1)
		}
	}
}

// waitOrNew waits for d. A new outcome ends the wait early when it is long.
func (c *Client) waitOrNew(ctx context.Context, d time.Duration) bool {
	short := min(d, time.Second)
	if sleep(ctx, short) != nil || d == short {
		return false
	}
	timer := time.NewTimer(d - short)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-c.acks.wake:
		return true
	}
	return false
}

// waitFor waits for d, or until a new outcome is there.
func (c *Client) waitFor(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-c.acks.wake:
	}
}

func (c *Client) flushAtEnd(ctx context.Context) {
	if c.acks.empty() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	if err := c.acks.flush(ctx); err != nil && !errors.Is(err, context.Canceled) {
		c.cfg.Logger.WarnContext(ctx, "the watch ended before all outcomes were acknowledged", "error", err)
	}
}
