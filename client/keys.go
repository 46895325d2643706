package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keyturn/keyturn/key"
)

// Keys keeps handles current in the background. It is safe for concurrent use.
type Keys struct {
	client  *Client
	handles map[key.Name]*Handle
	samples *samples
	refresh chan struct{}
	stop    context.CancelFunc
	group   sync.WaitGroup

	mu     sync.Mutex
	status Status
	news   chan struct{} // closed and replaced at every status
	once   sync.Once
}

// Open connects as cfg.Party, waits until it holds a version of each key, and
// keeps them current until Close. While the server is away it keeps trying until
// ctx ends; an error that will not pass by itself (see Status.Permanent) ends
// the wait at once.
//
// The error wraps ErrConfig, or one of the errors of the connection, and names
// the keys that are missing. ctx bounds only the wait.
func Open(ctx context.Context, cfg Config, names ...key.Name) (*Keys, error) {
	known := make([]Known, len(names))
	for i, name := range names {
		known[i].Key = name
	}
	if err := checkKnown(known); err != nil {
		return nil, err
	}
	k := &Keys{
		handles: make(map[key.Name]*Handle, len(names)),
		samples: newSamples(), refresh: make(chan struct{}, 1), news: make(chan struct{}),
	}
	for _, name := range names {
		k.handles[name] = newHandle(name, k.samples, k.refresh)
	}
	tell := cfg.OnStatus
	cfg.OnStatus = func(s Status) {
		k.setStatus(s)
		if tell != nil {
			tell(s)
		}
	}
	var err error
	if k.client, err = New(cfg); err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	k.stop = stop
	k.group.Go(func() { _ = k.client.watch(running, known, k.take, k.refresh) }) // it ends with running only
	k.group.Go(func() { k.report(running) })
	if err := k.waitForAll(ctx); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// Key returns the handle of a key that was given to Open, and nil for another.
func (k *Keys) Key(name key.Name) *Handle { return k.handles[name] }

// Party returns who presents the keys, with its defaults filled in.
func (k *Keys) Party() Party { return k.client.Party() }

// Status returns the state of the connection.
func (k *Keys) Status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.status
}

// Close stops the background work and waits for it: at most a few seconds, for
// the last outcomes and samples. A party of KindClient also leaves, so that no
// rotation waits for it. The handles keep their last version; their channels
// close. Close may be called more than once.
func (k *Keys) Close() {
	k.once.Do(func() {
		k.stop()
		k.group.Wait()
		for _, h := range k.handles {
			h.close()
		}
		ctx, cancel := context.WithTimeout(context.Background(), flushTimeout) //nolint:forbidigo // Close takes none
		defer cancel()
		if k.client.Party().Kind == KindClient && k.Status().Mode != 0 {
			if err := k.client.Leave(ctx); err != nil {
				k.client.cfg.Logger.Debug("could not leave; the server will forget the party by itself", "error", err)
			}
		}
		k.client.wire.renew() // closes idle connections
	})
}

func (k *Keys) setStatus(s Status) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.status = s
	close(k.news)
	k.news = make(chan struct{})
}

// take hands each assignment of a batch to its handle. Keys do not wait for
// each other's appliers.
func (k *Keys) take(ctx context.Context, batch []Assignment) []Outcome {
	ctx, cancel := context.WithTimeout(ctx, k.client.cfg.ApplyTimeout)
	defer cancel()
	outcomes := make([]Outcome, len(batch))
	var group sync.WaitGroup
	for i, a := range batch {
		group.Go(func() { outcomes[i] = k.handles[a.Key].take(ctx, a) })
	}
	group.Wait()
	for _, o := range outcomes {
		if o.Code == Failed {
			// The server gets the reason, cleaned of secrets.
			k.client.cfg.Logger.WarnContext(ctx, "a new version was not accepted; the old one stays",
				"key", o.Key.String(), "version", uint64(o.Version), "using", uint64(o.Using))
		}
	}
	return outcomes
}

func (k *Keys) waitForAll(ctx context.Context) error {
	for {
		k.mu.Lock()
		status, news := k.status, k.news
		k.mu.Unlock()
		missing, changed := k.missing()
		if len(missing) == 0 {
			return nil
		}
		if status.Permanent {
			return fmt.Errorf("open keys %s: %w", strings.Join(missing, ", "), status.Err)
		}
		select {
		case <-changed:
		case <-news:
		case <-ctx.Done():
			if missing, _ = k.missing(); len(missing) == 0 {
				return nil
			}
			return fmt.Errorf("open keys: nothing came for %s: %w", strings.Join(missing, ", "), errors.Join(ctx.Err(), status.Err))
		}
	}
}

// missing returns the keys without a version, and a channel that is closed when
// one of them gets one.
func (k *Keys) missing() ([]string, <-chan struct{}) {
	var names []string
	var changed <-chan struct{}
	for _, h := range k.handles {
		h.mu.Lock()
		if h.current.IsZero() {
			names = append(names, h.name.String())
			changed = h.changed
		}
		h.mu.Unlock()
	}
	slices.Sort(names)
	return names, changed
}

// report sends the samples every Config.ReportInterval, and the rest at the end.
func (k *Keys) report(ctx context.Context) {
	ticker := time.NewTicker(k.client.cfg.ReportInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			// One that was cut off might have arrived, and would be counted twice.
			sending, cancel := outlive(ctx, flushTimeout)
			k.reportOnce(sending)
			cancel()
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
			k.reportOnce(last)
			cancel()
			return
		}
	}
}

// outlive returns a context that ends d after another one.
func outlive(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-longer.Done():
		}
	})
	return longer, func() { stop(); cancel() }
}

func (k *Keys) reportOnce(ctx context.Context) {
	taken := k.samples.take()
	for chunk := range slices.Chunk(taken, MaxKeys) {
		err := k.client.Report(ctx, chunk)
		switch {
		case err == nil:
		case errors.Is(err, ErrRequest):
			k.client.cfg.Logger.WarnContext(ctx, "the server does not take samples; they are dropped", "error", err)
		default:
			k.samples.putBack(chunk)
			k.client.cfg.Logger.DebugContext(ctx, "samples wait for the next report", "error", err)
		}
	}
}
