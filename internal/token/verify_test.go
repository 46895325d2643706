package token_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/internal/sim/memstore"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/internal/webtoken"
	"github.com/keyturn/keyturn/key"
)

// forger signs whatever a test wants.
type forger struct {
	t       testing.TB
	private crypto.Signer
	kid     string
}

// published returns a board with one key, and who has the private key.
func published(t testing.TB, algorithm jose.SignatureAlgorithm) (*token.Board, *forger) {
	t.Helper()
	f := &forger{t: t, kid: "k1"}
	if algorithm == jose.EdDSA {
		_, f.private, _ = ed25519.GenerateKey(rand.Reader)
	} else {
		f.private = ecKey(t)
	}
	b := token.NewBoard(token.BoardConfig{Store: memstore.New(), Logger: slog.New(slog.DiscardHandler), Now: time.Now, Node: "one", Outage: outage, Skew: skew})
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Stop(context.Background()) })
	_, err := b.Change(t.Context(), token.Change{
		Key: orders, Endpoint: token.Published, Version: 1, Listed: true, Fence: 1, Attributes: materialOf(t, f.private, algorithm, f.kid).Attributes,
		Issuer: issuer, TokenLife: tokenLife, CacheLife: cacheLife, Endpoints: []string{token.Published},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b, f
}

func (f *forger) claims(edit func(map[string]any)) []byte {
	f.t.Helper()
	now := time.Now().Unix()
	claims := map[string]any{"iss": issuer, "sub": "alice", "aud": "orders", "iat": now, "nbf": now, "exp": now + 60, "jti": "1"}
	if edit != nil {
		edit(claims)
	}
	body, err := json.Marshal(claims)
	if err != nil {
		f.t.Fatal(err)
	}
	return body
}

// sign makes a token with any header and payload; the signature is right.
func (f *forger) sign(header, payload []byte) string {
	input := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(payload)
	signature, err := f.private.Sign(rand.Reader, []byte(input), crypto.Hash(0))
	if err != nil {
		panic(err) // a fuzz target has no *testing.F
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func (f *forger) with(key jose.SigningKey, extra map[jose.HeaderKey]any, payload []byte) string {
	f.t.Helper()
	options := (&jose.SignerOptions{ExtraHeaders: extra}).WithType("JWT")
	signer, err := jose.NewSigner(key, options)
	if err != nil {
		f.t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		f.t.Fatal(err)
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		f.t.Fatal(err)
	}
	return compact
}

// TestTokensThatAreRefused: each is an attack, or a slip, that some library fell for.
func TestTokensThatAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, f := published(t, jose.EdDSA)
		_, stranger, _ := ed25519.GenerateKey(rand.Reader)
		good := []byte(`{"alg":"EdDSA","kid":"k1","typ":"JWT"}`)
		public, _ := f.private.Public().(ed25519.PublicKey)
		strangerKey := jose.JSONWebKey{Key: stranger.Public(), KeyID: "k1", Algorithm: "EdDSA"}
		valid := f.sign(good, f.claims(nil))
		if _, err := b.Verify(orders, valid, token.Expect{Audience: "orders", Type: token.JWT}); err != nil {
			t.Fatalf("a valid token: %v", err)
		}
		parts := strings.Split(valid, ".")
		at := func(name string, value any) string {
			return f.sign(good, f.claims(func(c map[string]any) { c[name] = value }))
		}
		without := func(name string) string { return f.sign(good, f.claims(func(c map[string]any) { delete(c, name) })) }
		now := time.Now().Unix()
		for what, compact := range map[string]string{
			"algorithm none":                  base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"k1","typ":"JWT"}`)) + "." + parts[1] + ".",
			"algorithm NoNe":                  base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"NoNe","kid":"k1","typ":"JWT"}`)) + "." + parts[1] + "." + parts[2],
			"HS256 with the public key":       f.with(jose.SigningKey{Algorithm: jose.HS256, Key: jose.JSONWebKey{Key: []byte(public), KeyID: "k1"}}, nil, f.claims(nil)),
			"ES256 for an Ed25519 key":        f.with(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: ecKey(t), KeyID: "k1"}}, nil, f.claims(nil)),
			"a stranger's key in jwk":         f.with(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: stranger, KeyID: "k1"}}, map[jose.HeaderKey]any{"jwk": strangerKey}, f.claims(nil)),
			"a stranger's key by jku":         f.with(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: stranger, KeyID: "k1"}}, map[jose.HeaderKey]any{"jku": "https://evil.example.com/jwks.json"}, f.claims(nil)),
			"a stranger's key by x5u":         f.with(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: stranger, KeyID: "k1"}}, map[jose.HeaderKey]any{"x5u": "https://evil.example.com/cert.pem"}, f.claims(nil)),
			"a kid that is none":              f.sign([]byte(`{"alg":"EdDSA","kid":"k2","typ":"JWT"}`), f.claims(nil)),
			"a kid like a path":               f.sign([]byte(`{"alg":"EdDSA","kid":"../../k1","typ":"JWT"}`), f.claims(nil)),
			"no kid":                          f.sign([]byte(`{"alg":"EdDSA","typ":"JWT"}`), f.claims(nil)),
			"a huge kid":                      f.sign([]byte(`{"alg":"EdDSA","kid":"`+strings.Repeat("k", 64<<10)+`","typ":"JWT"}`), f.claims(nil)),
			"kid twice":                       f.sign([]byte(`{"alg":"EdDSA","kid":"k2","kid":"k1","typ":"JWT"}`), f.claims(nil)),
			"a critical header":               f.sign([]byte(`{"alg":"EdDSA","kid":"k1","typ":"JWT","crit":["exp"],"exp":1}`), f.claims(nil)),
			"a payload that is not encoded":   f.sign([]byte(`{"alg":"EdDSA","kid":"k1","typ":"JWT","b64":false,"crit":["b64"]}`), f.claims(nil)),
			"a type of something else":        f.sign([]byte(`{"alg":"EdDSA","kid":"k1","typ":"dpop+jwt"}`), f.claims(nil)),
			"no type":                         f.sign([]byte(`{"alg":"EdDSA","kid":"k1"}`), f.claims(nil)),
			"another payload":                 parts[0] + "." + base64.RawURLEncoding.EncodeToString(f.claims(func(c map[string]any) { c["sub"] = "root" })) + "." + parts[2],
			"no signature":                    parts[0] + "." + parts[1] + ".",
			"a signature cut short":           valid[:len(valid)-4],
			"padding":                         valid + "==",
			"five parts":                      valid + ".a.b",
			"JSON serialisation":              `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
			"nothing":                         "",
			"huge":                            strings.Repeat("a", webtoken.MaxSize) + valid,
			"claims nested deep":              f.sign(good, []byte(`{"a":`+strings.Repeat("[", 4000)+strings.Repeat("]", 4000)+`}`)),
			"claims that are a list":          f.sign(good, []byte(`[]`)),
			"claims that are null":            f.sign(good, []byte(`null`)),
			"claims that are two objects":     f.sign(good, append(f.claims(nil), f.claims(nil)...)),
			"a claim twice":                   f.sign(good, append([]byte(`{"sub":"root",`), f.claims(nil)[1:]...)),
			"a token in a token":              f.sign([]byte(`{"alg":"EdDSA","kid":"k1","typ":"JWT","cty":"JWT"}`), []byte(valid)),
			"another issuer":                  at("iss", "https://evil.example.com"),
			"an issuer that is a list":        at("iss", []string{issuer}),
			"another audience":                at("aud", "billing"),
			"no audience":                     without("aud"),
			"expired":                         at("exp", now-5),
			"expired for ever, a text":        at("exp", "9999999999"),
			"expires in a thousand years":     at("exp", 1e300),
			"no expiry":                       without("exp"),
			"no issue":                        without("iat"),
			"not valid yet":                   at("nbf", now+5),
			"issued in the future":            at("iat", now+5),
			"a date before all":               at("nbf", -1),
			"a subject that is a number":      at("sub", 7),
			"a subject that is null":          at("sub", nil),
			"of another type than is wanted ": f.sign([]byte(`{"alg":"EdDSA","kid":"k1","typ":"at+jwt"}`), f.claims(nil)),
		} {
			_, err := b.Verify(orders, compact, token.Expect{Audience: "orders", Type: token.JWT})
			if !errors.Is(err, token.ErrToken) {
				t.Errorf("%s: %v", what, err)
				continue
			}
			if len(err.Error()) > 200 || strings.Contains(err.Error(), "alice") {
				t.Errorf("%s: the error repeats the token: %.300s", what, err)
			}
		}
		for what, compact := range map[string]string{
			"clocks that differ a little": at("nbf", now+1),
			"just expired":                at("exp", now),
			"headers with keys in them": f.with(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: f.private, KeyID: "k1"}},
				map[jose.HeaderKey]any{"jku": "https://evil.example.com/jwks.json", "x5u": "https://evil.example.com/cert.pem"}, f.claims(nil)),
		} {
			if _, err := b.Verify(orders, compact, token.Expect{Audience: "orders"}); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		if _, err := b.Verify("prod/other", valid, token.Expect{}); !errors.Is(err, token.ErrUnknown) {
			t.Errorf("another key: %v", err)
		}
		// What is taken off the set is refused at once.
		if _, err := b.Change(t.Context(), token.Change{
			Key: orders, Endpoint: token.Published, Version: 1, Fence: 2, Issuer: issuer, TokenLife: tokenLife, CacheLife: cacheLife, Endpoints: []string{token.Published},
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Verify(orders, valid, token.Expect{}); !errors.Is(err, token.ErrToken) {
			t.Errorf("a revoked key: %v", err)
		}
	})
}

// FuzzVerify: whatever is shown, only what the key has signed is accepted, with the
// claims that were signed; and the error is short.
func FuzzVerify(f *testing.F) {
	b, forger := published(f, jose.EdDSA)
	good := []byte(`{"alg":"EdDSA","kid":"k1","typ":"JWT"}`)
	valid := forger.sign(good, forger.claims(func(c map[string]any) { c["exp"] = time.Now().Unix() + 86400 }))
	signed := strings.Split(valid, ".")
	f.Add(valid)
	f.Add(valid[1:])
	f.Add(strings.ToUpper(valid))
	f.Add(signed[0] + "." + signed[1] + ".")
	f.Add(base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + signed[1] + ".")
	f.Add("..")
	f.Fuzz(func(t *testing.T, compact string) {
		claims, err := b.Verify(orders, compact, token.Expect{})
		if err != nil {
			if !errors.Is(err, token.ErrToken) || len(err.Error()) > 200 {
				t.Errorf("error %v", err)
			}
			return
		}
		parts := strings.Split(compact, ".")
		if parts[0] != signed[0] || parts[1] != signed[1] || claims.Subject != "alice" {
			t.Errorf("accepted what was never signed: %q", compact)
		}
	})
}

// FuzzClaimsOfRequests: whatever claims are asked for, what was signed verifies with
// them, and the registered ones are the signer's.
func FuzzClaimsOfRequests(f *testing.F) {
	w := newWorld(f)
	n := w.start("one")
	w.list(n, 1, token.Published, true)
	w.tell(n, 1)
	eventually(f, func() bool { _, err := n.Sign(f.Context(), token.Request{Key: orders}); return err == nil })
	f.Add("scope", "read", "alice", "orders")
	f.Add("EXP", "9999999999", "", "")
	f.Add("a\xff", "\x00", "\xff", "\u2028")
	f.Fuzz(func(t *testing.T, name, value, subject, audience string) {
		signed, err := n.Sign(t.Context(), token.Request{Key: orders, Subject: subject, Audience: []string{audience}, Claims: map[string]any{name: value}})
		if err != nil {
			if !errors.Is(err, token.ErrRequest) {
				t.Error(err)
			}
			return
		}
		claims, err := n.Verify(orders, signed.Compact.RevealString(), token.Expect{})
		if err != nil {
			t.Fatalf("what was signed is refused: %v", err)
		}
		if claims.Version != key.Version(1) || claims.Expires.Sub(claims.Issued) != tokenLife || claims.ID != signed.ID || claims.Issuer != issuer {
			t.Errorf("claims %+v", claims)
		}
	})
}

// eventually waits for a condition in real time.
func eventually(t testing.TB, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatal("it never came about")
		}
		<-time.After(5 * time.Millisecond)
	}
}

// TestTheKeyDecidesOnTheAlgorithm: a key for RS256 is none for PS256, although it
// could verify both.
func TestTheKeyDecidesOnTheAlgorithm(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		b, f := published(t, jose.EdDSA)
		if _, err := b.Change(t.Context(), token.Change{
			Key: orders, Endpoint: token.Published, Version: 2, Listed: true, Fence: 2, Attributes: materialOf(t, private, jose.RS256, "rsa").Attributes,
			Issuer: issuer, TokenLife: tokenLife, CacheLife: cacheLife, Endpoints: []string{token.Published},
		}); err != nil {
			t.Fatal(err)
		}
		for algorithm, want := range map[jose.SignatureAlgorithm]bool{jose.RS256: true, jose.PS256: false, jose.RS512: false} {
			compact := f.with(jose.SigningKey{Algorithm: algorithm, Key: jose.JSONWebKey{Key: private, KeyID: "rsa"}}, nil, f.claims(nil))
			if _, err := b.Verify(orders, compact, token.Expect{}); (err == nil) != want {
				t.Errorf("%s: %v", algorithm, err)
			}
		}
	})
}
