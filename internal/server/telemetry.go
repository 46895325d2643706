package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/signals"
)

// examineEvery is how often the server compares its histories with its states
// and with the audit log, for the metric of the log's completeness.
const examineEvery = 15 * time.Minute

// telemetry is what the server tells about itself.
type telemetry struct {
	*signals.Signals
	log     *slog.Logger
	cancel  context.CancelFunc
	running sync.WaitGroup
}

func newTelemetry(config *Config, log *slog.Logger, now func() time.Time, connected func() int, pages signals.Ledger) (*telemetry, error) {
	insecure := config.Telemetry.Insecure
	var webhooks []signals.Webhook
	for i, address := range config.Telemetry.Pages {
		webhooks = append(webhooks, signals.Webhook{Name: fmt.Sprintf("page-%d", i+1), URL: address, Format: signals.Generic, Insecure: insecure})
	}
	for i, address := range config.Telemetry.Alertmanagers {
		webhooks = append(webhooks, signals.Webhook{Name: fmt.Sprintf("alertmanager-%d", i+1), URL: address, Format: signals.Alertmanager, Insecure: insecure})
	}
	observed, err := signals.New(signals.Config{
		Registry: prometheus.NewRegistry(), Logger: log, Now: now, Webhooks: webhooks, Ledger: pages, Connected: connected, RegionBehind: config.Telemetry.RegionBehind,
		Traces: signals.Traces{Endpoint: config.Telemetry.Traces, Insecure: insecure},
	})
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	return &telemetry{Signals: observed, log: log}, nil
}

// start begins to observe the engine.
func (t *telemetry) start(ctx context.Context, e *engine.Engine, source signals.Source) {
	t.Start(ctx, source)
	ctx, t.cancel = context.WithCancel(context.WithoutCancel(ctx))
	t.running.Go(func() { t.examine(ctx, e) })
}

// examineSpacing keeps examinations from taking more than one part in so many of
// a processor, however many histories there are.
const examineSpacing = 50

// examine has the engine examined from time to time, until ctx ends.
func (t *telemetry) examine(ctx context.Context, e *engine.Engine) {
	timer := time.NewTimer(examineEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began := time.Now()
		checks, err := e.Doctor(ctx)
		timer.Reset(max(examineEvery, examineSpacing*time.Since(began)))
		if err != nil {
			if ctx.Err() == nil {
				t.log.ErrorContext(ctx, "the histories could not be examined; trying again", "error", err)
			}
			continue
		}
		t.Examined(checks)
	}
}

func (t *telemetry) handler() http.Handler { return t.Handler() }

func (t *telemetry) stop(ctx context.Context) error {
	if t.cancel != nil {
		t.cancel()
	}
	t.running.Wait()
	return t.Stop(ctx)
}

// ledger is the engine's list of pages, under the name of this node.
type ledger struct {
	server *Server
	node   string
}

// TakePage implements signals.Ledger.
func (l *ledger) TakePage(ctx context.Context, id string) (mine, sent bool, err error) {
	return l.server.engine.TakePage(ctx, l.node, id)
}

// PageSent implements signals.Ledger.
func (l *ledger) PageSent(ctx context.Context, id string) error {
	return l.server.engine.PageSent(ctx, l.node, id)
}
