package server_test

import (
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/internal/token"
)

// signing starts a server with a signing key whose first version is in use.
func signing(t *testing.T, config server.Config) *world {
	t.Helper()
	w := startServerWith(t, config, nil)
	w.applySigning(t, "EdDSA")
	w.rotated(t, &keyturnv1.RotateRequest{}, "quarantine")
	until(t, "the first token", func() bool {
		_, err := w.Signer().Sign(t.Context(), token.Request{Key: ordersTokens, Life: time.Second})
		return err == nil
	})
	return w
}

// applySigning applies a signing key with verifiers that nobody tries.
func (w *world) applySigning(t *testing.T, algorithm string) {
	t.Helper()
	source := signingDocuments(w.Address()+"/orders", algorithm, "https://127.0.0.1:1/")
	source = strings.ReplaceAll(source, `, probe: {url: "https://127.0.0.1:1/", accepted: [204], refused: [401]}`, "")
	for _, p := range w.apply(t, w.root, source).GetProblems() {
		if p.GetSeverity() == "error" {
			t.Fatalf("%v", p)
		}
	}
}

// answered is an answer without its body.
type answered struct {
	Status     string
	StatusCode int
	Header     http.Header
}

// ask sends a request and returns the answer and its body.
func (w *world) ask(t *testing.T, method, path string, header map[string]string) (answered, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, w.Address()+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		request.Header.Set(name, value)
	}
	response, err := w.http.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return answered{response.Status, response.StatusCode, response.Header}, string(body)
}

// TestAnswers: what readers of sets see.
func TestAnswers(t *testing.T) {
	t.Parallel()
	config := signingConfig(t.TempDir())
	config.Tokens.PerSecond, config.Tokens.Burst = 1, 40
	w := signing(t, config)
	const path = "/orders/.well-known/jwks.json"
	first, body := w.ask(t, http.MethodGet, path, nil)
	etag := first.Header.Get("ETag")
	if first.StatusCode != http.StatusOK || !strings.Contains(body, `"kty":"OKP"`) || strings.Contains(body, `"d":`) || etag == "" {
		t.Fatalf("%s: %s", first.Status, body)
	}
	for name, want := range map[string]string{
		"Cache-Control": "public, max-age=1, must-revalidate", "Content-Type": "application/jwk-set+json",
		"Access-Control-Allow-Origin": "*", "X-Content-Type-Options": "nosniff",
	} {
		if got := first.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, tag := range []string{etag, "W/" + etag, `"other", ` + etag} {
		if again, body := w.ask(t, http.MethodGet, path, map[string]string{"If-None-Match": tag}); again.StatusCode != http.StatusNotModified || body != "" || again.Header.Get("Cache-Control") == "" {
			t.Errorf("If-None-Match %s: %s %q", tag, again.Status, body)
		}
	}
	for _, tag := range []string{"*", `"other"`, ""} {
		if again, _ := w.ask(t, http.MethodGet, path, map[string]string{"If-None-Match": tag}); again.StatusCode != http.StatusOK {
			t.Errorf("If-None-Match %s: %s", tag, again.Status)
		}
	}
	if head, body := w.ask(t, http.MethodHead, path, nil); head.StatusCode != http.StatusOK || body != "" || head.Header.Get("ETag") != etag {
		t.Errorf("HEAD: %s", head.Status)
	}
	if own, _ := w.ask(t, http.MethodGet, "/orders/.well-known/jwks/jwx.json", nil); !strings.HasPrefix(own.Header.Get("Cache-Control"), "private, max-age=1") {
		t.Errorf("a verifier's own set may be held by others: %s", own.Header.Get("Cache-Control"))
	}
	if post, _ := w.ask(t, http.MethodPost, path, nil); post.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", post.Status)
	}
	if options, _ := w.ask(t, http.MethodOptions, path, nil); options.StatusCode != http.StatusNoContent {
		t.Errorf("OPTIONS: %s", options.Status)
	}
	// What is not there is answered alike: nobody learns which keys or verifiers exist.
	var alike string
	for _, path := range []string{
		"/other/.well-known/jwks.json", "/orders/.well-known/jwks/other.json", "/orders/.well-known/", "/.well-known/jwks.json",
		"/orders/.well-known/jwks/published.json", "/.well-known/jwks/..%2f..%2f", "/orders/.well-known/jwks/jwx.json/x",
	} {
		missing, body := w.ask(t, http.MethodGet, path, nil)
		told := missing.Status + body + missing.Header.Get("Cache-Control") + missing.Header.Get("Content-Type")
		if alike == "" {
			alike = told
		}
		if missing.StatusCode != http.StatusNotFound || told != alike || missing.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %q, others %q", path, told, alike)
		}
	}
	refused := 0
	for range 60 {
		if again, _ := w.ask(t, http.MethodGet, path, nil); again.StatusCode == http.StatusTooManyRequests && again.Header.Get("Retry-After") != "" {
			refused++
		}
	}
	if refused == 0 {
		t.Error("an address may fetch without bound")
	}
}

// TestDiscovery: an OIDC client that knows the issuer only finds the keys.
func TestDiscovery(t *testing.T) {
	t.Parallel()
	w := signing(t, signingConfig(t.TempDir()))
	provider, err := oidc.NewProvider(oidc.ClientContext(t.Context(), w.http), w.Address()+"/orders")
	if err != nil {
		t.Fatal(err)
	}
	signed, err := w.Signer().Sign(t.Context(), token.Request{Key: ordersTokens, Subject: "alice", Audience: []string{audience}})
	if err != nil {
		t.Fatal(err)
	}
	verified, err := provider.Verifier(&oidc.Config{ClientID: audience}).Verify(t.Context(), signed.Compact.RevealString())
	if err != nil || verified.Subject != "alice" {
		t.Errorf("%+v, %v", verified, err)
	}
	if _, err := provider.Verifier(&oidc.Config{ClientID: "billing"}).Verify(t.Context(), signed.Compact.RevealString()); err == nil {
		t.Error("a token for others was accepted")
	}
}

// TestMcpOauth452StaleJWKS: a server went on verifying with the set that it had
// fetched once, so that tokens of the new key failed. Here a reader that fetches as
// seldom as Cache-Control allows, and never for an unknown key, has the new key
// before anything is signed with it.
func TestMcpOauth452StaleJWKS(t *testing.T) {
	t.Parallel()
	w := signing(t, signingConfig(t.TempDir()))
	r := &joseReader{client: w.http, issuer: w.Address() + "/orders", set: w.Address() + "/orders/.well-known/jwks.json"}
	sign := func() token.Token {
		signed, err := w.Signer().Sign(t.Context(), token.Request{Key: ordersTokens, Audience: []string{audience}, Life: 2 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.verify(t.Context(), signed.Compact.RevealString()); err != nil {
			t.Fatalf("a token of %v was rejected: %v", signed.Version, err)
		}
		return signed
	}
	before := sign()
	answer, err := w.control(w.root).Rotate(t.Context(), &keyturnv1.RotateRequest{Name: string(ordersTokens)})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the rotation", func() bool { sign(); return w.rotation(t, answer.GetRotationId()).GetCutOverAt() != nil })
	if after := sign(); after.Version == before.Version {
		t.Error("nothing was rotated")
	}
}

// TestExampleOfTheSigningPage: the document of the page is applied as it stands.
func TestExampleOfTheSigningPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/provider-jwks.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```yaml\n")
	example, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("the page has no example")
	}
	w := startServerWith(t, configOf(t.TempDir()), nil)
	for _, p := range w.apply(t, w.root, example).GetProblems() {
		t.Errorf("%v", p)
	}
	key, err := w.control(w.root).GetKey(t.Context(), &keyturnv1.GetKeyRequest{Name: string(ordersTokens)})
	if err != nil || key.GetKey().GetName() != string(ordersTokens) {
		t.Errorf("%v, %v", key, err)
	}
}
