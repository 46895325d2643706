package bench

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/internal/server"
)

const brokerDocuments = apiKeyDocuments + `---
apiVersion: keyturn/v1
kind: Key
metadata: {name: bench/tokens}
spec:
  provider: jwks
  policy: partners
  config:
    issuer: https://keys.example.com/bench
    tokenLife: 15m
    cacheLife: 1s
    grants:
      - {name: clients, from: {apiKeys: ["prod/**"]}, audiences: [orders], scopes: ["orders:read"]}
`

const (
	issueRatio = 0.7
	// peerRatio is how many times OpenBao's rate ours is to be.
	peerRatio = 20
	// openBao names the program that is compared with, by its path.
	openBao = "KEYTURN_BENCH_OPENBAO"
)

// BenchmarkTokensOverHTTP compares the rate at which the token endpoint gives tokens
// for an API key with that of a handler over the same TLS and HTTP that decodes the
// form, signs with the bare library and encodes the answer, in turns; per second of
// processor time, client included on both sides. The second row is the same per
// second of the clock, beside OpenBao's creation of tokens where its program is given.
func BenchmarkTokensOverHTTP(b *testing.B) {
	w := startServer(b, server.Config{
		DataDir: filepath.Join(b.TempDir(), "data"), Limits: server.LimitsConfig{PerSecond: 100_000, Burst: 100_000},
		Tokens: server.TokensConfig{IssuePerSecond: 1_000_000},
	}, nil)
	w.apply(b, brokerDocuments)
	text := w.newKey(b)
	w.rotateKey(b, string(benchTokens), time.Minute)
	floor := httptest.NewUnstartedServer(floorIssue(b))
	floor.EnableHTTP2 = true
	floor.StartTLS()
	b.Cleanup(floor.Close)
	roots := w.roots.Clone()
	roots.AddCert(floor.Certificate())
	form := url.Values{
		"grant_type":    {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"subject_token": {text}, "subject_token_type": {"urn:keyturn:params:oauth:token-type:api-key"}, "audience": {"orders"}, "scope": {"orders:read"},
	}
	config := &tls.Config{RootCAs: roots}
	post := func(where string) load {
		return load{url: where, header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, body: form.Encode(), wanted: `"access_token":"ey`, config: config}
	}
	ours, least := post(w.address+"/bench/oauth/token"), post(floor.URL)
	var peer *float64
	if path := os.Getenv(openBao); path != "" {
		rate := startOpenBao(b, path).rate(b)
		peer = &rate
	} else {
		b.Logf("%s names no program: OpenBao's creation of tokens is not compared", openBao)
	}
	for b.Loop() {
		var used, usedLeast, took, tookLeast time.Duration
		for range verifyParts {
			c, t := ours.run(b)
			used, took = used+c, took+t
			c, t = least.run(b)
			usedLeast, tookLeast = usedLeast+c, tookLeast+t
		}
		const n = verifyPart * verifyParts
		scoreboard.add(b, result{
			Name: "token_issue_http", Unit: "per-cpu-s", Ours: n / used.Seconds(), Floor: n / usedLeast.Seconds(), limit: issueRatio * n / usedLeast.Seconds(), more: true,
		})
		rate := result{Name: "token_issue_rate", Unit: "per-s", Ours: n / took.Seconds(), Floor: n / tookLeast.Seconds(), Peer: peer, more: true}
		if peer != nil {
			rate.limit = peerRatio * *peer
		}
		scoreboard.add(b, rate)
	}
}

// floorIssue decodes, signs and encodes.
func floorIssue(b *testing.B) http.Handler {
	b.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: private, KeyID: "bench"}}, (&jose.SignerOptions{}).WithType("at+jwt"))
	if err != nil {
		b.Fatal(err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil || r.PostForm.Get("subject_token") == "" {
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		now := time.Now()
		claims, err := json.Marshal(map[string]any{
			"iss": "https://keys.example.com/bench", "sub": "clients/" + keyName, "aud": r.PostForm.Get("audience"), "iat": now.Unix(), "nbf": now.Unix() - 10,
			"exp": now.Unix() + 300, "jti": rand.Text(), "client_id": keyName, "scope": r.PostForm.Get("scope"),
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		object, err := signer.Sign(claims)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		compact, err := object.CompactSerialize()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answer, err := json.Marshal(map[string]any{
			"access_token": compact, "issued_token_type": "urn:ietf:params:oauth:token-type:access_token", "token_type": "Bearer", "expires_in": 300, "scope": r.PostForm.Get("scope"),
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer) // the caller is gone if this fails
	})
}

// load is one request that is made again and again.
type load struct {
	url, body, wanted string
	header            http.Header
	config            *tls.Config
}

// run makes verifyPart requests, verifyCalls at the same time; it returns the
// processor time of this process and the time of the clock that they took.
func (l *load) run(b *testing.B) (used, took time.Duration) {
	b.Helper()
	transport := &http.Transport{TLSClientConfig: l.config.Clone(), ForceAttemptHTTP2: true, MaxIdleConnsPerHost: verifyCalls}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	one := func() error {
		request, err := http.NewRequestWithContext(b.Context(), http.MethodPost, l.url, strings.NewReader(l.body))
		if err != nil {
			return err
		}
		request.Header = l.header.Clone()
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }() // it was read
		answer, err := io.ReadAll(response.Body)
		if err == nil && !bytes.Contains(answer, []byte(l.wanted)) {
			err = fmt.Errorf("status %d: %s", response.StatusCode, answer)
		}
		return err
	}
	if err := one(); err != nil { // the connection
		b.Fatal(err)
	}
	runtime.GC()
	before, began := cpu(b), time.Now()
	var calls sync.WaitGroup
	for range verifyCalls {
		calls.Go(func() {
			for range verifyPart / verifyCalls {
				if err := one(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	calls.Wait()
	return cpu(b) - before, time.Since(began)
}

// bao is an OpenBao in development mode, on this machine's loopback, its data in
// memory.
type bao struct{ load }

func startOpenBao(b *testing.B, path string) *bao {
	b.Helper()
	const root = "bench-root"
	listen := freeAddress(b)
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.Context()))
	process := exec.CommandContext(ctx, path, "server", "-dev", "-dev-no-store-token", "-dev-root-token-id="+root, "-dev-listen-address="+listen, "-log-level=error")
	process.Dir = b.TempDir()
	output := &bytes.Buffer{}
	process.Stdout, process.Stderr = output, output
	if err := process.Start(); err != nil {
		b.Fatalf("%s: %v", openBao, err)
	}
	b.Cleanup(func() {
		cancel()
		_ = process.Wait() // it was killed
	})
	ready, end := context.WithTimeout(b.Context(), readyIn)
	defer end()
	tick := time.NewTicker(readyEvery)
	defer tick.Stop()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for ask(ready, client, "http://"+listen+"/v1/sys/health") != nil {
		select {
		case <-tick.C:
		case <-ready.Done():
			b.Fatalf("%s is not ready after %v", path, readyIn)
		}
	}
	return &bao{load{
		url: "http://" + listen + "/v1/auth/token/create", header: http.Header{"X-Vault-Token": {root}}, body: `{"ttl":"5m","policies":["default"]}`,
		wanted: `"client_token":"`, config: &tls.Config{},
	}}
}

// rate is how many tokens it makes in a second, of the best of three parts.
func (o *bao) rate(b *testing.B) float64 {
	b.Helper()
	best := time.Duration(1<<63 - 1)
	for range 3 {
		_, took := o.run(b)
		best = min(best, took)
	}
	return verifyPart / best.Seconds()
}
