package forward_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyturn/keyturn/client/apikeycheck"
	"github.com/keyturn/keyturn/client/tokencheck"
	"github.com/keyturn/keyturn/internal/gateway/forward"
)

// world is a service whose keys and tokens are known by their text, and what it was asked.
type world struct {
	*forward.Service
	registry *prometheus.Registry
	log      bytes.Buffer

	mu sync.Mutex
	// asked are the keys and tokens that were verified, from where.
	asked []string
	shown []tokencheck.Shown
	// stranger: callers are refused.
	stranger bool
}

// Check implements forward.Keys.
func (w *world) Check(text, address string) (apikeycheck.Result, error) {
	w.mu.Lock()
	w.asked = append(w.asked, text+" from "+address)
	w.mu.Unlock()
	return w.Identify(text)
}

// Identify implements forward.Keys.
func (*world) Identify(text string) (apikeycheck.Result, error) {
	acme := apikeycheck.Result{Key: "partners/acme", Version: 7, Client: "Zürich 100%", Scopes: []string{"orders:read", "orders:list"}, Left: -1}
	switch text {
	case "kt_good":
		return acme, nil
	case "kt_bare":
		acme.Scopes = nil
		return acme, nil
	case "kt_internal":
		acme.Key = "internal/cron"
		return acme, nil
	case "kt_often":
		acme.Left, acme.Retry = 0, 1500*time.Millisecond
		return acme, apikeycheck.ErrLimited
	case "kt_unsure":
		return apikeycheck.Result{}, apikeycheck.ErrUnsure
	case "kt_broken":
		return apikeycheck.Result{}, errors.New("out of order")
	}
	return apikeycheck.Result{}, apikeycheck.ErrRefused
}

// tokens implements forward.Tokens.
type tokens struct{ *world }

// Check implements forward.Tokens.
func (w tokens) Check(ctx context.Context, shown *tokencheck.Shown) (tokencheck.Claims, error) {
	w.mu.Lock()
	w.asked = append(w.asked, shown.Token+" from "+shown.Address)
	w.shown = append(w.shown, *shown)
	w.mu.Unlock()
	if _, ok := ctx.Deadline(); !ok {
		return tokencheck.Claims{}, errors.New("nobody bounds the check of a token")
	}
	app := tokencheck.Claims{Client: "app", Subject: "user\r\n7", Scopes: []string{"orders:read"}}
	switch shown.Token {
	case "g.oo.d", "b.oun.d":
		return app, nil
	case "o.the.r":
		app.Client = "other"
		return app, nil
	case "b.ar.e":
		app.Scopes = nil
		return app, nil
	case "n.onc.e":
		return tokencheck.Claims{}, tokencheck.ErrNonce
	case "u.nsur.e":
		return tokencheck.Claims{}, tokencheck.ErrUnsure
	case "b.roke.n":
		return tokencheck.Claims{}, errors.New("out of order")
	}
	return tokencheck.Claims{}, tokencheck.ErrRefused
}

// Nonce implements forward.Tokens.
func (tokens) Nonce() string { return "the-nonce" }

func settings() forward.Settings {
	return forward.Settings{
		TrustedProxies: []string{"127.0.0.1", "10.0.0.0/8", "2001:db8:1::/48"},
		Tokens:         map[string]forward.TokensConfig{"orders": {Issuer: "https://keyturn.example.com/issuers/apps", Audience: "orders"}},
		Gates: map[string]forward.GateConfig{
			"both":   {Keys: []string{"partners/**"}, Tokens: "orders", Clients: []string{"app"}, Scopes: []string{"orders:read"}},
			"keys":   {Keys: []string{"partners/*"}, Scopes: []string{"orders:read", "orders:list"}},
			"open":   {Keys: []string{"**"}},
			"tokens": {Tokens: "orders", RequestURL: "x-forwarded"},
			"nginx":  {Keys: []string{"partners/**"}, Tokens: "orders", Scopes: []string{"orders:read"}, RequestURL: "x-original", Only401And403: true},
			"real":   {Keys: []string{"**"}, ClientAddress: "X-Real-IP"},
			"none":   {Keys: []string{"**"}, ClientAddress: "none"},
		},
	}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{registry: prometheus.NewRegistry()}
	service, err := forward.New(forward.Config{
		Settings: settings(), Keys: w, Tokens: map[string]forward.Tokens{"orders": tokens{w}},
		Caller: func(*http.Request) error {
			if w.stranger {
				return errors.New("a stranger")
			}
			return nil
		},
		Logger: slog.New(slog.NewTextHandler(&w.log, nil)), Now: time.Now, Metrics: w.registry,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Service = service
	return w
}

// handler answers what the service does not with 418.
func (w *world) handler() http.Handler {
	return w.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
}

// ask asks as a proxy at 127.0.0.1 does. Headers are name and value in turn.
func (w *world) ask(t testing.TB, path string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody)
	r.RemoteAddr = "127.0.0.1:5000"
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	answer := httptest.NewRecorder()
	w.handler().ServeHTTP(answer, r)
	return answer
}
