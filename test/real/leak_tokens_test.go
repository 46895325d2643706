package real

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"math/bits"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/tokensource"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/secret"
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

// bindTokens binds tokens to a key of this process, as an application does, and uses
// one. It returns the private key, and adds what the SDK wrote and sent.
func (w *world) bindTokens(t *testing.T, service string, found places) map[string]string {
	t.Helper()
	logs, sent := &logBuffer{}, &hookBox{}
	resource := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		head, err := httputil.DumpRequest(r, true)
		if err != nil {
			t.Error(err)
		}
		r.Body = io.NopCloser(bytes.NewReader(head))
		sent.ServeHTTP(nil, r)
	}))
	t.Cleanup(resource.Close)
	source, err := tokensource.Open(t.Context(), tokensource.Config{
		Issuer: "https://keys.example.com/orders", Addresses: w.address(), RootCAs: w.roots, DPoP: true,
		Secret: client.StaticToken(secret.NewString(service)), Logger: slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	bound, err := source.Token(t.Context())
	if err != nil || bound.Type != "DPoP" {
		t.Fatal(bound, err)
	}
	transport, err := source.Transport(resource.Client().Transport, strings.TrimPrefix(resource.URL, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	if status, _, err := get(t.Context(), &http.Client{Transport: transport}, resource.URL); err != nil || status != http.StatusOK {
		t.Fatal(status, err)
	}
	_, _, refused := get(t.Context(), &http.Client{Transport: transport}, "https://elsewhere.example.com/")
	found["the log of the SDK"] = fmt.Appendf([]byte(logs.String()), "%v %+v %+v %+v", refused, source.Status(), bound, source)
	found["what a resource was sent"] = []byte(sent.text())
	private := privateKeyIn(reflect.ValueOf(source).Elem().FieldByName("prover"))
	if len(private) < 30 {
		t.Fatal("the source has no private key")
	}
	return map[string]string{"the private key of proofs": string(private), "the private key of proofs, in digits": new(big.Int).SetBytes(private).String()}
}

// privateKeyIn finds the private key that a value refers to; nil if there is none.
func privateKeyIn(v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			return privateKeyIn(v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			if found := privateKeyIn(v.Index(i)); found != nil {
				return found
			}
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[ecdsa.PrivateKey]() {
			number := new(big.Int)
			words := v.FieldByName("D").Elem().FieldByName("abs")
			for i := words.Len() - 1; i >= 0; i-- {
				number.Or(number.Lsh(number, bits.UintSize), new(big.Int).SetUint64(words.Index(i).Uint()))
			}
			return number.Bytes()
		}
		for i := range v.NumField() {
			if found := privateKeyIn(v.Field(i)); found != nil {
				return found
			}
		}
	default:
	}
	return nil
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
