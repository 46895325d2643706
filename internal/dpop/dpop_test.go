package dpop_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/internal/dpop"
)

const target = "https://keys.example.com/orders/oauth/token"

func now() time.Time { return time.Unix(1_800_000_000, 0) }

type maker struct {
	private any
	alg     jose.SignatureAlgorithm
	typ     string
	embed   bool
}

func (m maker) make(t testing.TB, edit func(c map[string]any)) string {
	t.Helper()
	c := map[string]any{"jti": "one", "htm": "POST", "htu": target, "iat": now().Unix()}
	if edit != nil {
		edit(c)
	}
	payload, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: m.alg, Key: m.private}, (&jose.SignerOptions{EmbedJWK: m.embed}).WithType(jose.ContentType(m.typ)))
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

func ed(t testing.TB) maker {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return maker{private, jose.EdDSA, "dpop+jwt", true}
}

func expect() *dpop.Expect { return &dpop.Expect{Method: "POST", URL: target, Now: now()} }

// TestCheck: good proofs count, spoilt ones do not.
func TestCheck(t *testing.T) {
	m := ed(t)
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for what, compact := range map[string]string{
		"EdDSA": m.make(t, nil), "ES256": maker{private, jose.ES256, "dpop+jwt", true}.make(t, nil),
		"a port and a query": m.make(t, func(c map[string]any) { c["htu"] = "HTTPS://KEYS.example.com:443/orders/oauth/token?x=y" }),
		"a clock behind":     m.make(t, func(c map[string]any) { c["iat"] = now().Unix() - 50 }),
	} {
		if p, err := dpop.Check(compact, expect()); err != nil || len(p.Thumbprint) != 43 || p.ID != "one" {
			t.Errorf("%s: %+v, %v", what, p, err)
		}
	}
	with := func(name string, v any) string { return m.make(t, func(c map[string]any) { c[name] = v }) }
	plain, untyped := m, m
	plain.embed, untyped.typ = false, "JWT"
	good := strings.Split(m.make(t, nil), ".")
	header := func(text string) string {
		return base64.RawURLEncoding.EncodeToString([]byte(text)) + "." + good[1] + "." + good[2]
	}
	for what, compact := range map[string]string{
		"without a key": plain.make(t, nil), "of another type": untyped.make(t, nil),
		"none":             header(`{"alg":"none","typ":"dpop+jwt"}`),
		"a shared secret":  header(`{"alg":"HS256","typ":"dpop+jwt","jwk":{"kty":"oct","k":"AAAA"}}`),
		"a key of others":  strings.Split(ed(t).make(t, nil), ".")[0] + "." + good[1] + "." + good[2],
		"another method":   with("htm", "GET"),
		"another URL":      with("htu", "https://evil.example.com/orders/oauth/token"),
		"no URL":           with("htu", ""),
		"old":              with("iat", now().Unix()-62),
		"from the future":  with("iat", now().Unix()+62),
		"without iat":      with("iat", nil),
		"iat a text":       with("iat", "now"),
		"without jti":      with("jti", ""),
		"a long jti":       with("jti", strings.Repeat("a", 257)),
		"huge":             with("x", strings.Repeat("a", 5000)),
		"empty":            "",
		"claims of arrays": with("htm", []string{"POST"}),
	} {
		if _, err := dpop.Check(compact, expect()); !errors.Is(err, dpop.ErrProof) {
			t.Errorf("%s: %v", what, err)
		}
	}
	e := expect()
	e.Token = "the token"
	if _, err := dpop.Check(m.make(t, nil), e); !errors.Is(err, dpop.ErrProof) {
		t.Errorf("without the token's hash: %v", err)
	}
	if _, err := dpop.Check(with("ath", dpop.HashOf("the token")), e); err != nil {
		t.Error(err)
	}
	e = expect()
	e.Nonce = func(nonce string) bool { return nonce == "n" }
	if _, err := dpop.Check(with("nonce", "old"), e); !errors.Is(err, dpop.ErrNonce) {
		t.Errorf("an old nonce: %v", err)
	}
	if _, err := dpop.Check(with("nonce", "n"), e); err != nil {
		t.Error(err)
	}
}

// TestSeen: a proof counts once, for as long as it would count at all, in bounded
// memory.
func TestSeen(t *testing.T) {
	s := dpop.NewSeen(100)
	p := &dpop.Proof{Thumbprint: "t", ID: "one"}
	if err := s.Add(p, now()); err != nil {
		t.Fatal(err)
	}
	for after := time.Duration(0); after <= 2*dpop.Window; after += time.Second {
		if err := s.Add(p, now().Add(after)); !errors.Is(err, dpop.ErrProof) || !errors.Is(err, dpop.ErrReplayed) {
			t.Fatalf("after %v: %v", after, err)
		}
	}
	if err := s.Add(&dpop.Proof{Thumbprint: "u", ID: "one"}, now()); err != nil {
		t.Errorf("of another key: %v", err)
	}
	full := false
	for i := range 200 {
		full = full || errors.Is(s.Add(&dpop.Proof{ID: fmt.Sprint(i)}, now().Add(time.Second)), dpop.ErrFull)
	}
	if !full {
		t.Error("it remembers without bound")
	}
	if err := s.Add(p, now().Add(time.Hour)); err != nil {
		t.Errorf("later: %v", err)
	}
}

// FuzzCheck: a proof that is accepted names a key and an ID, counts now, and counts
// for no other method, URL, time or token, nor for a key that did not sign it.
func FuzzCheck(f *testing.F) {
	m := ed(f)
	good := m.make(f, nil)
	f.Add(good)
	f.Add(m.make(f, func(c map[string]any) { c["htm"] = "GET" }))
	f.Add(m.make(f, func(c map[string]any) { c["ath"] = dpop.HashOf("other") }))
	f.Add(m.make(f, func(c map[string]any) { c["iat"] = 1e300 }))
	f.Add("..")
	other := strings.Split(ed(f).make(f, nil), ".")[0]
	f.Fuzz(func(t *testing.T, compact string) {
		p, err := dpop.Check(compact, expect())
		if err != nil {
			if !errors.Is(err, dpop.ErrProof) || len(err.Error()) > 200 {
				t.Error(err)
			}
			return
		}
		if len(p.Thumbprint) != 43 || p.ID == "" || !p.Until.After(now()) || p.Until.After(now().Add(2*dpop.Window+time.Second)) {
			t.Errorf("%+v", p)
		}
		for what, edit := range map[string]func(e *dpop.Expect){
			"another method": func(e *dpop.Expect) { e.Method = "GET" },
			"another URL":    func(e *dpop.Expect) { e.URL = target + "/x" },
			"later":          func(e *dpop.Expect) { e.Now = p.Until.Add(time.Second) },
			"a token":        func(e *dpop.Expect) { e.Token = "the token" },
		} {
			e := expect()
			if edit(e); what == "a token" && strings.Contains(compact, ".") {
				e.Token = compact // no proof can hold its own hash
			}
			if _, err := dpop.Check(compact, e); !errors.Is(err, dpop.ErrProof) {
				t.Errorf("it counts for %s: %v", what, err)
			}
		}
		parts := strings.Split(compact, ".")
		if _, err := dpop.Check(other+"."+parts[1]+"."+parts[2], expect()); !errors.Is(err, dpop.ErrProof) {
			t.Errorf("it counts for a key that did not sign it: %v", err)
		}
	})
}
