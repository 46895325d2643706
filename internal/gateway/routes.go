package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/keyturn/keyturn/client/tokencheck"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/gateway/forward"
	"github.com/keyturn/keyturn/internal/ingress"
)

// maxBody is the largest request, in bytes: that of a client with as many keys as it may
// have.
const maxBody = 4 << 20

// pollTimeout bounds a poll, which may wait for a minute.
const pollTimeout = 90 * time.Second

// routes are what is answered: to the region, with TLS, and to proxies on this machine,
// without; local is nil if there is no address for them.
type routes struct{ region, local http.Handler }

// localKey marks requests that came to the address for this machine.
type localKey struct{}

func (g *Gateway) routes(ctx context.Context) (routes, error) {
	gate := ingress.NewGate(ingress.GateConfig{
		Tokens: ingress.Rate{PerSecond: g.config.Limits.PerSecond, Burst: g.config.Limits.Burst}, MaxBody: maxBody, Now: g.now, Tally: g.tally,
		Times: map[string]time.Duration{keyturnv1connect.DeliveryServiceWatchProcedure: 0, keyturnv1connect.DeliveryServicePollProcedure: pollTimeout},
	})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { ingress.AnswerHealth(w, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { ingress.AnswerHealth(w, g.ready()) })
	if g.relay != nil {
		path, handler := keyturnv1connect.NewDeliveryServiceHandler(g.relay, deliveryOptions())
		mux.Handle(path, admitted(gate, handler))
	}
	if !g.config.serves(ServeAPIKeys) {
		return routes{region: gate.Wrap(mux)}, nil
	}
	asked, err := g.newForward(ctx)
	if err != nil {
		return routes{}, err
	}
	handler := gate.Wrap(asked.Handler(mux))
	all := routes{region: handler}
	if g.config.Forward.Listen != "" {
		all.local = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), localKey{}, true)))
		})
	}
	return all, nil
}

// newForward makes what answers proxies.
func (g *Gateway) newForward(ctx context.Context) (*forward.Service, error) {
	settings := &g.config.Forward.Settings
	tokens := map[string]forward.Tokens{}
	for name, one := range settings.Tokens {
		config := one.Checker()
		config.Logger, config.Now, config.Report = g.log, g.now, g.token
		if config.CACertFile == "" {
			config.CACertFile = g.config.Centre.CAFile
		}
		verifier := openLate(ctx, func(ctx context.Context) (*tokencheck.Checker, error) { return tokencheck.Open(ctx, config) })
		g.accessTokens[name] = accessTokens{verifier}
		tokens[name] = accessTokens{verifier}
	}
	proxies, err := forward.NewProxyTokens(forward.ProxyTokensConfig{Files: settings.ProxyTokenFiles, Now: g.now, Logger: g.log})
	if err != nil {
		return nil, fmt.Errorf("forward.proxyTokenFiles: %w", err)
	}
	return forward.New(forward.Config{
		Settings: *settings, Keys: g.apiKeys, Tokens: tokens, Logger: g.log, Now: g.now, Metrics: g.metrics.registry,
		Caller: func(r *http.Request) error {
			if r.Context().Value(localKey{}) != nil {
				return nil // whoever reaches the address may ask
			}
			return proxies.Caller(r)
		},
	})
}

// errNotReady is why a gateway does not serve yet.
var errNotReady = errors.New("the centre has not answered yet, and the cache is empty; the log says why")

// ready reports whether there is something to serve by.
func (g *Gateway) ready() error {
	if g.apiKeys.late != nil && g.apiKeys.value.Load() == nil {
		return errNotReady
	}
	if g.relay != nil {
		if stats := g.relay.Stats(); !stats.Up && stats.Keys == 0 {
			return errNotReady
		}
	}
	return nil
}
