package signals

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Traces says where traces go, over OTLP (HTTP, protobuf).
type Traces struct {
	// Endpoint is the address of the collector, for example
	// "https://collector.example:4318"; "/v1/traces" is appended to an address
	// without a path. Empty: no traces.
	Endpoint string
	// Insecure allows an http:// address.
	Insecure bool
	// Client sends the requests; it may add credentials. Default: one that verifies
	// the collector by the system's authorities.
	Client *http.Client
	// Version is the server's version, an attribute of every trace.
	Version string
	// Queue is how many spans may wait for the collector. Default: 8,192.
	Queue int
}

// tracer turns what happened into spans. Without an endpoint it does nothing.
type tracer struct {
	collector *otlptrace.Exporter
	provider  *sdktrace.TracerProvider
	tracer    trace.Tracer
	metrics   *metrics
}

func newTracer(config Traces, m *metrics, log *slog.Logger) (*tracer, error) {
	if config.Endpoint == "" {
		return &tracer{}, nil
	}
	endpoint, err := endpointOf(config)
	if err != nil {
		return nil, err
	}
	options := []otlptracehttp.Option{
		otlptracehttp.WithEndpointURL(endpoint), otlptracehttp.WithTimeout(10 * time.Second), otlptracehttp.WithCompression(otlptracehttp.GzipCompression),
	}
	if config.Client != nil {
		options = append(options, otlptracehttp.WithHTTPClient(config.Client))
	}
	collector := otlptracehttp.NewUnstarted(options...)
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.AlwaysSample()),
		sdktrace.WithIDGenerator(chosenIDs{}),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "keyturn"), attribute.String("service.version", config.Version))),
		sdktrace.WithBatcher(&exporter{SpanExporter: collector, metrics: m, log: log},
			sdktrace.WithMaxQueueSize(orDefault(config.Queue, 8192)), sdktrace.WithBatchTimeout(time.Second)),
	)
	return &tracer{collector: collector, provider: provider, tracer: provider.Tracer("github.com/keyturn/keyturn"), metrics: m}, nil
}

// enabled reports whether anybody gets the spans.
func (t *tracer) enabled() bool { return t.provider != nil }

func (t *tracer) start(ctx context.Context) error {
	if t.provider == nil {
		return nil
	}
	return t.collector.Start(ctx)
}

// stop delivers what waits.
func (t *tracer) stop(ctx context.Context) error {
	if t.provider == nil {
		return nil
	}
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("deliver traces: %w", err)
	}
	return nil
}

// exporter counts what becomes of spans. It keeps failures from the telemetry
// library, which would print them, and logs the first of a row.
type exporter struct {
	sdktrace.SpanExporter

	metrics *metrics
	log     *slog.Logger
	failing atomic.Bool
}

// ExportSpans implements sdktrace.SpanExporter.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	if err != nil {
		e.metrics.spans.WithLabelValues("failed").Add(float64(len(spans)))
		if !e.failing.Swap(true) {
			e.log.LogAttrs(ctx, slog.LevelWarn, "traces could not be delivered; spans are lost until the collector answers", slog.Any("error", err))
		}
		return nil
	}
	e.metrics.spans.WithLabelValues("exported").Add(float64(len(spans)))
	if e.failing.Swap(false) {
		e.log.LogAttrs(ctx, slog.LevelInfo, "traces are delivered again")
	}
	return nil
}

// endpointOf checks the address of the collector.
func endpointOf(config Traces) (string, error) {
	u, err := url.Parse(config.Endpoint)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("%w: Traces.Endpoint %q is not an address; write for example https://collector.example:4318", ErrConfig, config.Endpoint)
	}
	switch {
	case u.User != nil:
		return "", fmt.Errorf("%w: Traces.Endpoint holds credentials; send them by Traces.Client", ErrConfig)
	case u.Scheme == "https", u.Scheme == "http" && config.Insecure:
	case u.Scheme == "http":
		return "", fmt.Errorf("%w: Traces.Endpoint %q is not encrypted; use https://, or set Insecure", ErrConfig, u.Redacted())
	default:
		return "", fmt.Errorf("%w: Traces.Endpoint %q must begin with https://", ErrConfig, u.Redacted())
	}
	if strings.Trim(u.Path, "/") == "" {
		u.Path = "/v1/traces"
	}
	return u.String(), nil
}
