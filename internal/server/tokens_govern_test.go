package server_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/provider"
)

// reapply applies the signing key once more, with words replaced.
func (w *world) reapply(t *testing.T, pairs ...string) {
	t.Helper()
	source := signingDocuments(w.Address()+"/orders", "EdDSA", "https://127.0.0.1:1/")
	source = strings.ReplaceAll(source, `, probe: {url: "https://127.0.0.1:1/", accepted: [204], refused: [401]}`, "")
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(source, pairs[i]) {
			t.Fatalf("the document does not say %q:\n%s", pairs[i], source)
		}
		source = strings.ReplaceAll(source, pairs[i], pairs[i+1])
	}
	for _, p := range w.apply(t, w.root, source).GetProblems() {
		if p.GetSeverity() == "error" {
			t.Fatalf("%v", p)
		}
	}
}

// TestConfigOfASigningKeyCountsWhenApplied: the life in caches, the life of tokens and
// the issuer are what was applied, without a rotation; the path of before answers on.
// Fetches and revocations are counted.
func TestConfigOfASigningKeyCountsWhenApplied(t *testing.T) {
	t.Parallel()
	w := signing(t, signingConfig(t.TempDir()))
	cached := func(path string) string {
		t.Helper()
		answer, _ := w.ask(t, http.MethodGet, path+"/.well-known/jwks.json", nil)
		return answer.Header.Get("Cache-Control")
	}
	if got := cached("/orders"); got != "public, max-age=1, must-revalidate" {
		t.Fatal(got)
	}
	w.reapply(t, "cacheLife: 1s", "cacheLife: 7s", "tokenLife: 30s", "tokenLife: 20s")
	if got := cached("/orders"); got != "public, max-age=7, must-revalidate" {
		t.Error(got)
	}
	sign := func() token.Token {
		t.Helper()
		signed, err := w.Signer().Sign(t.Context(), token.Request{Key: ordersTokens})
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	before := sign()
	if life := before.Expires.Sub(before.Issued).Seconds(); life > 20 {
		t.Errorf("tokens live for %v seconds", life)
	}
	w.reapply(t, w.Address()+"/orders", w.Address()+"/sales")
	after := sign()
	if before.Issuer != w.Address()+"/orders" || after.Issuer != w.Address()+"/sales" {
		t.Errorf("issuers: %s, %s", before.Issuer, after.Issuer)
	}
	for path, signed := range map[string]token.Token{"/orders": before, "/sales": after} {
		r := &joseReader{client: w.http, issuer: w.Address() + path, set: w.Address() + path + "/.well-known/jwks.json"}
		if err := r.verify(t.Context(), signed.Compact.RevealString()); err != nil && !strings.Contains(err.Error(), "audience") {
			t.Errorf("a reader under %s: %v", path, err)
		}
		if _, err := w.Board().Verify(ordersTokens, signed.Compact.RevealString(), token.Expect{}); err != nil {
			t.Errorf("a token of %s: %v", path, err)
		}
	}
	operator := w.token(t, "op", "operator", "prod/**")
	if answer, body := w.post(t, token.RevokePath, url.Values{"token": {before.Compact.RevealString()}}, map[string]string{"Authorization": "Bearer " + operator}); answer.StatusCode != http.StatusOK {
		t.Errorf("%s %v", answer.Status, body)
	}
	_, metrics := w.ask(t, http.MethodGet, "/metrics", map[string]string{"Authorization": "Bearer " + w.root})
	for _, want := range []string{"keyturn_tokens_revoked_total 1\n", `keyturn_jwks_fetches_total{key="` + string(ordersTokens) + `",version="1"}`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	// Another config waits for no rotation either, after one.
	w.reapply(t)
	if got := cached("/orders"); got != "public, max-age=1, must-revalidate" {
		t.Error(got)
	}
}

// TestConfigIsFollowedAfterAStart: a server that died after a config was applied, and
// before what is published followed it, makes up for it when it starts.
func TestConfigIsFollowedAfterAStart(t *testing.T) {
	t.Parallel()
	config := signingConfig(t.TempDir())
	w := signing(t, config)
	issuer := w.Address() + "/orders"
	if err := w.Board().Govern(t.Context(), ordersTokens, token.Settings{
		Issuer: issuer, TokenLife: time.Minute, CacheLife: 9 * time.Second, Readers: map[string]token.Reader{token.Published: {}},
	}); err != nil {
		t.Fatal(err)
	}
	cached := func(w *world) string {
		t.Helper()
		answer, _ := w.ask(t, http.MethodGet, "/orders/.well-known/jwks.json", nil)
		return answer.Header.Get("Cache-Control")
	}
	if got := cached(w); got != "public, max-age=9, must-revalidate" {
		t.Error(got)
	}
	if err := w.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := startServerWith(t, config, nil)
	if got := cached(again); got != "public, max-age=1, must-revalidate" {
		t.Error(got)
	}
	until(t, "it signs with the key again", func() bool {
		signed, err := again.Signer().Sign(t.Context(), token.Request{Key: ordersTokens})
		return err == nil && signed.Issuer == issuer
	})
}

// TestUseIsUnknownAfterARestore: a version that nobody has signed with is unused, until
// the store is put back to an earlier state.
func TestUseIsUnknownAfterARestore(t *testing.T) {
	t.Parallel()
	w := signing(t, signingConfig(t.TempDir()))
	use := func() provider.Usage {
		t.Helper()
		usage, err := w.Board().Tokens(t.Context(), ordersTokens, 1_000)
		if err != nil {
			t.Fatal(err)
		}
		return usage
	}
	if usage := use(); usage.Sessions != 0 {
		t.Errorf("%+v", usage)
	}
	if err := server.MarkRestored(t.Context(), w.Server); err != nil {
		t.Fatal(err)
	}
	if usage := use(); usage.Sessions != 1 || !strings.Contains(usage.Holders[0].Application, "restored") {
		t.Errorf("%+v", usage)
	}
}
