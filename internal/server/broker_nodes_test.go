package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/test/pgtest"
)

const mobileKey = "partners/mobile"

// apiKey applies an API key and returns it.
func (w *world) apiKey(t *testing.T) string {
	t.Helper()
	for _, p := range w.apply(t, w.root, `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: partners}
spec:
  stages: [{name: all, bake: 0s, onEmpty: skip}]
  drain: {min: 0s, quiet: 0s, max: 1m, every: 100ms}
  quarantine: 0s
  endQuarantineEarly: true
---
apiVersion: keyturn/v1
kind: Key
metadata: {name: `+mobileKey+`}
spec:
  provider: apikey
  policy: partners
  config: {client: ACME Ltd., prefix: acme_live, scopes: ["orders:read", "orders:write"], keep: sealed}
`).GetProblems() {
		if p.GetSeverity() == "error" {
			t.Fatalf("%v", p)
		}
	}
	answer, err := w.control(w.root).Rotate(t.Context(), &keyturnv1.RotateRequest{Name: mobileKey, Reason: "first"})
	if err != nil {
		t.Fatal(err)
	}
	w.reached(t, answer.GetRotationId(), "done")
	revealed, err := w.control(w.root).GetSecret(t.Context(), &keyturnv1.GetSecretRequest{Name: mobileKey})
	if err != nil {
		t.Fatal(err)
	}
	return string(revealed.GetSecrets()["key"])
}

// mobileRule lets API keys in; its scopes are more than the key has.
const mobileRule = `      - name: mobile
        from: {apiKeys: [partners/*]}
        audiences: [orders]
        scopes: [orders:read, orders:admin]
        life: 30s
`

// onceRule exchanges each token of a job once.
func onceRule(u *upstream) string {
	return fmt.Sprintf(`      - name: once
        from: {issuer: %q, audience: %q, claims: {repository: acme/*, ref: refs/heads/once}}
        audiences: [orders]
        once: true
`, u.URL, jobAudience)
}

// byAPIKey exchanges an API key for a token.
func byAPIKey(text string, more ...string) url.Values {
	return exchange(text, append([]string{"subject_token_type", "urn:keyturn:params:oauth:token-type:api-key"}, more...)...)
}

// TestAPIKeyBecomesAToken: an application on a phone shows its API key once in a
// while and goes about with tokens that live for seconds. They have the scopes that
// both the rule and the key have. The client revokes its own tokens, and nobody
// else's; a key that leaked gets none any more.
func TestAPIKeyBecomesAToken(t *testing.T) {
	t.Parallel()
	w := brokering(t, signingConfig(t.TempDir()), newUpstream(t), mobileRule)
	text := w.apiKey(t)
	answer, body := w.post(t, token.TokenPath, byAPIKey(text), nil)
	if answer.StatusCode != http.StatusOK || body["expires_in"].(float64) > 30 || body["scope"] != "orders:read" {
		t.Fatalf("%s %v", answer.Status, body)
	}
	compact := body["access_token"].(string)
	claims, err := w.Board().Verify(ordersTokens, compact, token.Expect{Audience: "orders", Type: token.AccessToken})
	if err != nil || claims.Subject != "mobile/"+mobileKey || string(claims.All["client_id"]) != `"`+mobileKey+`"` {
		t.Errorf("%+v, %v", claims, err)
	}
	if !w.audited(t, claims.ID) {
		t.Error("the token is not in the audit log")
	}
	for what, one := range map[string]struct {
		form url.Values
		code string
	}{
		"a scope that the key lacks":      {byAPIKey(text, "scope", "orders:admin"), "invalid_scope"},
		"a scope that the rule lacks":     {byAPIKey(text, "scope", "orders:write"), "invalid_scope"},
		"another audience":                {byAPIKey(text, "audience", "billing"), "invalid_target"},
		"a key with a letter changed":     {byAPIKey(text[:len(text)-1] + "x"), "invalid_client"},
		"a key shown as a token of a job": {exchange(text), "invalid_request"},
	} {
		if answer, body := w.post(t, token.TokenPath, one.form, nil); body["error"] != one.code || body["access_token"] != nil {
			t.Errorf("%s: %s %v", what, answer.Status, body)
		}
	}
	// A token of others is not the client's to revoke.
	service := w.token(t, "svc-orders", "viewer", "prod/**")
	_, body = w.post(t, token.TokenPath, url.Values{"grant_type": {"client_credentials"}, "client_secret": {service}}, nil)
	others := body["access_token"].(string)
	if answer, _ := w.post(t, token.RevokePath, url.Values{"token": {others}, "client_secret": {text}}, nil); answer.StatusCode == http.StatusOK {
		t.Error("a client may revoke a token of others")
	}
	if answer, body := w.post(t, token.RevokePath, url.Values{"token": {compact}, "client_secret": {text}}, nil); answer.StatusCode != http.StatusOK {
		t.Errorf("%s %v", answer.Status, body)
	}
	verifier := w.token(t, "api", "verifier", "prod/**")
	active := func(compact string) bool {
		_, body := w.post(t, token.IntrospectPath, url.Values{"token": {compact}}, map[string]string{"Authorization": "Bearer " + verifier})
		return isActive(body)
	}
	if active(compact) || !active(others) {
		t.Errorf("of the client: %v, of others: %v", active(compact), active(others))
	}
	emergency, err := w.control(w.root).Rotate(t.Context(), &keyturnv1.RotateRequest{Name: mobileKey, Reason: "leaked", Emergency: true, Strategy: "contain-first"})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the leaked key is refused", func() bool {
		_, body := w.post(t, token.TokenPath, byAPIKey(text), nil)
		return body["error"] == "invalid_client"
	})
	w.reached(t, emergency.GetRotationId(), "done")
}

// TestTokensAtTwoNodes: two servers on one store. The first nonce of one is good at the
// other; a proof counts at one of them, once, and so does a job's token under a rule
// that says so. What one revokes the other reports as inactive
// within a second. A node that has lost the store gives no token that no entry
// covers, says so, and does not call a token good for longer than it may.
func TestTokensAtTwoNodes(t *testing.T) {
	t.Parallel()
	database := pgtest.Start(t, pgserver.Config{})
	pgtest.Exec(t, database, "postgres", "CREATE DATABASE keyturn")
	config := onPostgres(t, t.TempDir(), database)
	config.Tokens.Skew, config.Tokens.Outage = 250*time.Millisecond, 4*time.Second
	u := newUpstream(t)
	first := brokering(t, config, u, mobileRule+onceRule(u))
	text := first.apiKey(t)
	second := secondNode(t, first, config)
	until(t, "the second node gives tokens", func() bool {
		answer, _ := second.post(t, token.TokenPath, byAPIKey(text), nil)
		return answer.StatusCode == http.StatusOK
	})

	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	proof := func(nonce string) map[string]string {
		return map[string]string{"DPoP": signJWT(t, private, jose.ES256, "", "dpop+jwt", true, map[string]any{
			"jti": rand.Text(), "htm": "POST", "htu": first.Address() + "/orders" + token.TokenPath, "iat": time.Now().Unix(), "nonce": nonce,
		})}
	}
	form := exchange(u.job(map[string]any{"ref": "refs/heads/bound"}), "scope", "")
	answer, _ := first.post(t, token.TokenPath, form, proof(""))
	nonce := answer.Header.Get("DPoP-Nonce")
	good := proof(nonce)
	show := func(what string, node *world, form url.Values, header map[string]string, want any) (nonce string) {
		t.Helper()
		answer, body := node.post(t, token.TokenPath, form, header)
		if body["error"] != want {
			t.Errorf("%s: %s %v, want %v", what, answer.Status, body, want)
		}
		return answer.Header.Get("DPoP-Nonce")
	}
	own := show("a proof by a nonce of the first node", second, form, good, nil)
	show("its replay", second, form, good, "invalid_dpop_proof")
	show("its replay at the other node", first, form, good, "invalid_dpop_proof")
	good = proof(own)
	show("a proof by the second node's own nonce", second, form, good, nil)
	show("its replay", second, form, good, "invalid_dpop_proof")
	roaming := show("its replay at the other node", first, form, good, "use_dpop_nonce")
	good = proof(roaming)
	if again := show("a proof by the nonce that came of it", first, form, good, nil); again != roaming {
		t.Error("a client whose requests reach both nodes is not known as one")
	}
	show("its replay at the other node", second, form, good, "invalid_dpop_proof")
	job := exchange(u.job(map[string]any{"ref": "refs/heads/once"}), "scope", "")
	show("a job's token", first, job, nil, nil)
	show("its replay at the other node", second, job, nil, "invalid_request")
	show("its replay", first, job, nil, "invalid_request")
	if !first.audited(t, `"token.replay"`) {
		t.Error("the replay is not in the audit log")
	}

	verifier, operator := first.token(t, "api", "verifier", "prod/**"), first.token(t, "op", "operator", "prod/**")
	inspect := func(w *world, compact string) (int, bool) {
		answer, body := w.post(t, token.IntrospectPath, url.Values{"token": {compact}}, map[string]string{"Authorization": "Bearer " + verifier})
		return answer.StatusCode, isActive(body)
	}
	fresh := func(w *world) string {
		_, body := w.post(t, token.TokenPath, byAPIKey(text), nil)
		compact, _ := body["access_token"].(string)
		return compact
	}
	revoked, kept := fresh(first), fresh(second)
	if status, active := inspect(second, revoked); status != http.StatusOK || !active {
		t.Fatalf("a token of the first node at the second: %d %v", status, active)
	}
	began := time.Now()
	if answer, body := first.post(t, token.RevokePath, url.Values{"token": {revoked}}, map[string]string{"Authorization": "Bearer " + operator}); answer.StatusCode != http.StatusOK {
		t.Fatalf("%s %v", answer.Status, body)
	}
	until(t, "the second node knows", func() bool { _, active := inspect(second, revoked); return !active })
	if took := time.Since(began); took > time.Second {
		t.Errorf("the second node knew after %v", took)
	} else {
		t.Logf("the second node knew after %v", took)
	}

	if err := server.CloseStore(second.Server); err != nil {
		t.Fatal(err)
	}
	cut := time.Now()
	if status, active := inspect(second, kept); status != http.StatusOK || !active {
		t.Errorf("introspection without the store: %d %v", status, active)
	}
	if _, active := inspect(second, revoked); active {
		t.Error("a revoked token is good again")
	}
	if set, _ := second.ask(t, http.MethodGet, "/orders/.well-known/jwks.json", nil); set.StatusCode != http.StatusOK {
		t.Errorf("the set without the store: %s", set.Status)
	}
	if fresh(second) == "" && time.Since(cut) < config.Tokens.Outage/2 {
		t.Error("a client that an entry covers gets no token")
	}
	away := func(what string, form url.Values, path string, header map[string]string) {
		t.Helper()
		answer, body := second.post(t, path, form, header)
		if answer.StatusCode != http.StatusServiceUnavailable || body["error"] != "temporarily_unavailable" || answer.Header.Get("Retry-After") == "" || body["access_token"] != nil {
			t.Errorf("%s without the store: %s %v", what, answer.Status, body)
		}
	}
	away("an exchange, which has an entry of its own", exchange(u.job(nil)), token.TokenPath, nil)
	away("revocation", url.Values{"token": {kept}, "client_secret": {text}}, token.RevokePath, nil)
	until(t, "the second node no longer knows what is revoked", func() bool {
		status, active := inspect(second, kept)
		return status == http.StatusServiceUnavailable && !active
	})
	if _, active := inspect(first, kept); !active {
		t.Error("the first node does not know the token")
	}
}
