package tokencheck_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/client/tokencheck"
	"github.com/keyturn/keyturn/internal/dpop"
)

func bearer(compact string) *tokencheck.Shown { return &tokencheck.Shown{Token: compact} }

// TestGoodTokens: what the broker issues is accepted, with its claims.
func TestGoodTokens(t *testing.T) {
	ed, ec := edSigner(t, "ed"), ecSigner(t, "ec")
	b := newBoard(ed, ec)
	c := b.open(t, nil)
	for _, s := range []signer{ed, ec} {
		claims, err := c.Check(t.Context(), bearer(s.sign(t, claimsOf(time.Now()), nil)))
		if err != nil || claims.Subject != "deploy/repo" || claims.Client != "deploy" || !claims.Has("orders:write") || claims.Has("orders") || claims.KeyID != s.kid ||
			claims.ID != "one" || string(claims.All["client_id"]) != `"deploy"` || time.Until(claims.Expires) < 290*time.Second {
			t.Errorf("%s: %+v, %v", s.kid, claims, err)
		}
	}
	for what, claims := range map[string]map[string]any{
		"one audience":       with(time.Now(), "aud", audience),
		"a clock ahead":      with(time.Now().Add(-308*time.Second), "nbf", nil),
		"a clock behind":     with(time.Now(), "iat", time.Now().Unix()+8),
		"no time to begin":   with(time.Now(), "nbf", nil),
		"a scope of nothing": with(time.Now(), "scope", nil),
	} {
		if _, err := c.Check(t.Context(), bearer(ed.sign(t, claims, nil))); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := c.Check(t.Context(), bearer(ed.sign(t, claimsOf(time.Now()), map[string]any{"typ": "application/at+JWT"}))); err != nil {
		t.Errorf("the type in full: %v", err)
	}
	if b.urls[0] != issuerURL+"/.well-known/jwks/orders-api.json" {
		t.Errorf("fetched from %v", b.urls)
	}
}

// TestBadTokens: everything else is refused, with a reason, and with no part of the token.
func TestBadTokens(t *testing.T) {
	ed, ec := edSigner(t, "ed"), ecSigner(t, "ec")
	now := time.Now()
	c := newBoard(ed, ec).open(t, nil)
	good := strings.Split(ed.sign(t, claimsOf(now), nil), ".")
	raw := func(header string) string {
		return base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + good[1] + "." + good[2]
	}
	// The public key as a shared secret, in the two forms that libraries have fallen for.
	der, err := x509.MarshalPKIXPublicKey(ec.public)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := json.Marshal(jose.JSONWebKey{Key: ec.public})
	if err != nil {
		t.Fatal(err)
	}
	stolenKid, otherKid, swapped := edSigner(t, "ed"), edSigner(t, "unknown"), ed
	swapped.kid = "ec"
	cases := map[string]string{
		"none":                   raw(`{"alg":"none","typ":"at+jwt","kid":"ed"}`),
		"none, without a kid":    raw(`{"alg":"none"}`),
		"None":                   raw(`{"alg":"None","typ":"at+jwt","kid":"ed"}`),
		"shared: DER":            signer{"ec", jose.HS256, der, nil}.sign(t, claimsOf(now), nil),
		"shared: JWK":            signer{"ec", jose.HS256, plain, nil}.sign(t, claimsOf(now), nil),
		"another's key":          stolenKid.sign(t, claimsOf(now), nil),
		"an unknown kid":         otherKid.sign(t, claimsOf(now), nil),
		"the kid of another":     swapped.sign(t, claimsOf(now), nil),
		"no kid":                 raw(`{"alg":"EdDSA","typ":"at+jwt"}`),
		"a kid of a path":        signer{"../../etc/passwd", jose.EdDSA, ed.private, nil}.sign(t, claimsOf(now), nil),
		"a key of its own":       ownKey(t, now),
		"an ID token":            ed.sign(t, claimsOf(now), map[string]any{"typ": "JWT"}),
		"a nested token":         ed.sign(t, claimsOf(now), map[string]any{"cty": "JWT"}),
		"a critical header":      ed.sign(t, claimsOf(now), map[string]any{"crit": []string{"exp"}, "exp": 1}),
		"a key elsewhere":        ed.sign(t, claimsOf(now), map[string]any{"jku": "https://evil.example.com/"}),
		"another issuer":         ed.sign(t, with(now, "iss", issuerURL+"/"), nil),
		"no issuer":              ed.sign(t, with(now, "iss", nil), nil),
		"another audience":       ed.sign(t, with(now, "aud", []string{"order", "orders2"}), nil),
		"no audience":            ed.sign(t, with(now, "aud", nil), nil),
		"expired":                ed.sign(t, with(now, "exp", now.Unix()-12), nil),
		"no end":                 ed.sign(t, with(now, "exp", nil), nil),
		"an end that is a text":  ed.sign(t, with(now, "exp", "tomorrow"), nil),
		"for ever":               ed.sign(t, with(now, "exp", now.Unix()+1e9), nil),
		"for ever and a day":     ed.sign(t, with(now, "exp", 1e300), nil),
		"not yet":                ed.sign(t, with(now, "nbf", now.Unix()+12), nil),
		"from the future":        ed.sign(t, with(now, "iat", now.Unix()+12), nil),
		"before it was issued":   ed.sign(t, with(now, "iat", now.Unix()+400), nil),
		"without when":           ed.sign(t, with(now, "iat", nil), nil),
		"bound to what?":         ed.sign(t, with(now, "cnf", map[string]any{"kid": "x"}), nil),
		"bound to nothing":       ed.sign(t, with(now, "cnf", map[string]any{}), nil),
		"bound to a number":      ed.sign(t, with(now, "cnf", map[string]any{"jkt": 1}), nil),
		"huge":                   ed.sign(t, with(now, "x", strings.Repeat("a", 20_000)), nil),
		"nested deep":            ed.signRaw(t, []byte(`{"x":`+strings.Repeat("[", 3000)+strings.Repeat("]", 3000)+`}`), nil),
		"a claim twice":          ed.signRaw(t, []byte(`{"iss":"`+issuerURL+`","aud":"orders","aud":"x","iat":1,"exp":2}`), nil),
		"no claims":              ed.signRaw(t, []byte(`[]`), nil),
		"null":                   ed.signRaw(t, []byte(`null`), nil),
		"no signature":           good[0] + "." + good[1] + ".",
		"half a signature":       good[0] + "." + good[1] + "." + good[2][:40],
		"other claims":           good[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{}`)) + "." + good[2],
		"five parts":             "a.b.c.d.e",
		"JSON":                   `{"payload":"a","signatures":[]}`,
		"dots":                   "..",
		"empty":                  "",
		"spaces":                 strings.Repeat(" ", 30_000),
		"a token and a line end": ed.sign(t, claimsOf(now), nil) + "\n.",
	}
	for what, compact := range cases {
		claims, err := c.Check(t.Context(), bearer(compact))
		if !errors.Is(err, tokencheck.ErrRefused) || claims.Subject != "" || claims.All != nil {
			t.Errorf("%s: %+v, %v", what, claims, err)
		}
		if err != nil && (len(err.Error()) > 200 || len(good[1]) > 20 && strings.Contains(err.Error(), good[1])) {
			t.Errorf("%s: the error is %q", what, err)
		}
	}
}

// ownKey is a token that brings the key it is signed with.
func ownKey(t *testing.T, now time.Time) string {
	t.Helper()
	s := edSigner(t, "ed")
	made, err := jose.NewSigner(jose.SigningKey{Algorithm: s.alg, Key: jose.JSONWebKey{Key: s.private, KeyID: "ed"}}, (&jose.SignerOptions{EmbedJWK: true}).WithType("at+jwt"))
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claimsOf(now))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := made.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

// TestAlgorithmsOfTheList: a key whose algorithm is not allowed does not count, and one
// with no algorithm, or of another kind than its algorithm, never.
func TestAlgorithmsOfTheList(t *testing.T) {
	ed, ec := edSigner(t, "ed"), ecSigner(t, "ec")
	b := newBoard(ed, ec)
	c := b.open(t, func(c *tokencheck.Config) { c.Algorithms = []string{"ES256"} })
	if _, err := c.Check(t.Context(), bearer(ec.sign(t, claimsOf(time.Now()), nil))); err != nil {
		t.Error(err)
	}
	if _, err := c.Check(t.Context(), bearer(ed.sign(t, claimsOf(time.Now()), nil))); !errors.Is(err, tokencheck.ErrRefused) {
		t.Errorf("EdDSA: %v", err)
	}
}

// TestKeyDecidesOnTheAlgorithm: a signature that is good, by an algorithm that is allowed
// and that the key could be used with, is refused if the key is published for another.
func TestKeyDecidesOnTheAlgorithm(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pss, pkcs := signer{"rsa", jose.PS256, private, private.Public()}, signer{"rsa", jose.RS256, private, private.Public()}
	c := newBoard(pss).open(t, nil)
	if _, err := c.Check(t.Context(), bearer(pss.sign(t, claimsOf(time.Now()), nil))); err != nil {
		t.Error(err)
	}
	if _, err := c.Check(t.Context(), bearer(pkcs.sign(t, claimsOf(time.Now()), nil))); !errors.Is(err, tokencheck.ErrRefused) {
		t.Errorf("RS256 by a key for PS256: %v", err)
	}
}

// proofs makes proofs of one key.
type proofs struct {
	signer

	jkt string
}

func newProofs(tb testing.TB) proofs {
	tb.Helper()
	s := ecSigner(tb, "")
	sum, err := (&jose.JSONWebKey{Key: s.public}).Thumbprint(crypto.SHA256)
	if err != nil {
		tb.Fatal(err)
	}
	return proofs{s, base64.RawURLEncoding.EncodeToString(sum)}
}

func (p proofs) make(tb testing.TB, edit map[string]any) string {
	tb.Helper()
	c := map[string]any{"jti": rand.Text(), "htm": "POST", "htu": "https://orders.example.com/a", "iat": time.Now().Unix()}
	for name, value := range edit {
		c[name] = value
	}
	payload, err := json.Marshal(c)
	if err != nil {
		tb.Fatal(err)
	}
	made, err := jose.NewSigner(jose.SigningKey{Algorithm: p.alg, Key: p.private}, (&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt"))
	if err != nil {
		tb.Fatal(err)
	}
	signed, err := made.Sign(payload)
	if err != nil {
		tb.Fatal(err)
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		tb.Fatal(err)
	}
	return compact
}

// TestTokensBoundToAKey: only with a proof by the key, for this request, token and
// origin, and each proof once.
func TestTokensBoundToAKey(t *testing.T) {
	ed, mine, thief := edSigner(t, "ed"), newProofs(t), newProofs(t)
	c := newBoard(ed).open(t, nil)
	compact := ed.sign(t, with(time.Now(), "cnf", map[string]any{"jkt": mine.jkt}), nil)
	ath := map[string]any{"ath": dpop.HashOf(compact)}
	shown := func(list ...string) *tokencheck.Shown {
		return &tokencheck.Shown{Token: compact, DPoP: true, Proofs: list, Method: "POST", URL: "https://orders.example.com/a?b=c"}
	}
	proof := mine.make(t, ath)
	if claims, err := c.Check(t.Context(), shown(proof)); err != nil || claims.Thumbprint != mine.jkt {
		t.Fatalf("%+v, %v", claims, err)
	}
	evil := shown(mine.make(t, map[string]any{"ath": ath["ath"], "htu": "https://evil.example.com/a"}))
	evil.URL = "https://evil.example.com/a"
	prefix := shown(mine.make(t, map[string]any{"ath": ath["ath"], "htu": "https://orders.example.com.evil/a"}))
	prefix.URL = "https://orders.example.com.evil/a"
	get := shown(mine.make(t, ath))
	get.Method = "GET"
	for what, s := range map[string]*tokencheck.Shown{
		"a replay":              shown(proof),
		"no proof":              shown(),
		"two proofs":            shown(mine.make(t, ath), mine.make(t, ath)),
		"as if it were not":     {Token: compact, Proofs: []string{mine.make(t, ath)}, Method: "POST", URL: "https://orders.example.com/a"},
		"a thief's proof":       shown(thief.make(t, ath)),
		"for another token":     shown(mine.make(t, map[string]any{"ath": dpop.HashOf("x")})),
		"for no token":          shown(mine.make(t, nil)),
		"from another service":  evil,
		"an origin like ours":   prefix,
		"another method":        get,
		"old":                   shown(mine.make(t, map[string]any{"ath": ath["ath"], "iat": time.Now().Unix() - 70})),
		"no JWS":                shown("x"),
		"unbound, said to be":   {Token: ed.sign(t, claimsOf(time.Now()), nil), DPoP: true, Proofs: []string{mine.make(t, nil)}, Method: "POST", URL: "https://orders.example.com/a"},
		"without a certificate": bearer(ed.sign(t, with(time.Now(), "cnf", map[string]any{"x5t#S256": "AAAA"}), nil)),
	} {
		if _, err := c.Check(t.Context(), s); !errors.Is(err, tokencheck.ErrRefused) {
			t.Errorf("%s: %v", what, err)
		}
	}
	strict := newBoard(ed).open(t, func(c *tokencheck.Config) { c.Bound, c.Origins = true, nil })
	if _, err := strict.Check(t.Context(), bearer(ed.sign(t, claimsOf(time.Now()), nil))); !errors.Is(err, tokencheck.ErrRefused) {
		t.Errorf("unbound where that is demanded: %v", err)
	}
	if _, err := strict.Check(t.Context(), shown(mine.make(t, ath))); !errors.Is(err, tokencheck.ErrRefused) {
		t.Errorf("without an origin of its own: %v", err)
	}
}

// TestProofsAreRememberedWithinBounds: what cannot be remembered is not accepted, and not
// refused either.
func TestProofsAreRememberedWithinBounds(t *testing.T) {
	ed, mine := edSigner(t, "ed"), newProofs(t)
	c := newBoard(ed).open(t, func(c *tokencheck.Config) { c.MaxProofs = 3 })
	compact := ed.sign(t, with(time.Now(), "cnf", map[string]any{"jkt": mine.jkt}), nil)
	for n := range 5 {
		_, err := c.Check(t.Context(), &tokencheck.Shown{
			Token: compact, DPoP: true, Proofs: []string{mine.make(t, map[string]any{"ath": dpop.HashOf(compact)})}, Method: "POST", URL: "https://orders.example.com/a",
		})
		if n < 3 && err != nil || n >= 3 && !errors.Is(err, tokencheck.ErrUnsure) {
			t.Errorf("proof %d: %v", n, err)
		}
	}
}

// TestNonces: with them a proof counts at this process only.
func TestNonces(t *testing.T) {
	ed, mine := edSigner(t, "ed"), newProofs(t)
	b := newBoard(ed)
	one, other := b.open(t, func(c *tokencheck.Config) { c.Nonces = true }), b.open(t, func(c *tokencheck.Config) { c.Nonces = true })
	compact := ed.sign(t, with(time.Now(), "cnf", map[string]any{"jkt": mine.jkt}), nil)
	show := func(c *tokencheck.Checker, nonce string) error {
		_, err := c.Check(t.Context(), &tokencheck.Shown{
			Token: compact, DPoP: true, Method: "POST", URL: "https://orders.example.com/a",
			Proofs: []string{mine.make(t, map[string]any{"ath": dpop.HashOf(compact), "nonce": nonce})},
		})
		return err
	}
	if err := show(one, ""); !errors.Is(err, tokencheck.ErrNonce) {
		t.Error(err)
	}
	if err := show(one, one.Nonce()); err != nil {
		t.Error(err)
	}
	if err := show(other, one.Nonce()); !errors.Is(err, tokencheck.ErrNonce) {
		t.Errorf("at another process: %v", err)
	}
}

// TestHandler: what clients see of each outcome, over TLS with and without a certificate.
func TestHandler(t *testing.T) {
	ed, mine := edSigner(t, "ed"), newProofs(t)
	b := newBoard(ed)
	var checker *tokencheck.Checker
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		checker.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			claims, ok := tokencheck.From(r.Context())
			if !ok || claims.Subject != "deploy/repo" {
				t.Error("no claims")
			}
			w.WriteHeader(http.StatusNoContent)
		}), "orders:read").ServeHTTP(w, r)
	}))
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13}
	s.StartTLS()
	t.Cleanup(s.Close)
	checker = b.open(t, func(c *tokencheck.Config) { c.Origins, c.Nonces = []string{s.URL}, true })
	client := s.Client()
	t.Cleanup(client.CloseIdleConnections)
	certificate := s.TLS.Certificates[0]
	sum := sha256.Sum256(certificate.Certificate[0])
	toCert := with(time.Now(), "cnf", map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])})
	toKey := ed.sign(t, with(time.Now(), "cnf", map[string]any{"jkt": mine.jkt}), nil)
	proof := func(nonce string) string {
		return mine.make(t, map[string]any{"ath": dpop.HashOf(toKey), "htm": "GET", "htu": s.URL + "/a", "nonce": nonce})
	}
	ask := func(header ...string) (int, http.Header) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/a?b", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			r.Header.Add(header[i], header[i+1])
		}
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		return response.StatusCode, response.Header
	}
	good := ed.sign(t, claimsOf(time.Now()), nil)
	for what, one := range map[string]struct {
		header []string
		status int
		says   string
	}{
		"good":                      {[]string{"Authorization", "bearer " + good}, 204, ""},
		"nothing":                   {nil, 401, `Bearer realm="keyturn"`},
		"bad":                       {[]string{"Authorization", "Bearer x"}, 401, `error="invalid_token"`},
		"two":                       {[]string{"Authorization", "Bearer " + good, "Authorization", "Bearer " + good}, 401, `error="invalid_token"`},
		"basic":                     {[]string{"Authorization", "Basic " + good}, 401, `error="invalid_token"`},
		"without a scope":           {[]string{"Authorization", "Bearer " + ed.sign(t, with(time.Now(), "scope", "orders"), nil)}, 403, `error="insufficient_scope", scope="orders:read"`},
		"bound, without a nonce":    {[]string{"Authorization", "DPoP " + toKey, "DPoP", proof("")}, 401, `DPoP algs="EdDSA ES256 ES384 PS256 RS256", error="use_dpop_nonce"`},
		"bound, with a nonce":       {[]string{"Authorization", "DPoP " + toKey, "DPoP", proof(checker.Nonce())}, 204, ""},
		"bound, shown as if it not": {[]string{"Authorization", "Bearer " + toKey, "DPoP", proof(checker.Nonce())}, 401, `error="invalid_token"`},
		"another's certificate":     {[]string{"Authorization", "Bearer " + ed.sign(t, toCert, nil)}, 401, `error="invalid_token"`},
	} {
		status, header := ask(one.header...)
		if status != one.status || !strings.Contains(header.Get("WWW-Authenticate"), one.says) || header.Get("DPoP-Nonce") == "" {
			t.Errorf("%s: %d %v", what, status, header)
		}
	}
	client.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{certificate}
	client.CloseIdleConnections()
	if status, _ := ask("Authorization", "Bearer "+ed.sign(t, toCert, nil)); status != http.StatusNoContent {
		t.Errorf("with the certificate: %d", status)
	}
}

// TestConfig: what is wrong is told.
func TestConfig(t *testing.T) {
	for what, change := range map[string]func(*tokencheck.Config){
		"no issuer":        func(c *tokencheck.Config) { c.Issuer = "" },
		"in the clear":     func(c *tokencheck.Config) { c.Issuer = "http://keys.example.com" },
		"no audience":      func(c *tokencheck.Config) { c.Audience = "" },
		"a shared secret":  func(c *tokencheck.Config) { c.Algorithms = []string{"HS256"} },
		"none":             func(c *tokencheck.Config) { c.Algorithms = []string{"none"} },
		"a reader":         func(c *tokencheck.Config) { c.Reader = "../x" },
		"two sets":         func(c *tokencheck.Config) { c.KeySet = "https://a/b" },
		"an origin":        func(c *tokencheck.Config) { c.Origins = []string{"orders.example.com"} },
		"a path of origin": func(c *tokencheck.Config) { c.Origins = []string{"https://orders.example.com/"} },
		"skew":             func(c *tokencheck.Config) { c.Skew = time.Hour },
		"age":              func(c *tokencheck.Config) { c.MaxAge = 48 * time.Hour },
		"proofs":           func(c *tokencheck.Config) { c.MaxProofs = -1 },
		"authorities":      func(c *tokencheck.Config) { c.HTTPClient, c.CACertFile = nil, "/nowhere" },
	} {
		config := newBoard().config()
		change(&config)
		if c, err := tokencheck.Open(t.Context(), config); !errors.Is(err, tokencheck.ErrConfig) {
			t.Errorf("%s: %v", what, err)
			if c != nil {
				c.Close()
			}
		}
	}
}

// FuzzCheck: whatever is shown, only what the issuer has signed is accepted, and errors
// are short and say nothing of it.
func FuzzCheck(f *testing.F) {
	ed, ec, mine := edSigner(f, "ed"), ecSigner(f, "ec"), newProofs(f)
	c := newBoard(ed, ec).open(f, nil)
	signed := map[string]bool{}
	for _, compact := range []string{
		ed.sign(f, claimsOf(time.Now()), nil), ec.sign(f, claimsOf(time.Now()), nil), ed.sign(f, with(time.Now(), "cnf", map[string]any{"jkt": mine.jkt}), nil),
	} {
		parts := strings.Split(compact, ".")
		signed[parts[0]+"."+parts[1]] = true
		f.Add(compact, "", false)
		f.Add(compact, mine.make(f, map[string]any{"ath": dpop.HashOf(compact)}), true)
		f.Add(base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"ed","typ":"at+jwt"}`))+"."+parts[1]+".", "", false)
		f.Add(base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","kid":"ec","typ":"at+jwt"}`))+"."+parts[1]+"."+parts[2], "", false)
	}
	f.Add("..", "..", true)
	f.Fuzz(func(t *testing.T, compact, proof string, bound bool) {
		shown := &tokencheck.Shown{Token: compact, DPoP: bound, Method: "POST", URL: "https://orders.example.com/a"}
		if proof != "" {
			shown.Proofs = []string{proof}
		}
		claims, err := c.Check(t.Context(), shown)
		if err != nil {
			if !errors.Is(err, tokencheck.ErrRefused) && !errors.Is(err, tokencheck.ErrUnsure) || len(err.Error()) > 250 || claims.All != nil {
				t.Errorf("%v with %v", err, claims)
			}
			return
		}
		parts := strings.Split(compact, ".")
		if len(parts) != 3 || !signed[parts[0]+"."+parts[1]] || claims.Issuer != issuerURL || bound != (claims.Thumbprint != "") {
			t.Errorf("accepted %q", compact)
		}
	})
}

// FuzzKeySet: of whatever set only public keys with a kid are taken, and not too many.
func FuzzKeySet(f *testing.F) {
	ed := edSigner(f, "ed")
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		f.Fatal(err)
	}
	for _, k := range []jose.JSONWebKey{
		{Key: ed.public, KeyID: "a", Algorithm: "EdDSA"},
		{Key: ed.private, KeyID: "a", Algorithm: "EdDSA"},
		{Key: []byte("secret"), KeyID: "a", Algorithm: "HS256"},
		{Key: ed.public, KeyID: "a", Algorithm: "ES256"},
		{Key: weak.Public(), KeyID: "a", Algorithm: "RS256"},
	} {
		body, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{k}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
		f.Add([]byte(fmt.Sprintf(`{"keys":[%s,%s]}`, body, body)))
	}
	for _, text := range []string{"", "{}", "[]", `{"keys":null}`, `{"keys":[null,{},[]]}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		keys, err := tokencheck.ReadSet(body)
		if err != nil && len(keys) > 0 || len(keys) > 1000 {
			t.Errorf("%d keys, %v", len(keys), err)
		}
		for kid, k := range keys {
			if _, private := k.(crypto.Signer); kid == "" || private || !(&jose.JSONWebKey{Key: k}).IsPublic() {
				t.Errorf("took %q: %T", kid, k)
			}
			if r, ok := k.(*rsa.PublicKey); ok && r.N.BitLen() < 2048 {
				t.Errorf("took %d bits", r.N.BitLen())
			}
		}
	})
}
