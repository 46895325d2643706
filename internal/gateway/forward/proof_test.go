package forward_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/client/tokencheck"
	"github.com/keyturn/keyturn/internal/gateway/forward"
)

// key is a key of an issuer, or of a client.
type key struct{ jose.JSONWebKey }

func newKey(t *testing.T, id string) key {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key{jose.JSONWebKey{Key: private, KeyID: id, Algorithm: string(jose.ES256), Use: "sig"}}
}

func (k key) sign(t *testing.T, typ jose.ContentType, claims map[string]any) string {
	t.Helper()
	signing := jose.SigningKey{Algorithm: jose.ES256, Key: k.JSONWebKey}
	options := &jose.SignerOptions{}
	if k.KeyID == "" { // a proof has the key itself
		signing.Key, options.EmbedJWK = k.Key, true
	}
	signer, err := jose.NewSigner(signing, options.WithType(typ))
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
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
	return compact
}

// proof is for one request with a token.
func (k key) proof(t *testing.T, method, url, token, nonce string) string {
	t.Helper()
	sum := sha256.Sum256([]byte(token))
	return k.sign(t, "dpop+jwt", map[string]any{
		"jti": rand.Text(), "htm": method, "htu": url, "iat": time.Now().Unix(), "ath": base64.RawURLEncoding.EncodeToString(sum[:]), "nonce": nonce,
	})
}

// TestNginxWithProofs: a client of the standard (RFC 9449) with a token that is bound to its
// key passes a real nginx and a real verifier, with nonces; each proof counts once, for the
// request that nginx has seen, and for no other that a thief says it was.
func TestNginxWithProofs(t *testing.T) {
	signing, holder := newKey(t, "one"), newKey(t, "")
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{signing.Public()}})
	}))
	t.Cleanup(issuer.Close)
	address := freeAddress(t)
	config := forward.TokensConfig{Issuer: issuer.URL, Audience: "orders", Origins: []string{"http://" + address}, Nonces: true}
	checker, err := tokencheck.Open(t.Context(), config.Checker())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(checker.Close)
	const shared = "a-token-of-this-proxy"
	w := pageWorld(t, shared, checker, func(*forward.GateConfig) {})
	gateway := httptest.NewTLSServer(w.handler())
	t.Cleanup(gateway.Close)
	origin := newOrigin(t)
	nginx(t, address, gateway, origin, shared)

	public := holder.Public()
	thumbprint, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Unix()
	claims := map[string]any{
		"iss": issuer.URL, "aud": "orders", "sub": "deploy/repo", "client_id": "deploy", "jti": "1", "scope": "orders:read orders:list", "iat": now, "exp": now + 300,
		"cnf": map[string]any{"jkt": base64.RawURLEncoding.EncodeToString(thumbprint)},
	}
	token := signing.sign(t, "at+jwt", claims)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	ask := func(method, path, scheme, proof string, forged ...string) (int, http.Header) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", scheme+" "+token)
		if proof != "" {
			r.Header.Set("DPoP", proof)
		}
		for i := 0; i < len(forged); i += 2 {
			r.Header.Set(forged[i], forged[i+1])
		}
		answer, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		return answer.StatusCode, answer.Header
	}
	at := "http://" + address + "/orders/%C3%BC"
	status, header := ask(http.MethodGet, "/orders/%C3%BC?page=2", "DPoP", holder.proof(t, http.MethodGet, at, token, ""))
	nonce := header.Get("DPoP-Nonce")
	if status != http.StatusUnauthorized || nonce == "" || !strings.Contains(header.Get("WWW-Authenticate"), "use_dpop_nonce") {
		t.Fatalf("without a nonce: %d %v", status, header)
	}
	good := holder.proof(t, http.MethodGet, at, token, nonce)
	if status, header := ask(http.MethodGet, "/orders/%C3%BC?page=2", "DPoP", good); status != http.StatusOK {
		t.Fatalf("with a proof: %d %v", status, header)
	}
	seen := origin.last(t)
	for name, want := range map[string]string{forward.HeaderKind: "token", forward.HeaderClient: "deploy", forward.HeaderSubject: "deploy/repo", forward.HeaderScopes: "orders:read orders:list", forward.HeaderKey: "-"} {
		if seen.Get(name) != want {
			t.Errorf("the origin sees %s: %q", name, seen.Get(name))
		}
	}
	fresh := func() string { return holder.proof(t, http.MethodGet, at, token, nonce) }
	said := []string{"X-Original-URL", at, "X-Original-Method", http.MethodGet, "X-Forwarded-Uri", "/orders/%C3%BC", "X-Forwarded-Method", http.MethodGet, "X-Forwarded-Host", address, "X-Forwarded-Proto", "http"}
	for what, stolen := range map[string]func() (int, http.Header){
		"shown again":             func() (int, http.Header) { return ask(http.MethodGet, "/orders/%C3%BC", "DPoP", good) },
		"without a proof":         func() (int, http.Header) { return ask(http.MethodGet, "/orders/%C3%BC", "DPoP", "") },
		"as if it were not bound": func() (int, http.Header) { return ask(http.MethodGet, "/orders/%C3%BC", "Bearer", "") },
		"for another method":      func() (int, http.Header) { return ask(http.MethodDelete, "/orders/%C3%BC", "DPoP", fresh(), said...) },
		"for another path":        func() (int, http.Header) { return ask(http.MethodGet, "/admin", "DPoP", fresh(), said...) },
		"by another key": func() (int, http.Header) {
			return ask(http.MethodGet, "/orders/%C3%BC", "DPoP", newKey(t, "").proof(t, http.MethodGet, at, token, nonce))
		},
		"of another host": func() (int, http.Header) {
			return ask(http.MethodGet, "/orders/%C3%BC", "DPoP", holder.proof(t, http.MethodGet, "http://other.example/orders/%C3%BC", token, nonce))
		},
	} {
		before := origin.count()
		if status, header := stolen(); status != http.StatusUnauthorized || origin.count() != before {
			t.Errorf("%s: %d %v", what, status, header)
		}
	}
}
