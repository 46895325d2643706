package agent

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/agent/run"
	"github.com/keyturn/keyturn/key"
)

// linger is how long samples are collected before they are sent together.
const linger = 200 * time.Millisecond

// samples collects the results of health checks until the server has them.
type samples struct {
	// dirty has room for one token: there is something to send.
	dirty chan struct{}

	mu    sync.Mutex
	byKey map[key.Name]*tally
}

// tally is what has been found out about the version of a key.
type tally struct {
	version            key.Version
	attempts, failures uint64
	// unhealthy holds the last complaint of each target that is not well.
	unhealthy map[string]string
}

func newSamples() *samples {
	return &samples{dirty: make(chan struct{}, 1), byKey: make(map[key.Name]*tally)}
}

// add counts one check of a target for each of the versions that it presents.
func (s *samples) add(target string, versions map[key.Name]key.Version, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, v := range versions {
		t := s.byKey[k]
		if t == nil || t.version != v {
			t = &tally{version: v, unhealthy: make(map[string]string)}
			s.byKey[k] = t
		}
		t.attempts++
		delete(t.unhealthy, target)
		if err != nil {
			t.failures++
			t.unhealthy[target] = "target " + target + ": " + err.Error()
		}
	}
	signalOne(s.dirty)
}

// take returns what has not been sent; back puts it back.
func (s *samples) take() []client.Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []client.Sample
	for k, t := range s.byKey {
		if t.attempts == 0 {
			continue
		}
		sample := client.Sample{Key: k, Version: t.version, Attempts: t.attempts, AuthFailures: t.failures, Healthy: len(t.unhealthy) == 0}
		if !sample.Healthy {
			sample.Detail = t.unhealthy[slices.Min(slices.Collect(maps.Keys(t.unhealthy)))]
		}
		t.attempts, t.failures = 0, 0
		out = append(out, sample)
	}
	return out
}

func (s *samples) back(unsent []client.Sample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range unsent {
		if t := s.byKey[u.Key]; t != nil && t.version == u.Version {
			t.attempts += u.Attempts
			t.failures += u.AuthFailures
		}
	}
}

// send reports samples until ctx ends. What the server did not get is sent with
// the next ones.
func (s *samples) send(ctx context.Context, delivery Delivery, log *slog.Logger) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.dirty:
		}
		timer.Reset(linger)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		batch := s.take()
		if len(batch) == 0 {
			continue
		}
		if err := delivery.Report(ctx, batch); err != nil && ctx.Err() == nil {
			s.back(batch)
			log.DebugContext(ctx, "samples are sent with the next ones", "error", err)
		}
	}
}

// sample checks a target's health again and again until ctx ends.
func (w *worker) sample(ctx context.Context, t *target) {
	timer := time.NewTimer(w.sampleIn(t))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.changed:
		case <-timer.C:
			w.sampleOnce(ctx, t)
		}
		timer.Reset(w.sampleIn(t))
	}
}

// sampleIn returns the time until the next check.
func (w *worker) sampleIn(t *target) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.now().Sub(t.changedAt) < t.cfg.Health.SampleFor {
		return t.cfg.Health.SampleEvery
	}
	return t.cfg.Health.SampleThen
}

// sampleOnce checks once. A result during which something was switched belongs
// to no version and is dropped.
func (w *worker) sampleOnce(ctx context.Context, t *target) {
	versions, redact, generation := w.presented(t)
	if len(versions) == 0 {
		return
	}
	err := t.cfg.Health.Once(ctx, redact)
	if ctx.Err() != nil || w.generation.Load() != generation {
		return
	}
	w.samples.add(t.cfg.Name, versions, err)
}

// presented returns the versions in the target's file; none while that is not settled.
func (w *worker) presented(t *target) (map[key.Name]key.Version, run.Redactor, uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	versions := make(map[key.Name]key.Version, len(t.keys))
	using := make(map[key.Name]client.Assignment, len(t.keys))
	for _, k := range t.keys {
		a, ok := w.applied[k]
		if !ok || t.unsettled {
			return nil, run.Redactor{}, 0
		}
		versions[k], using[k] = a.Version, a
	}
	return versions, redactor(using), w.generation.Load()
}
