package tokencheck_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/client/tokencheck"
)

const (
	issuerURL = "https://keys.example.com/orders"
	audience  = "orders"
)

// signer is a key of the issuer.
type signer struct {
	kid     string
	alg     jose.SignatureAlgorithm
	private any
	public  any
}

func edSigner(tb testing.TB, kid string) signer {
	tb.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return signer{kid, jose.EdDSA, private, public}
}

func ecSigner(tb testing.TB, kid string) signer {
	tb.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return signer{kid, jose.ES256, private, private.Public()}
}

func claimsOf(now time.Time) map[string]any {
	return map[string]any{
		"iss": issuerURL, "aud": []string{audience, "billing"}, "sub": "deploy/repo", "jti": "one", "client_id": "deploy", "scope": "orders:read orders:write",
		"iat": now.Unix(), "nbf": now.Unix() - 10, "exp": now.Unix() + 300,
	}
}

// sign signs claims with headers.
func (s signer) sign(tb testing.TB, claims map[string]any, header map[string]any) string {
	tb.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		tb.Fatal(err)
	}
	return s.signRaw(tb, payload, header)
}

func (s signer) signRaw(tb testing.TB, payload []byte, header map[string]any) string {
	tb.Helper()
	options := (&jose.SignerOptions{}).WithType("at+jwt")
	for name, value := range header {
		options = options.WithHeader(jose.HeaderKey(name), value)
	}
	made, err := jose.NewSigner(jose.SigningKey{Algorithm: s.alg, Key: jose.JSONWebKey{Key: s.private, KeyID: s.kid}}, options)
	if err != nil {
		tb.Fatal(err)
	}
	signed, err := made.Sign(payload)
	if err != nil {
		tb.Fatal(err)
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		tb.Fatal(err)
	}
	return compact
}

// board publishes keys, without a network.
type board struct {
	mu      sync.Mutex
	keys    []jose.JSONWebKey
	maxAge  time.Duration
	down    bool
	hangs   bool
	fetches []time.Time
	matched int
	urls    []string
}

func (b *board) publish(list ...signer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keys = nil
	for _, s := range list {
		b.keys = append(b.keys, jose.JSONWebKey{Key: s.public, KeyID: s.kid, Algorithm: string(s.alg), Use: "sig"})
	}
}

func (b *board) set(change func(*board)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(b)
}

func (b *board) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.fetches)
}

func (b *board) RoundTrip(r *http.Request) (*http.Response, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fetches, b.urls = append(b.fetches, time.Now()), append(b.urls, r.URL.String())
	if b.hangs {
		b.mu.Unlock()
		<-r.Context().Done()
		b.mu.Lock()
		return nil, r.Context().Err()
	}
	if b.down {
		return nil, errors.New("connection refused")
	}
	body, err := json.Marshal(jose.JSONWebKeySet{Keys: b.keys})
	if err != nil {
		return nil, err
	}
	tag := fmt.Sprintf(`"%d"`, len(body)+len(b.keys))
	for _, k := range b.keys {
		tag = tag[:len(tag)-1] + k.KeyID + `"`
	}
	response := &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Header: http.Header{}, Body: io.NopCloser(strings.NewReader(string(body)))}
	response.Header.Set("Cache-Control", fmt.Sprintf("private, max-age=%d, must-revalidate", int(b.maxAge.Seconds())))
	response.Header.Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		b.matched++
		response.StatusCode, response.Body = http.StatusNotModified, http.NoBody
	}
	return response, nil
}

func newBoard(list ...signer) *board {
	b := &board{maxAge: 5 * time.Minute}
	b.publish(list...)
	return b
}

func (b *board) config() tokencheck.Config {
	return tokencheck.Config{
		Issuer: issuerURL, Audience: audience, Reader: "orders-api", HTTPClient: &http.Client{Transport: b}, Origins: []string{"https://orders.example.com"},
	}
}

func (b *board) open(tb testing.TB, change func(*tokencheck.Config)) *tokencheck.Checker {
	tb.Helper()
	config := b.config()
	if change != nil {
		change(&config)
	}
	c, err := tokencheck.Open(tb.Context(), config)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

// with are claims that differ in one.
func with(now time.Time, name string, value any) map[string]any {
	c := maps.Clone(claimsOf(now))
	if value == nil {
		delete(c, name)
	} else {
		c[name] = value
	}
	return c
}
