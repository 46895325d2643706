package server

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/keyturn/keyturn/internal/engine"
)

// telemetry is what the server tells about itself.
type telemetry struct {
	registry *prometheus.Registry
}

func newTelemetry(_ *Config, _ *slog.Logger, _ func() time.Time) (*telemetry, error) {
	return &telemetry{registry: prometheus.NewRegistry()}, nil
}

func (t *telemetry) observer() engine.Observer { return discard{} }

func (t *telemetry) handler() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

func (t *telemetry) stop(context.Context) error { return nil }

type discard struct{}

func (discard) Moved(engine.Moved)         {}
func (discard) Attempted(engine.Attempted) {}
