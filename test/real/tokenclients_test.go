package real

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/tokencheck"
	"github.com/keyturn/keyturn/client/tokensource"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/agent"
	"github.com/keyturn/keyturn/internal/agent/metadata"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/secret"
)

const tokensKey = "prod/orders/tokens"

// tokenDocuments are a signing key with rules for every kind of client: its tokens live
// for six seconds.
const tokenDocuments = `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: signing}
spec:
  stages: [{name: all, bake: 0s, ackTimeout: 30s, onEmpty: skip}]
  drain: {min: 0s, quiet: 0s, max: 5m, every: 200ms}
  quarantine: 0s
  endQuarantineEarly: true
---
apiVersion: keyturn/v1
kind: Key
metadata: {name: prod/orders/tokens, owner: team-orders}
spec:
  provider: jwks
  policy: signing
  config:
    issuer: ISSUER
    tokenLife: 6s
    cacheLife: 1s
    verifiers: [{name: orders-api}]
    grants:
      - name: services
        from: {tokens: [svc-*, agent-*]}
        audiences: [orders]
        scopes: [orders:read, orders:write]
      - name: jobs
        from: {issuer: UPSTREAM, audience: keyturn, claims: {repository: acme/orders}}
        audiences: [orders]
        bind: dpop
      - name: batch
        from: {certificate: {ca: CERTIFICATE, names: ["spiffe://example.com/batch/*"]}}
        audiences: [orders]
        bind: mtls
`

// tokenWorld is a server whose broker gives tokens, and what clients prove by.
type tokenWorld struct {
	*world
	// job is the file of a token of another issuer, batch a client certificate.
	job   string
	batch *tls.Certificate
}

func (w *tokenWorld) issuer() string { return w.address() + "/orders" }

func newTokenWorld(t *testing.T) *tokenWorld {
	t.Helper()
	w := &tokenWorld{world: &world{dir: t.TempDir(), logs: &logBuffer{}}}
	w.config = server.Config{
		Listen: "127.0.0.1:0", DataDir: filepath.Join(w.dir, "data"), Log: server.LogConfig{Format: "text", Level: "debug"},
		Tokens: server.TokensConfig{ClientCertificates: true, Skew: 400 * time.Millisecond},
	}
	w.heard, w.config.Telemetry = newReceiver(t)
	w.options = server.Options{LogTo: w.logs}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the server's log:\n%s", w.logs.tail(6000))
		}
	})
	w.start(t)
	t.Cleanup(func() { w.stop(t) })
	documents := strings.NewReplacer("ISSUER", w.issuer(), "UPSTREAM", w.upstream(t), "CERTIFICATE", w.authority(t)).Replace(tokenDocuments)
	w.apply(t, documents)
	w.finish(t, w.rotateKey(t, tokensKey, "the first"), "done")
	return w
}

// upstream is another issuer, whose token of a job is in a file.
func (w *tokenWorld) upstream(t *testing.T) string {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var s *httptest.Server
	s = httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/.well-known/openid-configuration" {
			_ = json.NewEncoder(out).Encode(map[string]string{"issuer": s.URL, "jwks_uri": s.URL + "/keys"})
			return
		}
		_ = json.NewEncoder(out).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: private.Public(), KeyID: "1", Algorithm: "ES256", Use: "sig"}}})
	}))
	t.Cleanup(s.Close)
	now := time.Now().Unix()
	payload, err := json.Marshal(map[string]any{
		"iss": s.URL, "sub": "repo:acme/orders", "aud": "keyturn", "iat": now, "exp": now + 600, "repository": "acme/orders",
	})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: private, KeyID: "1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	w.job = filepath.Join(w.dir, "job.token")
	if err := os.WriteFile(w.job, []byte(compact+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return s.URL
}

// authority makes an authority of clients, in a file, and a certificate of it.
func (w *tokenWorld) authority(t *testing.T) string {
	t.Helper()
	make1 := func(template, parent *x509.Certificate, public any, private *ecdsa.PrivateKey) []byte {
		template.SerialNumber = big.NewInt(time.Now().UnixNano())
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, private)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	root, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "clients"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der := make1(ca, ca, root.Public(), root)
	path := filepath.Join(w.dir, "clients.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	if ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{
		Subject: pkix.Name{CommonName: "batch"}, URIs: []*url.URL{{Scheme: "spiffe", Host: "example.com", Path: "/batch/night"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	w.batch = &tls.Certificate{Certificate: [][]byte{make1(of, ca, leaf.Public(), root)}, PrivateKey: leaf}
	return path
}

// secretOf makes a token of Keyturn.
func (w *tokenWorld) secretOf(t *testing.T, name string) client.TokenSource {
	t.Helper()
	made, err := w.control.CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{Name: name, Role: "viewer", Keys: []string{"none/**"}})
	if err != nil {
		t.Fatal(err)
	}
	return client.StaticToken(secret.NewString(made.GetToken()))
}

func (w *tokenWorld) source(t *testing.T, config tokensource.Config) *tokensource.Source {
	t.Helper()
	config.Issuer, config.Audiences, config.BackoffMin = w.issuer(), []string{"orders"}, 100*time.Millisecond
	if config.RootCAs == nil {
		config.RootCAs = w.roots
	}
	s, err := tokensource.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// service is one that verifies tokens by the SDK, at a URL of its own; it answers with
// the subject. The set of keys comes from base.
func (w *tokenWorld) service(t *testing.T, base string, roots *x509.CertPool, change func(*tokencheck.Config)) *httptest.Server {
	t.Helper()
	var checker *tokencheck.Checker
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		checker.Handler(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
			claims, _ := tokencheck.From(r.Context())
			_, _ = io.WriteString(out, claims.Subject)
		})).ServeHTTP(out, r)
	}))
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13}
	s.StartTLS()
	t.Cleanup(s.Close)
	config := tokencheck.Config{
		Issuer: w.issuer(), Audience: "orders", KeySet: base + "/orders/.well-known/jwks/orders-api.json", RootCAs: roots, Origins: []string{s.URL}, Nonces: true,
	}
	if change != nil {
		change(&config)
	}
	var err error
	if checker, err = tokencheck.Open(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(checker.Close)
	return s
}

func poolOf(c *x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c)
	return pool
}

// get returns the status and body.
func get(ctx context.Context, c *http.Client, url string) (int, string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	response, err := c.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }() // it was read
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// TestTokenClients: the SDK's source and verifier, and the agent's endpoint, with a real
// server.
func TestTokenClients(t *testing.T) {
	t.Parallel()
	w := newTokenWorld(t)
	t.Run("group", func(t *testing.T) { // it ends before the server stops
		t.Run("outage", w.ridesOutAnOutage)
		t.Run("exchange", w.exchanges)
		t.Run("certificate", w.byCertificate)
		t.Run("thief", w.reportsAThief)
		t.Run("agent", w.agentGivesTokens)
	})
}

// ridesOutAnOutage: a client with tokens bound by DPoP, under load, through an outage of
// everything that Keyturn serves for a fifth of a token's life, while the signing key
// rotates: no request fails.
func (w *tokenWorld) ridesOutAnOutage(t *testing.T) {
	t.Parallel()
	f := newFront(t, w.world)
	roots := poolOf(f.Certificate())
	api := w.service(t, f.URL, roots, nil)
	source := w.source(t, tokensource.Config{Addresses: f.URL, RootCAs: roots, Secret: w.secretOf(t, "svc-load"), Scopes: []string{"orders:read"}, DPoP: true})
	if _, err := source.Token(t.Context()); err != nil {
		t.Fatal(err)
	}
	through, err := source.Transport(api.Client().Transport, strings.TrimPrefix(api.URL, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Transport: through}
	ctx, cancel := context.WithCancel(t.Context())
	var failed, done atomic.Int64
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() {
			ticker := time.NewTicker(20 * time.Millisecond)
			defer ticker.Stop()
			for ctx.Err() == nil {
				if status, body, err := get(context.WithoutCancel(ctx), c, api.URL+"/x?y"); err != nil || status != http.StatusOK || body != "services/svc-load" {
					failed.Add(1)
					t.Errorf("%d %q %v, %+v", status, body, err, source.Status())
				}
				done.Add(1)
				select {
				case <-ticker.C:
				case <-ctx.Done():
				}
			}
		})
	}
	first := source.Status()
	rotation := w.rotateKey(t, tokensKey, "under load")
	// Refreshes come between 3 and 4 s.
	eventually(t, "a token is due", func() bool { return time.Since(first.Success) > 2900*time.Millisecond })
	f.away.Store(true)
	eventually(t, "it could not be replaced", func() bool { return source.Status().Failures > 0 })
	eventually(t, "the outage has lasted", func() bool { return time.Since(first.Success) > 4100*time.Millisecond })
	f.away.Store(false)
	eventually(t, "it is replaced", func() bool { s := source.Status(); return s.Failures == 0 && s.Success.After(first.Success) })
	w.finish(t, rotation, "done")
	cancel()
	running.Wait()
	if done.Load() < 100 || failed.Load() > 0 {
		t.Errorf("%d of %d requests failed", failed.Load(), done.Load())
	}
}

// exchanges: a job's token from a file becomes one that is bound to a key of the process.
// Stolen, it is worth nothing; the verifier knows its service from others.
func (w *tokenWorld) exchanges(t *testing.T) {
	t.Parallel()
	api := w.service(t, w.address(), w.roots, nil)
	billing := w.service(t, w.address(), w.roots, func(c *tokencheck.Config) { c.Audience = "billing" })
	source := w.source(t, tokensource.Config{Subject: client.TokenFile(w.job), DPoP: true})
	for s, want := range map[*httptest.Server]int{api: http.StatusOK, billing: http.StatusUnauthorized} {
		through, err := source.Transport(s.Client().Transport, strings.TrimPrefix(s.URL, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		if status, body, err := get(t.Context(), &http.Client{Transport: through}, s.URL); err != nil || status != want || want == http.StatusOK && body != "jobs/repo:acme/orders" {
			t.Errorf("%d %q %v", status, body, err)
		}
	}
	token, err := source.Token(t.Context())
	if err != nil || token.Type != "DPoP" {
		t.Fatalf("%v, %v", token, err)
	}
	thief := &http.Client{Transport: bearer{token.Value.RevealString(), api.Client().Transport}}
	if status, _, err := get(t.Context(), thief, api.URL); err != nil || status != http.StatusUnauthorized {
		t.Errorf("a stolen token: %d, %v", status, err)
	}
	// What no rule grants is told at once, in the broker's words.
	plain := w.source(t, tokensource.Config{Subject: client.TokenFile(w.job)})
	var refusal *tokensource.Refusal
	if _, err := plain.Token(t.Context()); !errors.As(err, &refusal) || refusal.Code != "invalid_request" || !strings.Contains(refusal.Description, "proof") {
		t.Errorf("unbound: %v", err)
	}
}

// copying keeps the header of the last request.
type copying struct {
	next http.RoundTripper
	last *http.Header
}

func (c copying) RoundTrip(r *http.Request) (*http.Response, error) {
	*c.last = r.Header.Clone()
	return c.next.RoundTrip(r)
}

// reportsAThief: a token that is bound to a key is copied with its proof, and both are
// shown again. The service refuses them, and a rule of the server finds it.
func (w *tokenWorld) reportsAThief(t *testing.T) {
	t.Parallel()
	made, err := w.control.CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{Name: "orders-api", Role: "verifier", Keys: []string{"prod/**"}})
	if err != nil {
		t.Fatal(err)
	}
	w.apply(t, `{apiVersion: keyturn/v1, kind: Rule, metadata: {name: thief}, spec: {when: 'use.source == "token-verifier" && use.replay && use.application == "jobs"', then: alert, mode: enforce}}`)
	api := w.service(t, w.address(), w.roots, func(c *tokencheck.Config) {
		c.Report, c.ReportEvery = client.StaticToken(secret.NewString(made.GetToken())), 200*time.Millisecond
	})
	source := w.source(t, tokensource.Config{Subject: client.TokenFile(w.job), DPoP: true})
	var copied http.Header
	through, err := source.Transport(copying{api.Client().Transport, &copied}, strings.TrimPrefix(api.URL, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	if status, _, err := get(t.Context(), &http.Client{Transport: through}, api.URL); err != nil || status != http.StatusOK {
		t.Fatal(status, err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, api.URL, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = copied
	response, err := api.Client().Do(r)
	if err != nil || response.Body.Close() != nil || response.StatusCode != http.StatusUnauthorized {
		t.Fatalf("the replay: %v, %v", response, err)
	}
	eventually(t, "a rule finds the thief", func() bool {
		listed, err := w.control.ListRules(t.Context(), &keyturnv1.ListRulesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return listed.GetRules()[0].GetFindings()["alert"] == 1
	})
}

// byCertificate: a token that is bound to a client certificate (RFC 8705).
func (w *tokenWorld) byCertificate(t *testing.T) {
	t.Parallel()
	api := w.service(t, w.address(), w.roots, nil)
	source := w.source(t, tokensource.Config{Certificate: func() (*tls.Certificate, error) { return w.batch, nil }})
	for with, want := range map[bool]int{true: http.StatusOK, false: http.StatusUnauthorized} {
		base := api.Client().Transport.(*http.Transport).Clone()
		t.Cleanup(base.CloseIdleConnections)
		if with {
			base.TLSClientConfig.Certificates = []tls.Certificate{*w.batch}
		}
		through, err := source.Transport(base, strings.TrimPrefix(api.URL, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		if status, body, err := get(t.Context(), &http.Client{Transport: through}, api.URL); err != nil || status != want || with && body != "batch/spiffe://example.com/batch/night" {
			t.Errorf("with the certificate %v: %d %q %v", with, status, body, err)
		}
	}
}

// leakedNowhere looks for what an agent held in every file of it and of the server, and
// in both logs, but the files that are for it.
func (w *tokenWorld) leakedNowhere(t *testing.T, dir string, logs *logBuffer, tokens ...string) {
	t.Helper()
	secrets, found := map[string]string{}, places{"the agent's log": []byte(logs.String()), "the server's log": []byte(w.logs.String())}
	for i, token := range tokens {
		secrets[fmt.Sprintf("the signature of token %d", i+1)] = token[strings.LastIndexByte(token, '.')+1:]
	}
	for name, path := range map[string]string{"the agent's token": filepath.Join(dir, "state", "token"), "the authorization": filepath.Join(dir, "auth"), "the job's token": w.job} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		secrets[name] = strings.TrimSpace(string(text))
	}
	found.folder(t, dir, "token", "auth")
	found.folder(t, w.config.DataDir, "root.token", "kek.json", "ca.key", "audit.key")
	for place, content := range found {
		for _, leak := range leaks(secrets, content) {
			t.Errorf("%s contains %s", place, leak)
		}
	}
	if db := found[filepath.Join(w.config.DataDir, "keyturn.db")]; len(db) == 0 || len(leaks(secrets, append(bytes.Clone(db), tokens[0]...))) == 0 {
		t.Error("a planted token was not found")
	}
}

// agentGivesTokens: an agent that joined gives processes tokens by its endpoint, also
// while there is no server; the service's verifier accepts them.
func (w *tokenWorld) agentGivesTokens(t *testing.T) {
	t.Parallel()
	f := newFront(t, w.world)
	dir := t.TempDir()
	made, err := w.control.CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{
		Name: "agent-7", Role: "join", Keys: []string{"none/**"}, Party: &keyturnv1.Party{Id: "agent-7", Kind: keyturnv1.PartyKind_PARTY_KIND_AGENT},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"join": []byte(made.GetToken()), "ca.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	cfg, err := agent.ParseConfig("agent.yaml", fmt.Appendf(nil, `
server: %s
caFile: %s/ca.pem
joinTokenFile: %s/join
stateDir: %s/state
party: {id: agent-7}
metadata:
  listen: %s
  authorizationFile: %s/auth
  tokens: [{name: orders, issuer: "%s", audiences: [orders], scopes: ["orders:read"]}]
`, f.URL, dir, dir, dir, address, dir, w.issuer()))
	if err != nil {
		t.Fatal(err)
	}
	logs := &logBuffer{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the agent's log:\n%s", logs.tail(3000))
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- agent.Run(ctx, cfg, agent.Deps{Logger: slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug})), Dumpable: true})
	}()
	var last string
	ask := func() (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/v1/tokens/orders", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		authorization, err := os.ReadFile(filepath.Join(dir, "auth"))
		if err != nil {
			return 0, ""
		}
		r.Header.Set("Authorization", string(authorization))
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			return 0, ""
		}
		defer response.Body.Close()
		var body struct {
			Token string `json:"access_token"`
			Left  int    `json:"expires_in"`
		}
		if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		last = body.Token
		return response.StatusCode, body.Token
	}
	eventually(t, "the agent gives tokens", func() bool {
		select {
		case err := <-ended:
			t.Fatalf("the agent ended: %v", err)
		default:
		}
		status, _ := ask()
		return status == http.StatusOK
	})
	began, first := time.Now(), last
	api := w.service(t, w.address(), w.roots, nil)
	uses := func() {
		t.Helper()
		holder := &http.Client{Transport: bearer{last, api.Client().Transport}}
		if status, body, err := get(t.Context(), holder, api.URL); err != nil || status != http.StatusOK || body != "services/agent-7" {
			t.Errorf("%d %q %v", status, body, err)
		}
	}
	uses()
	f.away.Store(true)
	eventually(t, "the token is used on", func() bool {
		if status, token := ask(); status != http.StatusOK || token != first {
			t.Fatalf("%d after %v without a server", status, time.Since(began))
		}
		uses()
		return time.Since(began) > 4*time.Second
	})
	f.away.Store(false)
	eventually(t, "there is a new token", func() bool { status, token := ask(); return status == http.StatusOK && token != first })
	uses()
	w.leakedNowhere(t, dir, logs, first, last)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+address+"/v1/session", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(metadata.TTLHeader, "60")
	r.Header.Set("X-Forwarded-For", "192.0.2.7")
	response, err := http.DefaultClient.Do(r)
	if err != nil || response.Body.Close() != nil || response.StatusCode != http.StatusForbidden {
		t.Errorf("forwarded: %v, %v", response, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the agent ended: %v", err)
	}
}
