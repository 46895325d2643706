package bench

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/internal/compat/jwks"
	"github.com/keyturn/keyturn/internal/sim/memstore"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

const (
	benchTokens = key.Name("bench/tokens")
	// tokenRounds is how often ours and the floor take turns, each for tokenTime of
	// the processor.
	tokenRounds = 7
	tokenTime   = 300 * time.Millisecond
)

// BenchmarkTokens measures how many tokens are signed in a second of the processor,
// against signing the same claims with the same library alone; and how many sets
// are served, against a handler that writes the same bytes.
func BenchmarkTokens(b *testing.B) {
	for _, algorithm := range []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256, jose.RS256} {
		b.Run(string(algorithm), func(b *testing.B) { issue(b, algorithm) })
	}
	b.Run("jwks", serveSets)
}

func issue(b *testing.B, algorithm jose.SignatureAlgorithm) {
	signer, board, private := signing(b, algorithm)
	request := token.Request{
		Key: benchTokens, Subject: "system:serviceaccount:orders:api", Audience: []string{"https://orders.example.com"},
		Claims: map[string]any{"scope": "orders:read orders:write", "client_id": "orders-api"},
	}
	ours := func() error {
		_, err := signer.Sign(context.Background(), request)
		return err
	}
	signed, err := signer.Sign(context.Background(), request)
	if err != nil {
		b.Fatal(err)
	}
	claims, err := board.Verify(benchTokens, signed.Compact.RevealString(), token.Expect{})
	if err != nil {
		b.Fatal(err)
	}
	payload, err := json.Marshal(claims.All)
	if err != nil {
		b.Fatal(err)
	}
	bare, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: jose.JSONWebKey{Key: private, KeyID: "bench"}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		b.Fatal(err)
	}
	floor := func() error {
		object, err := bare.Sign(payload)
		if err != nil {
			return err
		}
		_, err = object.CompactSerialize()
		return err
	}
	name := "token_issue_" + string(algorithm)
	perSecond, floorPerSecond := compared(b, ours, floor)
	scoreboard.add(b, result{Name: name, Unit: "per-cpu-s", Ours: perSecond, Floor: floorPerSecond, limit: 0.7 * floorPerSecond, more: true})
	verify := func() error {
		_, err := board.Verify(benchTokens, signed.Compact.RevealString(), token.Expect{})
		return err
	}
	public := private.Public()
	compact := signed.Compact.RevealString()
	bareVerify := func() error {
		parsed, err := jose.ParseSignedCompact(compact, []jose.SignatureAlgorithm{algorithm})
		if err != nil {
			return err
		}
		_, err = parsed.Verify(public)
		return err
	}
	perSecond, floorPerSecond = compared(b, verify, bareVerify)
	scoreboard.add(b, result{Name: "token_verify_" + string(algorithm), Unit: "per-cpu-s", Ours: perSecond, Floor: floorPerSecond, limit: 0.7 * floorPerSecond, more: true})
}

// compared lets ours and the floor take turns, and returns the medians of how often
// each ran in a second of the processor.
func compared(b *testing.B, ours, floor func() error) (perSecond, floorPerSecond float64) {
	b.Helper()
	var a, f []time.Duration
	for range tokenRounds {
		a, f = append(a, costOf(b, ours)), append(f, costOf(b, floor))
	}
	return float64(time.Second) / float64(median(a)), float64(time.Second) / float64(median(f))
}

// costOf is what one call costs of the processor.
func costOf(b *testing.B, call func() error) time.Duration {
	b.Helper()
	began, n := cpu(b), 0
	for {
		for range 50 {
			if err := call(); err != nil {
				b.Fatal(err)
			}
			n++
		}
		if used := cpu(b) - began; used >= tokenTime {
			return used / time.Duration(n)
		}
	}
}

// told is a session that told the signer once.
type told struct{ assignments chan token.Assignment }

func (s told) Next(ctx context.Context, _ time.Duration) ([]token.Assignment, error) {
	select {
	case assignment := <-s.assignments:
		return []token.Assignment{assignment}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (told) Acknowledge(context.Context, []token.Outcome) error { return nil }

func (told) Close() {}

// signing starts a signer with one key.
func signing(b *testing.B, algorithm jose.SignatureAlgorithm) (*token.Signer, *token.Board, crypto.Signer) {
	b.Helper()
	private := keyFor(b, algorithm)
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		b.Fatal(err)
	}
	public, err := jose.JSONWebKey{Key: private.Public(), KeyID: "bench", Algorithm: string(algorithm), Use: "sig"}.MarshalJSON()
	if err != nil {
		b.Fatal(err)
	}
	material := provider.Material{
		Attributes: map[string]string{"kid": "bench", "alg": string(algorithm), "jwk": string(public)},
		Secrets:    map[string]secret.Value{"privateKey": secret.New(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}))},
	}
	store, log := memstore.New(), slog.New(slog.DiscardHandler)
	board := token.NewBoard(token.BoardConfig{Store: store, Logger: log, Now: time.Now, Node: "bench"})
	if err := board.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { board.Stop(context.Background()) })
	if _, err := board.Change(b.Context(), token.Change{
		Key: benchTokens, Endpoint: token.Published, Version: 1, Listed: true, Fence: 1, Attributes: material.Attributes,
		Issuer: "https://keys.example.com/bench", TokenLife: 15 * time.Minute, CacheLife: 5 * time.Minute, Endpoints: []string{token.Published},
	}); err != nil {
		b.Fatal(err)
	}
	session := told{assignments: make(chan token.Assignment, 1)}
	session.assignments <- token.Assignment{Key: benchTokens, Version: 1, Epoch: 1, Material: material}
	signer := token.NewSigner(token.SignerConfig{
		Store: store, Board: board, Logger: log, Now: time.Now, Node: "bench",
		Connect: func(context.Context, []token.Holding) (token.Session, error) { return session, nil },
	})
	signer.Start(b.Context())
	b.Cleanup(func() { signer.Stop(context.Background()) })
	ready := time.NewTicker(time.Millisecond)
	defer ready.Stop()
	deadline := time.After(10 * time.Second)
	for {
		_, err := signer.Sign(b.Context(), token.Request{Key: benchTokens})
		if err == nil {
			return signer, board, private
		}
		if !errors.Is(err, token.ErrNotReady) {
			b.Fatal(err)
		}
		select {
		case <-ready.C:
		case <-deadline:
			b.Fatal("the signer is never ready")
		}
	}
}

func keyFor(b *testing.B, algorithm jose.SignatureAlgorithm) (private crypto.Signer) {
	b.Helper()
	makers := map[jose.SignatureAlgorithm]func() (crypto.Signer, error){
		jose.EdDSA: func() (crypto.Signer, error) {
			_, private, err := ed25519.GenerateKey(rand.Reader)
			return private, err
		},
		jose.ES256: func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) },
		jose.RS256: func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) },
	}
	private, err := makers[algorithm]()
	if err != nil {
		b.Fatal(err)
	}
	return private
}

// serveSets measures fetches over HTTP, with the client in the same process: both
// pay for it.
func serveSets(b *testing.B) {
	_, board, _ := signing(b, jose.EdDSA)
	const path = "/bench/.well-known/jwks.json"
	page, err := board.Find(path)
	if err != nil {
		b.Fatal(err)
	}
	ours := fetching(b, jwks.New(jwks.Config{Board: board}), path)
	floor := fetching(b, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", page.Type)
		_, _ = w.Write(page.Body)
	}), path)
	perSecond, floorPerSecond := compared(b, ours, floor)
	scoreboard.add(b, result{Name: "jwks_served", Unit: "per-cpu-s", Ours: perSecond, Floor: floorPerSecond, limit: 0.7 * floorPerSecond, more: true})
}

func fetching(b *testing.B, handler http.Handler, path string) func() error {
	server := httptest.NewServer(handler)
	b.Cleanup(server.Close)
	return func() error {
		response, err := server.Client().Get(server.URL + path)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		var body [1 << 14]byte
		n, _ := response.Body.Read(body[:]) // a set is one piece
		if response.StatusCode != http.StatusOK || n == 0 {
			return fmt.Errorf("answered with %s", response.Status)
		}
		_, _ = response.Body.Read(body[:]) // the end, so that the connection is used again
		return nil
	}
}
