package server_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/key"
)

const ordersTokens = key.Name("prod/orders/tokens")

// signingDocuments are a policy and a signing key with three registered verifiers.
func signingDocuments(issuer, algorithm, probe string) string {
	return fmt.Sprintf(`
apiVersion: keyturn/v1
kind: Policy
metadata: {name: signing}
spec:
  rotate: {every: 90d}
  stages: [{name: all, bake: 0s, ackTimeout: 30s, onEmpty: skip}]
  drain: {min: 0s, quiet: 0s, max: 5m, every: 1s}
  quarantine: 1s
  retain: {destroyAfter: 0s}
  emergency: {strategy: replace-first, grace: 0s}
---
apiVersion: keyturn/v1
kind: Key
metadata: {name: %s}
spec:
  provider: jwks
  policy: signing
  config:
    issuer: %s
    algorithm: %s
    tokenLife: 30s
    cacheLife: 1s
    audience: orders
    verifiers:
      - {name: oidc, probe: {url: %q, accepted: [204], refused: [401]}}
      - {name: golang}
      - {name: jwx}
`, ordersTokens, issuer, algorithm, probe)
}

// until waits for a condition, for at most two minutes.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(2 * time.Minute)
	for !is() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("%s: it never came about", what)
		}
	}
}

func (w *world) rotation(t *testing.T, id string) *keyturnv1.Rotation {
	t.Helper()
	answer, err := w.control(w.root).GetRotation(t.Context(), &keyturnv1.GetRotationRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	return answer.GetRotation()
}

// rotated rotates the signing key and waits for a phase or the end.
func (w *world) rotated(t *testing.T, request *keyturnv1.RotateRequest, phase string) *keyturnv1.Rotation {
	t.Helper()
	request.Name = string(ordersTokens)
	answer, err := w.control(w.root).Rotate(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	return w.reached(t, answer.GetRotationId(), phase)
}

func (w *world) reached(t *testing.T, id, phase string) *keyturnv1.Rotation {
	t.Helper()
	var r *keyturnv1.Rotation
	told := ""
	until(t, "rotation to reach "+phase, func() bool {
		r = w.rotation(t, id)
		if now := fmt.Sprint(r.GetPhase(), r.GetHold(), r.GetWaiting()); now != told {
			told = now
			t.Log(told)
		}
		return r.GetPhase() == phase || r.GetEnded()
	})
	return r
}

// load signs tokens at several nodes and has all of them verified by all readers.
type load struct {
	t       *testing.T
	readers readers
	revoked sync.Map
	signed  atomic.Int64
	tried   atomic.Int64
	missed  atomic.Int64

	mu       sync.Mutex
	rejected map[string]int
	last     map[key.Version]int
}

// run signs with a signer until ctx ends. Each token is verified at once, and again
// just before it expires.
func (l *load) run(ctx context.Context, signer *token.Signer) {
	const life = 2 * time.Second
	type kept struct {
		token.Token
		compact string
	}
	var old []kept
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		}
		signed, err := signer.Sign(ctx, token.Request{Key: ordersTokens, Subject: "load", Audience: []string{audience}, Life: life})
		if err != nil {
			l.missed.Add(1)
			l.t.Logf("not signed: %v", err)
			continue
		}
		l.signed.Add(1)
		one := kept{signed, signed.Compact.RevealString()}
		l.verify(ctx, one.Token, one.compact)
		old = append(old, one)
		for len(old) > 0 && time.Until(old[0].Expires) < life/2 {
			l.verify(ctx, old[0].Token, old[0].compact)
			old = old[1:]
		}
	}
}

func (l *load) verify(ctx context.Context, signed token.Token, compact string) {
	for name, verify := range l.readers {
		err := verify(ctx, compact)
		_, revoked := l.revoked.Load(signed.Version)
		if ctx.Err() != nil || revoked || time.Until(signed.Expires) < 0 {
			return
		}
		l.tried.Add(1)
		if err != nil {
			l.mu.Lock()
			l.rejected[name]++
			if l.rejected[name] < 3 {
				l.t.Errorf("%s rejected a valid token of %v: %v", name, signed.Version, err)
			}
			l.mu.Unlock()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last[signed.Version]++
}

// startReaders starts all readers of a server's signing key and applies it.
func startReaders(t *testing.T, w *world, algorithm string) readers {
	t.Helper()
	issuer := w.Address() + "/orders"
	base := issuer + "/.well-known/"
	byOIDC, probe := oidcReader(t, w.http, issuer, base+"jwks/oidc.json")
	for _, p := range w.apply(t, w.root, signingDocuments(issuer, algorithm, probe)).GetProblems() {
		if p.GetSeverity() == "error" {
			t.Fatalf("%v", p)
		}
	}
	w.rotated(t, &keyturnv1.RotateRequest{}, "quarantine")
	until(t, "the first token", func() bool {
		_, err := w.Signer().Sign(t.Context(), token.Request{Key: ordersTokens, Life: time.Second})
		return err == nil
	})
	byHand := &joseReader{client: w.http, issuer: issuer, set: base + "jwks.json"}
	return readers{
		"go-oidc": byOIDC, "go-jose": byHand.verify,
		"golang-jwt": golangReader(t, w.http, issuer, base+"jwks/golang.json"),
		"jwx":        jwxReader(t, w.http, issuer, base+"jwks/jwx.json"),
	}
}

func signingConfig(dir string) server.Config {
	config := configOf(dir)
	config.Tokens.Skew = 400 * time.Millisecond
	return config
}

// TestClientsThroughRotations: four JOSE and OIDC libraries with caches of their own
// verify tokens under load while the key rotates, is rolled back, and is replaced in
// an emergency. None rejects a valid token; none accepts one of the compromised
// version once its refusal is proven.
func TestClientsThroughRotations(t *testing.T) {
	t.Parallel()
	w := startServerWith(t, signingConfig(t.TempDir()), nil)
	l := &load{t: t, readers: startReaders(t, w, "EdDSA"), rejected: map[string]int{}, last: map[key.Version]int{}}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for range 2 {
		running.Go(func() { l.run(ctx, w.Signer()) })
	}
	defer running.Wait()
	defer cancel()

	var r *keyturnv1.Rotation
	for range rotationsUnderLoad {
		r = w.rotated(t, &keyturnv1.RotateRequest{}, "quarantine")
		if r.GetHold() != nil {
			t.Fatalf("held: %v", r.GetHold())
		}
		l.wantVersion(w, key.Version(r.GetTo()))
	}
	// Back to the version before, during the drain.
	r = w.rotated(t, &keyturnv1.RotateRequest{}, "draining")
	back, err := w.control(w.root).Rollback(t.Context(), &keyturnv1.RollbackRequest{RotationId: r.GetId(), Reason: "test"})
	if err != nil {
		t.Fatal(err)
	}
	w.reached(t, back.GetRotationId(), "quarantine")
	l.wantVersion(w, key.Version(r.GetFrom()))

	// An emergency, with tokens in the thief's hands that live on.
	var stolen []string
	compromised := key.Version(r.GetFrom())
	for range 20 {
		signed, err := w.Signer().Sign(t.Context(), token.Request{Key: ordersTokens, Audience: []string{audience}})
		if err != nil || signed.Version != compromised {
			t.Fatalf("%v, %v", signed.Version, err)
		}
		stolen = append(stolen, signed.Compact.RevealString())
	}
	began := time.Now()
	l.revoked.Store(compromised, true)
	r = w.rotated(t, &keyturnv1.RotateRequest{Emergency: true, Reason: "test", Compromised: []uint64{uint64(compromised)}}, "quarantine")
	t.Logf("from the declaration to the last proof of refusal: %v", time.Since(began))
	if time.Since(began) > 25*time.Second {
		t.Fatal("the stolen tokens have expired meanwhile: nothing is proven")
	}
	for name, verify := range l.readers {
		for _, compact := range stolen {
			if verify(t.Context(), compact) == nil {
				t.Fatalf("%s accepts a token of the compromised version after its refusal was proven", name)
			}
		}
	}
	l.wantVersion(w, key.Version(r.GetTo()))
	cancel()
	running.Wait()
	if l.missed.Load() > 0 {
		t.Errorf("%d tokens could not be signed", l.missed.Load())
	}
	t.Logf("%d tokens signed, %d verifications, by version %v", l.signed.Load(), l.tried.Load(), l.last)
}

// wantVersion waits until valid tokens of the version were verified by all readers.
func (l *load) wantVersion(w *world, v key.Version) {
	l.t.Helper()
	until(l.t, "tokens of "+v.String(), func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.last[v] > 10
	})
	if signed, err := w.Signer().Sign(l.t.Context(), token.Request{Key: ordersTokens, Life: time.Second}); err != nil || signed.Version != v {
		l.t.Errorf("signed with %v (%v), want %v", signed.Version, err, v)
	}
}
