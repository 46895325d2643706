package signals_test

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/signals"
)

// Signals are made before the engine, which they observe, and started with it.
func Example() {
	s, err := signals.New(signals.Config{
		Registry: prometheus.NewRegistry(),
		Logger:   slog.New(slog.DiscardHandler),
		Now:      time.Now,
		Traces:   signals.Traces{Endpoint: "https://collector.example:4318"},
		Webhooks: []signals.Webhook{
			{Name: "alertmanager", URL: "https://alerts.example", Format: signals.Alertmanager},
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = engine.Config{Observer: s}
	// With the engine at hand:
	//   s.Start(ctx, engine)
	//   mux.Handle("/metrics", s.Handler())
	//   defer s.Stop(ctx)
	fmt.Println(s.Stop(context.Background()))
	// Output: <nil>
}
