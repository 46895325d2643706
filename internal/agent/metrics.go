package agent

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"github.com/keyturn/keyturn/internal/agent/metadata"
)

// metrics are what an agent counts. What its labels may say is fixed: forms, results,
// and the names of tokens of the configuration.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
}

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry(), requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keyturn_agent_token_requests_total", Help: "Requests of processes for tokens, by form (session, token, google, azure, other) and result: ok, or why it was refused.",
	}, []string{"form", "result"})}
	m.registry.MustRegister(m.requests)
	return m
}

func (m *metrics) answered(form metadata.Form, result metadata.Result) {
	m.requests.WithLabelValues(string(form), string(result)).Inc()
}

// holds tells until when a token is held that processes may ask for.
func (m *metrics) holds(name string, expires func() time.Time) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keyturn_agent_token_expires_seconds", Help: "When the token ends that the agent holds for processes, by its name: Unix time; 0 while it holds none.",
		ConstLabels: prometheus.Labels{"token": name},
	}, func() float64 {
		at := expires()
		if at.IsZero() {
			return 0
		}
		return float64(at.UnixMilli()) / 1000
	}))
}

const (
	maxScrapes    = 16
	scrapeTimeout = 10 * time.Second
)

// serve opens the address and answers there until ctx ends; what it returns waits for
// that.
func (m *metrics) serve(ctx context.Context, address string, deps Deps) (wait func(), err error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%w: listen for metrics: %w", ErrConfig, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes, Timeout: scrapeTimeout}))
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: scrapeTimeout, ReadTimeout: scrapeTimeout, WriteTimeout: 2 * scrapeTimeout, IdleTimeout: time.Minute,
		MaxHeaderBytes: 8 << 10, ErrorLog: log.New(io.Discard, "", 0),
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := server.Serve(netutil.LimitListener(listener, maxScrapes)); ctx.Err() == nil {
			deps.Logger.ErrorContext(ctx, "metrics are served no more; restart the agent", "error", err)
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = server.Close() }) // a scrape that is cut off is repeated
	return func() {
		<-ended
		stop()
	}, nil
}

// isAddress reports whether a text is host and port; the host may be empty.
func isAddress(text string) bool {
	_, port, err := net.SplitHostPort(text)
	if err != nil {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}
