package server_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"
	"github.com/golang-jwt/jwt/v5"
	"github.com/lestrrat-go/httprc/v3"
	"github.com/lestrrat-go/jwx/v3/jwk"
	jwxjwt "github.com/lestrrat-go/jwx/v3/jwt"
)

// The readers of these tests are real libraries with caches of their own.

const audience = "orders"

// readersFetchEvery is shorter than the life of a set in caches, as it has to be:
// who fetches by the clock, and a little late, would hold a set too long.
const readersFetchEvery = 500 * time.Millisecond

// readers are what accepts tokens, by name.
type readers map[string]func(ctx context.Context, compact string) error

// oidcReader is go-oidc: it keeps a set for ever, and fetches it for a key that it
// does not know. Its probe is an API behind it.
func oidcReader(t *testing.T, client *http.Client, issuer, set string) (verify func(context.Context, string) error, probe string) {
	t.Helper()
	keys := oidc.NewRemoteKeySet(oidc.ClientContext(t.Context(), client), set)
	verifier := oidc.NewVerifier(issuer, keys, &oidc.Config{ClientID: audience, SupportedSigningAlgs: []string{"EdDSA", "ES256", "RS256", "PS256"}})
	verify = func(ctx context.Context, compact string) error {
		_, err := verifier.Verify(ctx, compact)
		return err
	}
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if verify(r.Context(), strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")) != nil {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(api.Close)
	return verify, api.URL
}

// golangReader is golang-jwt with keyfunc: it fetches the set by the clock.
func golangReader(t *testing.T, client *http.Client, issuer, set string) func(context.Context, string) error {
	t.Helper()
	keys, err := keyfunc.NewDefaultOverrideCtx(t.Context(), []string{set}, keyfunc.Override{Client: client, RefreshInterval: readersFetchEvery})
	if err != nil {
		t.Fatal(err)
	}
	parser := jwt.NewParser(jwt.WithIssuer(issuer), jwt.WithAudience(audience), jwt.WithExpirationRequired(), jwt.WithIssuedAt())
	return func(ctx context.Context, compact string) error {
		_, err := parser.Parse(compact, keys.KeyfuncCtx(ctx))
		return err
	}
}

// jwxReader is jwx: it fetches the set by the clock, and knows no other key.
func jwxReader(t *testing.T, client *http.Client, issuer, set string) func(context.Context, string) error {
	t.Helper()
	cache, err := jwk.NewCache(t.Context(), httprc.NewClient())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := cache.Register(ctx, set, jwk.WithConstantInterval(readersFetchEvery), jwk.WithHTTPClient(client)); err != nil {
		t.Fatal(err)
	}
	keys, err := cache.CachedSet(set)
	if err != nil {
		t.Fatal(err)
	}
	return func(_ context.Context, compact string) error {
		_, err := jwxjwt.Parse([]byte(compact), jwxjwt.WithKeySet(keys), jwxjwt.WithIssuer(issuer), jwxjwt.WithAudience(audience))
		return err
	}
}

// joseReader is go-jose with a cache that obeys Cache-Control, to the instant, and
// does not fetch for keys that it does not know.
type joseReader struct {
	client *http.Client
	issuer string
	set    string

	mu    sync.Mutex
	keys  *jose.JSONWebKeySet // replaced, and never changed
	etag  string
	until time.Time
}

func (r *joseReader) verify(ctx context.Context, compact string) error {
	keys, err := r.current(ctx)
	if err != nil {
		return err
	}
	parsed, err := josejwt.ParseSigned(compact, []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256, jose.RS256, jose.PS256})
	if err != nil {
		return err
	}
	var claims josejwt.Claims
	if err := parsed.Claims(keys, &claims); err != nil {
		return err
	}
	return claims.ValidateWithLeeway(josejwt.Expected{Issuer: r.issuer, AnyAudience: josejwt.Audience{audience}, Time: time.Now()}, 0)
}

func (r *joseReader) current(ctx context.Context) (*jose.JSONWebKeySet, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Now().Before(r.until) {
		return r.keys, nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.set, http.NoBody)
	if err != nil {
		return nil, err
	}
	if r.etag != "" {
		request.Header.Set("If-None-Match", r.etag)
	}
	asked := time.Now()
	response, err := r.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
		var keys jose.JSONWebKeySet
		if err := readJSON(response, &keys); err != nil {
			return nil, err
		}
		r.keys = &keys
	case http.StatusNotModified:
	default:
		return nil, fmt.Errorf("the set is answered with %s", response.Status)
	}
	_, life, ok := strings.Cut(response.Header.Get("Cache-Control"), "max-age=")
	seconds, err := strconv.Atoi(strings.Split(life, ",")[0])
	if !ok || err != nil {
		return nil, errors.New("the answer does not say how long it may be kept")
	}
	r.etag, r.until = response.Header.Get("ETag"), asked.Add(time.Duration(seconds)*time.Second)
	return r.keys, nil
}
