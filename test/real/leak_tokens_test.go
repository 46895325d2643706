package real

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

const signingKey = "prod/orders/tokens"

const signingKeyDocuments = `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: signing}
spec:
  stages: [{name: all, bake: 0s, ackTimeout: 10s, onEmpty: skip}]
  drain: {min: 0s, quiet: 0s, max: 1m, every: 100ms}
  quarantine: 0s
  endQuarantineEarly: true
---
apiVersion: keyturn/v1
kind: Key
metadata: {name: prod/orders/tokens}
spec:
  provider: jwks
  policy: signing
  config:
    issuer: https://keys.example.com/orders
    tokenLife: 30s
    cacheLife: 1s
    grants:
      - {name: services, from: {tokens: [svc-*]}, audiences: [orders], scopes: ["orders:read"]}
`

// issueTokens has a signing key, gives a token of it to a service, shows it around and
// revokes it. It returns what is secret of that.
func (w *world) issueTokens(t *testing.T) map[string]string {
	t.Helper()
	w.apply(t, signingKeyDocuments)
	w.finish(t, w.rotateKey(t, signingKey, "first"), "done")
	revealed, err := w.control.GetSecret(t.Context(), &keyturnv1.GetSecretRequest{Name: signingKey})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(revealed.GetSecrets()["privateKey"])
	if block == nil {
		t.Fatal("the signing key has no private key")
	}
	private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	service, err := w.control.CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{Name: "svc-orders", Role: "verifier", Keys: []string{"prod/**"}})
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string]string{
		"the seed of the signing key": string(private.(ed25519.PrivateKey).Seed()), "the service's token": service.GetToken(),
	}
	compact := ""
	for i, form := range []url.Values{{"grant_type": {"client_credentials"}}, {"grant_type": {"client_credentials"}, "scope": {"orders:read"}}} {
		eventually(t, "a token", func() bool {
			compact, _ = w.form(t, "/orders/oauth/token", service.GetToken(), form)["access_token"].(string)
			return compact != ""
		})
		secrets[fmt.Sprintf("the signature of access token %d", i+1)] = compact[strings.LastIndexByte(compact, '.')+1:]
	}
	of := url.Values{"token": {compact}}
	if active, _ := w.form(t, "/orders/oauth/introspect", service.GetToken(), of)["active"].(bool); !active {
		t.Error("the token is not active")
	}
	w.form(t, "/orders/oauth/revoke", w.token, of)
	w.form(t, "/orders/oauth/introspect", service.GetToken(), of)
	// Whoever puts a token where it does not belong finds it in no log either.
	w.form(t, "/orders/oauth/token?access_token="+compact, compact, url.Values{"grant_type": {"client_credentials"}, "scope": {compact}, "audience": {compact}})
	return secrets
}

// form sends a form as the bearer of a token.
func (w *world) form(t *testing.T, path, token string, form url.Values) map[string]any {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.address()+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	client := http.Client{Transport: bearer{token, w.client.Transport.(bearer).next}}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body := map[string]any{}
	if response.ContentLength != 0 {
		if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
			t.Fatalf("%s: %s: %v", path, response.Status, err)
		}
	}
	return body
}
