package server_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	served "github.com/keyturn/keyturn/internal/compat/jwks"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/internal/sim/memstore"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providertest"
)

// silentStore is a store that can stop answering.
type silentStore struct {
	store.Store
	mu     sync.RWMutex
	silent chan struct{}
}

func (s *silentStore) wait(ctx context.Context) error {
	s.mu.RLock()
	silent := s.silent
	s.mu.RUnlock()
	if silent == nil {
		return nil
	}
	select {
	case <-silent:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *silentStore) View(ctx context.Context, fn func(store.Tx) error) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.Store.View(ctx, fn)
}

func (s *silentStore) Update(ctx context.Context, fn func(store.Tx) error) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.Store.Update(ctx, fn)
}

// silence makes the store silent until restore is called.
func (s *silentStore) silence() (restore func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	silent := make(chan struct{})
	s.silent = silent
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		close(silent)
		s.silent = nil
	})
}

// reader is a verifier that keeps the set it fetched for as long as it may, and
// fetches it again for a key that it does not know.
type reader struct {
	url    string
	client *http.Client

	mu     sync.Mutex
	keys   jose.JSONWebKeySet
	silent chan struct{}
}

func (r *reader) fetch() {
	response, err := r.client.Get(r.url)
	if err != nil {
		return
	}
	defer response.Body.Close()
	var keys jose.JSONWebKeySet
	if response.StatusCode == http.StatusOK && readJSON(response, &keys) == nil {
		r.keys = keys
	}
}

func (r *reader) accepts(compact string) bool {
	parsed, err := jwt.ParseSigned(compact, []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256})
	if err != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fetch() // the strictest of readers
	var claims jwt.Claims
	return parsed.Claims(&r.keys, &claims) == nil && claims.Validate(jwt.Expected{Time: time.Now()}) == nil
}

func (r *reader) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	r.mu.Lock()
	silent := r.silent
	r.mu.Unlock()
	if silent != nil {
		select {
		case <-silent:
		case <-request.Context().Done():
		}
		return
	}
	const bearer = len("Bearer ")
	if header := request.Header.Get("Authorization"); len(header) <= bearer || !r.accepts(header[bearer:]) {
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// TestSigningKeysConform runs the suite of providers on published keys: the set for
// everybody, a verifier that is told by what it fetched, and one that is tried.
func TestSigningKeysConform(t *testing.T) {
	providertest.Run(t, func(t *testing.T) providertest.Target {
		t.Parallel()
		quiet := &silentStore{Store: memstore.New()}
		board := token.NewBoard(token.BoardConfig{
			Store: quiet, Logger: slog.New(slog.DiscardHandler), Now: time.Now, Node: "one", Skew: 10 * time.Millisecond, Flush: 10 * time.Millisecond,
		})
		if err := board.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { board.Stop(context.Background()) })
		sets := served.New(served.Config{Board: board})
		published := httptest.NewServer(sets)
		t.Cleanup(published.Close)
		tried := &reader{url: published.URL + "/orders/.well-known/jwks/tried.json", client: published.Client()}
		api := httptest.NewServer(tried)
		t.Cleanup(api.Close)
		return providertest.Target{
			Driver: server.SigningKeys(board, sets, time.Now), Key: "prod/orders/tokens", Within: 10 * time.Second,
			Config: provider.Config{
				"issuer": published.URL + "/orders", "algorithm": "ES256", "tokenLife": "2s", "cacheLife": "1s", "audience": "orders",
				"verifiers": []any{
					map[string]any{"name": "untried", "region": "eu"},
					map[string]any{"name": "tried", "region": "us", "probe": map[string]any{"url": api.URL}},
				},
			},
			Silence: func(_ *testing.T, _ string) func() {
				restore := quiet.silence()
				tried.mu.Lock()
				defer tried.mu.Unlock()
				silent := make(chan struct{})
				tried.silent = silent
				return sync.OnceFunc(func() {
					restore()
					tried.mu.Lock()
					defer tried.mu.Unlock()
					close(silent)
					tried.silent = nil
				})
			},
		}
	})
}
