package jwks_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/internal/compat/jwks"
	"github.com/keyturn/keyturn/internal/sim/memstore"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/key"
)

const (
	orders    = key.Name("prod/orders/tokens")
	publicSet = "/orders/.well-known/jwks.json"
	ownSet    = "/orders/.well-known/jwks/api.json"
)

// noted is a board that notes what counts as fetched.
type noted struct {
	*token.Board

	fetched int
	away    bool
}

func (n *noted) Find(path string) (*token.Page, error) {
	if n.away {
		return nil, token.ErrNotReady
	}
	return n.Board.Find(path)
}

func (n *noted) Fetched(page *token.Page, address netip.Addr) {
	n.fetched++
	n.Board.Fetched(page, address)
}

// published is a board with two versions of a key.
func published(t *testing.T) *noted {
	t.Helper()
	b := token.NewBoard(token.BoardConfig{Store: memstore.New(), Logger: slog.New(slog.DiscardHandler), Now: time.Now, Node: "one"})
	for v := key.Version(1); v <= 2; v++ {
		public, _, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		jwk, err := jose.JSONWebKey{Key: public, KeyID: v.String(), Algorithm: "EdDSA", Use: "sig"}.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		for _, endpoint := range []string{token.Published, "api"} {
			if _, err := b.Change(t.Context(), token.Change{
				Key: orders, Endpoint: endpoint, Version: v, Listed: true, Fence: uint64(v), Attributes: map[string]string{"kid": v.String(), "alg": "EdDSA", "jwk": string(jwk)},
				Issuer: "https://keys.example.com/orders", TokenLife: time.Minute, CacheLife: time.Minute, Endpoints: []string{token.Published, "api"},
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Stop(t.Context()) })
	return &noted{Board: b}
}

// cut is a connection that ends in the middle of an answer.
type cut struct{ *httptest.ResponseRecorder }

func (c cut) Write(p []byte) (int, error) { return len(p) / 2, errors.New("connection reset") }

// TestWhatCountsAsFetched: a set that was delivered in full, or that its reader holds;
// nothing else. The newest version is told with each.
func TestWhatCountsAsFetched(t *testing.T) {
	n := published(t)
	told := ""
	handler := jwks.New(jwks.Config{Board: n, Fetched: func(name key.Name, newest key.Version) { told = fmt.Sprint(name, " ", newest) }})
	ask := func(w http.ResponseWriter, method, path, tag string) {
		t.Helper()
		n.fetched, told = 0, ""
		r := httptest.NewRequestWithContext(t.Context(), method, "https://keys.example.com"+path, http.NoBody)
		if tag != "" {
			r.Header.Set("If-None-Match", tag)
		}
		handler.ServeHTTP(w, r)
	}
	wants := func(what string, fetched int, newest string) {
		t.Helper()
		if n.fetched != fetched || told != newest {
			t.Errorf("%s: fetched %d times, told %q", what, n.fetched, told)
		}
	}
	const newest = "prod/orders/tokens v2"
	w := httptest.NewRecorder()
	ask(w, http.MethodGet, ownSet, "")
	wants("a verifier's set", 1, newest)
	tag := w.Header().Get("ETag")
	ask(httptest.NewRecorder(), http.MethodGet, ownSet, tag)
	wants("one that it holds", 1, newest)
	ask(httptest.NewRecorder(), http.MethodHead, ownSet, tag)
	wants("HEAD", 0, "")
	ask(httptest.NewRecorder(), http.MethodHead, ownSet, "")
	wants("HEAD of a set that it does not hold", 0, "")
	ask(cut{httptest.NewRecorder()}, http.MethodGet, ownSet, "")
	wants("half a set", 0, "")
	ask(httptest.NewRecorder(), http.MethodGet, publicSet, "")
	wants("the set for everybody", 0, newest)
	ask(httptest.NewRecorder(), http.MethodPost, ownSet, "")
	wants("POST", 0, "")
	ask(httptest.NewRecorder(), http.MethodGet, "/orders/.well-known/openid-configuration", "")
	wants("metadata", 0, "")
	n.away = true
	w = httptest.NewRecorder()
	ask(w, http.MethodGet, ownSet, tag)
	wants("a set that nobody can vouch for", 0, "")
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}
