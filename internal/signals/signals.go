package signals

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/key"
)

// ErrConfig is wrapped by every error that New returns; the message names the
// field and the mend.
var ErrConfig = errors.New("invalid configuration of signals")

// Config is what New needs. Registry, Logger and Now are required.
type Config struct {
	// Registry receives all metrics, those of the process included. It must not
	// have metrics named keyturn_* already.
	Registry *prometheus.Registry
	Logger   *slog.Logger
	// Now is the clock.
	Now func() time.Time

	// Traces says where traces go; its zero value means nowhere.
	Traces Traces
	// Webhooks receive pages; names are unique.
	Webhooks []Webhook
	// Ledger keeps which pages were sent, so that of several servers on one store one
	// sends each. Nil: this one sends all. Alertmanagers get all from each server:
	// they put together what is the same.
	Ledger Ledger
	// Runbooks is the address that the file name of a runbook is appended to.
	// Default: DefaultRunbooks.
	Runbooks string
	// Connected returns the number of connected parties; nil leaves the metric out.
	Connected func() int

	// MaxKeys bounds the values of the label "key", and with it the number of
	// series. What belongs to further keys is counted under "other".
	// Default: 10,000.
	MaxKeys int
	// Queue is how many notices of the engine may wait. Default: 32,768.
	Queue int
	// Every is how often gauges are read from the engine without anything having
	// happened. Default: 30 s.
	Every time.Duration
	// RegionBehind is after how long a region that a rotation waits for pages; in an
	// emergency a fifth of it. Default: 5 minutes.
	RegionBehind time.Duration
}

// DefaultRunbooks is where the runbooks of the project are published.
const DefaultRunbooks = "https://github.com/keyturn/keyturn/blob/main/docs/runbooks/"

// Ledger is kept by all servers on one store together. Its methods may be called
// concurrently.
type Ledger interface {
	// TakePage reports whether this server is to deliver a message now. If not,
	// another one has delivered it (sent), or is about to.
	TakePage(ctx context.Context, id string) (mine, sent bool, err error)
	// PageSent notes that a message that was taken was delivered.
	PageSent(ctx context.Context, id string) error
}

// Source is what gauges and unfinished traces are read from; *engine.Engine is
// one. Its methods may be called concurrently.
type Source interface {
	Changed(ctx context.Context, after uint64, limit int) (list []engine.KeyState, next uint64, err error)
	Rotation(ctx context.Context, id key.RotationID) (engine.RotationView, error)
	Timeline(ctx context.Context, id key.RotationID) ([]engine.Moved, error)
}

// Signals observes an engine. Its methods may be called concurrently.
type Signals struct {
	config  Config
	metrics *metrics
	tracer  *tracer
	pager   *pager
	log     *slog.Logger

	queue chan notice
	// news asks for the gauges to be read soon.
	news chan struct{}
	view atomic.Pointer[view]
	// found are sweeps for the worker.
	found chan *view

	// The worker alone uses what follows.
	source  Source
	tracks  *tracks
	waiting *waiting

	mu      sync.Mutex
	started bool
	stop    chan struct{}
	stopped chan struct{}
	running sync.WaitGroup
}

// notice is one of *engine.Moved, *engine.Attempted and *Sample.
type notice any

// New checks config and registers the metrics. Errors wrap ErrConfig. Until
// Start, what is observed waits in the queue.
func New(config Config) (*Signals, error) {
	if config.Registry == nil || config.Logger == nil || config.Now == nil {
		return nil, fmt.Errorf("%w: Registry, Logger and Now are required", ErrConfig)
	}
	config.Runbooks = orDefault(config.Runbooks, DefaultRunbooks)
	config.MaxKeys = orDefault(config.MaxKeys, 10_000)
	config.Queue = orDefault(config.Queue, 32_768)
	config.Every = orDefault(config.Every, 30*time.Second)
	config.RegionBehind = orDefault(config.RegionBehind, 5*time.Minute)
	s := &Signals{
		config: config, log: config.Logger,
		queue: make(chan notice, config.Queue), news: make(chan struct{}, 1), found: make(chan *view),
		tracks: newTracks(), waiting: newWaiting(),
		stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	s.metrics = newMetrics(config.MaxKeys)
	all := append(s.metrics.collectors(), &gauges{view: &s.view, now: config.Now, maxKeys: config.MaxKeys},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if config.Connected != nil {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "keyturn_connected_parties", Help: "Parties connected to this server node.",
		}, func() float64 { return float64(config.Connected()) }))
	}
	for _, c := range all {
		if err := config.Registry.Register(c); err != nil && !errors.As(err, new(prometheus.AlreadyRegisteredError)) {
			return nil, fmt.Errorf("%w: Registry: %w; give each server a registry of its own", ErrConfig, err)
		}
	}
	var err error
	if s.tracer, err = newTracer(config.Traces, s.metrics, s.log); err != nil {
		return nil, err
	}
	if s.pager, err = newPager(config, s.metrics); err != nil {
		return nil, err
	}
	return s, nil
}

func orDefault[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// Handler serves the metrics in the format that the client asks for. It is
// OpenMetrics with exemplars (rotation IDs) where the client can read it.
func (s *Signals) Handler() http.Handler {
	return promhttp.HandlerFor(s.config.Registry, promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: 8})
}

// Moved implements engine.Observer.
func (s *Signals) Moved(moved engine.Moved) { s.tell("moved", &moved) }

// Attempted implements engine.Observer.
func (s *Signals) Attempted(attempted engine.Attempted) { s.tell("attempted", &attempted) }

// Sample is what a presenter reported about its use of a key since its last report.
type Sample struct {
	Key key.Name
	// Cohort is the presenter's cohort or the name of its stage; it may be empty.
	Cohort       string
	Attempts     uint64
	AuthFailures uint64
}

// Sampled counts what a presenter reported. It does not block.
func (s *Signals) Sampled(sample Sample) { s.tell("sampled", &sample) }

func (s *Signals) tell(kind string, n notice) {
	select {
	case s.queue <- n:
	default:
		s.metrics.dropped.WithLabelValues(kind).Inc()
	}
}

// Start begins to handle what is observed; source may be nil, then there are no
// gauges of keys and rotations, and no spans of phases that began before the
// start. Calling it again does nothing.
func (s *Signals) Start(ctx context.Context, source Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		return
	}
	s.started, s.source = true, source
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	if err := s.tracer.start(ctx); err != nil {
		s.log.LogAttrs(ctx, slog.LevelError, "traces cannot be delivered", slog.Any("error", err))
	}
	s.running.Go(func() {
		defer cancel()
		s.handleAll(ctx)
	})
	if source != nil {
		s.running.Go(func() { s.sweepAll(ctx, source) })
	}
	s.pager.start(ctx)
}

// Stop handles what is queued, makes a last attempt to deliver pages and spans,
// and returns when all is done or ctx ends. What is observed afterwards is lost.
// Calling it again does nothing. The error says what could not be delivered.
func (s *Signals) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.stop:
		return nil
	default:
	}
	close(s.stop)
	if s.started {
		go func() {
			s.running.Wait()
			close(s.stopped)
		}()
		select {
		case <-s.stopped:
		case <-ctx.Done():
			return fmt.Errorf("stop signals: %w", ctx.Err())
		}
	}
	return errors.Join(s.pager.stop(ctx), s.tracer.stop(ctx))
}

// handleAll handles notices in the order in which they were told.
func (s *Signals) handleAll(ctx context.Context) {
	for open := true; open; {
		select {
		case n := <-s.queue:
			s.handle(ctx, n)
		case found := <-s.found:
			s.tracks.keep(found.open, found.busy, found.began)
			s.waiting.forget(found.began)
			s.pager.reconcile(found.holds, found.began)
		case <-s.stop:
			open = false
		}
	}
	for {
		select {
		case n := <-s.queue:
			s.handle(ctx, n)
		default:
			return
		}
	}
}

func (s *Signals) handle(ctx context.Context, n notice) {
	switch n := n.(type) {
	case *engine.Moved:
		s.moved(ctx, n)
	case *engine.Attempted:
		s.attempted(ctx, n)
	case *Sample:
		s.metrics.sampled(n, s.tracks.rotating(n.Key, s.config.Now()))
	}
}
