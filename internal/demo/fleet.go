package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/key"
)

// fleet is the applications and what they saw.
type fleet struct {
	requests, failures atomic.Int64

	// broken: the canaries fail their health check with any version newer than it;
	// 0 while they are well.
	broken  atomic.Uint64
	outside atomic.Int64

	stop    context.CancelFunc
	running sync.WaitGroup
	closing sync.Once
	apps    []*app

	mu     sync.Mutex
	delays []time.Duration
	errors []string
}

// app is one application.
type app struct {
	id, cohort, region string
	keys               *client.Keys
	handle             *client.Handle
	user               user
}

func startFleet(ctx context.Context, o *operator, target target, size int) (*fleet, error) {
	token, err := o.fleetToken(ctx)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	f := &fleet{stop: stop}
	for i := range size {
		a := &app{
			id: fmt.Sprintf("demo/app-%02d", i+1), cohort: []string{"canary", "canary", "wave", "wave", "wave", "rest"}[min(i, 5)],
			region: []string{"eu", "us"}[i%2],
		}
		a.keys, err = client.Open(ctx, client.Config{
			Address: o.server.Address(), Token: client.StaticToken(token), RootCAs: o.roots, ReportInterval: 200 * time.Millisecond,
			Party: client.Party{ID: a.id, Kind: client.KindClient, Region: a.region, Labels: map[string]string{"cohort": a.cohort}},
		}, keyName)
		if err != nil {
			f.close()
			return nil, fmt.Errorf("start application %s: %w", a.id, err)
		}
		a.handle = a.keys.Key(keyName)
		a.user = target.user(a)
		a.handle.OnApply(func(_ context.Context, next client.Credential) error { return f.check(a, next) })
		f.apps = append(f.apps, a)
		f.running.Go(func() { f.work(ctx, a) })
	}
	return f, nil
}

// check is the application's health check with a new version.
func (f *fleet) check(a *app, next client.Credential) error {
	if from := key.Version(f.broken.Load()); from != 0 && next.Version > from {
		if a.cohort == "canary" {
			return errors.New("health check failed: 503 from /healthz")
		}
		f.outside.Add(1)
	}
	if !next.PublishedAt.IsZero() {
		f.mu.Lock()
		f.delays = append(f.delays, time.Since(next.PublishedAt))
		f.mu.Unlock()
	}
	return nil
}

// work makes requests until ctx ends.
func (f *fleet) work(ctx context.Context, a *app) {
	for ctx.Err() == nil {
		err := a.user.request(ctx)
		if ctx.Err() != nil {
			return
		}
		f.requests.Add(1)
		if err != nil {
			f.failures.Add(1)
			f.mu.Lock()
			if len(f.errors) < 5 {
				f.errors = append(f.errors, a.id+": "+err.Error())
			}
			f.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// breakCanary makes the canaries fail with every newer version.
func (f *fleet) breakCanary() {
	newest := key.Version(0)
	for _, a := range f.apps {
		newest = max(newest, a.handle.Current().Version)
	}
	f.outside.Store(0)
	f.broken.Store(uint64(newest))
}

func (f *fleet) mendCanary() { f.broken.Store(0) }

// toldWhileBroken is how many applications outside the canary were given a
// version that the canary failed with.
func (f *fleet) toldWhileBroken() int64 { return f.outside.Load() }

// versions counts the applications by the version they use.
func (f *fleet) versions() map[key.Version]int {
	counts := map[key.Version]int{}
	for _, a := range f.apps {
		counts[a.handle.Current().Version]++
	}
	return counts
}

// propagation is the given quantile of the delays, in milliseconds, and how many
// there were.
func (f *fleet) propagation(quantile float64) (ms float64, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.delays) == 0 {
		return 0, 0
	}
	sorted := slices.Sorted(slices.Values(f.delays))
	i := min(int(quantile*float64(len(sorted))), len(sorted)-1)
	return float64(sorted[i].Microseconds()) / 1000, len(sorted)
}

func (f *fleet) firstErrors() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.errors)
}

// close ends the load and then the applications.
func (f *fleet) close() {
	f.closing.Do(func() {
		f.stop()
		f.running.Wait()
		for _, a := range f.apps {
			a.user.close()
			a.keys.Close()
		}
	})
}
