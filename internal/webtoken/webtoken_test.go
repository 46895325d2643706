package webtoken_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/internal/webtoken"
)

// good are the claims of a good token, but for its end.
const good = `"iss":"https://keys.example.com","sub":"alice","aud":"orders","jti":"1","iat":1000`

// sign makes a token with a key of its own.
func sign(t *testing.T, typ jose.ContentType, payload string) (string, webtoken.Key) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: private, KeyID: "k1"}}, (&jose.SignerOptions{}).WithType(typ))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return compact, webtoken.Key{Public: public, Algorithm: jose.EdDSA}
}

// TestVerify: a payload is given out for the key that signed it, and its algorithm.
func TestVerify(t *testing.T) {
	compact, key := sign(t, "application/AT+jwt", "{"+good+"}")
	_, other := sign(t, "JWT", "{}")
	token, err := webtoken.Parse(compact)
	if err != nil {
		t.Fatal(err)
	}
	if payload, err := token.Verify(key); err != nil || string(payload) != "{"+good+"}" || string(token.Unproven()) != string(payload) {
		t.Errorf("%q, %v", payload, err)
	}
	if token.Header().KeyID != "k1" || !token.Is("at+jwt") || token.Is("jwt") || token.Is("") {
		t.Errorf("header %+v", token.Header())
	}
	for what, key := range map[string]webtoken.Key{
		"another key":          other,
		"another algorithm":    {Public: key.Public, Algorithm: jose.ES256},
		"no algorithm":         {Public: key.Public},
		"a key with no public": {Algorithm: jose.EdDSA},
	} {
		if payload, err := token.Verify(key); err == nil || payload != nil {
			t.Errorf("%s: %q, %v", what, payload, err)
		}
	}
	for _, compact := range []string{"", "..", "a.b", "a.b.c", compact + ".a", compact[:40], compact + strings.Repeat("a", webtoken.MaxSize)} {
		if _, err := webtoken.Parse(compact); err == nil || len(err.Error()) > 100 {
			t.Errorf("%.80q: %v", compact, err)
		}
	}
}

// TestRead: claims are of the types that RFC 7519 gives them, and there once.
func TestRead(t *testing.T) {
	claims, err := webtoken.Read([]byte("{" + good + `,"nbf":999.5,"exp":2e3,"x":{"y":[1]}}`))
	if err != nil || claims.Issuer != "https://keys.example.com" || claims.Subject != "alice" || claims.ID != "1" || !slices.Equal(claims.Audience, []string{"orders"}) ||
		claims.Issued.Unix() != 1000 || claims.NotBefore.Unix() != 999 || claims.Expires.Unix() != 2000 || string(claims.All["x"]) != `{"y":[1]}` || len(claims.All) != 8 {
		t.Errorf("%+v, %v", claims, err)
	}
	if claims, err := webtoken.Read([]byte(`{"aud":["a","b"],"ISS":"x"}`)); err != nil || !slices.Equal(claims.Audience, []string{"a", "b"}) || claims.Issuer != "" || !claims.Issued.IsZero() {
		t.Errorf("%+v, %v", claims, err)
	}
	for what, payload := range map[string]string{
		"nothing":             "",
		"a list":              "[]",
		"null":                "null",
		"two objects":         "{}{}",
		"a claim twice":       `{"sub":"root",` + good + "}",
		"nested deep":         `{"a":` + strings.Repeat("[", 16) + strings.Repeat("]", 16) + "}",
		"a number as issuer":  `{"iss":1}`,
		"null as subject":     `{"sub":null}`,
		"a list as ID":        `{"jti":[]}`,
		"numbers as audience": `{"aud":[1]}`,
		"an end in words":     `{"exp":"tomorrow"}`,
		"an end in quotes":    `{"exp":"9999999999"}`,
		"never":               `{"exp":1e300}`,
		"before all":          `{"nbf":-1}`,
		"null as issue":       `{"iat":null}`,
	} {
		if claims, err := webtoken.Read([]byte(payload)); err == nil || claims.All != nil {
			t.Errorf("%s: %+v, %v", what, claims, err)
		}
	}
	for payload, want := range map[string]bool{
		`{"a":` + strings.Repeat("[", 15) + strings.Repeat("]", 15) + "}":               true,
		`{"a":"` + strings.Repeat("[", 100) + `\"[{"}`:                                  true,
		`{"a":"\\",` + `"b":` + strings.Repeat("[", 16) + strings.Repeat("]", 16) + "}": false,
	} {
		if _, err := webtoken.Read([]byte(payload)); (err == nil) != want {
			t.Errorf("%s: %v", payload, err)
		}
	}
}

// TestAt: a token counts from iat and nbf to exp, with the skew to spare.
func TestAt(t *testing.T) {
	const skew = 10 * time.Second
	at := func(seconds int64) time.Time { return time.Unix(seconds, 0) }
	for _, c := range []struct {
		claims webtoken.Claims
		now    time.Time
		good   bool
	}{
		{webtoken.Claims{Issued: at(100), Expires: at(200)}, at(150), true},
		{webtoken.Claims{Issued: at(100), Expires: at(200)}, at(90), true},
		{webtoken.Claims{Issued: at(100), Expires: at(200)}, at(89), false},
		{webtoken.Claims{Issued: at(100), Expires: at(200)}, at(209), true},
		{webtoken.Claims{Issued: at(100), Expires: at(200)}, at(210), false},
		{webtoken.Claims{Issued: at(100), NotBefore: at(120), Expires: at(200)}, at(110), true},
		{webtoken.Claims{Issued: at(100), NotBefore: at(120), Expires: at(200)}, at(109), false},
		{webtoken.Claims{Issued: at(100)}, at(150), false},
		{webtoken.Claims{Expires: at(200)}, at(150), false},
	} {
		if err := c.claims.At(c.now, skew); (err == nil) != c.good {
			t.Errorf("%+v at %v: %v", c.claims, c.now.Unix(), err)
		}
	}
}

// FuzzRead: a payload is read as other readers would, or refused in few words.
func FuzzRead(f *testing.F) {
	f.Add([]byte("{" + good + `,"exp":9999999999,"nbf":0}`))
	f.Add([]byte(`{"iss":"a","exp":9999999999,"iat":0,"aud":["a","b"]}`))
	f.Add([]byte(`{"iss":"a","exp":9999999999,"exp":1,"iat":0}`))
	f.Add([]byte(`{"iss":null,"exp":1e9,"iat":-0}`))
	f.Add([]byte(`{"a":[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		claims, err := webtoken.Read(payload)
		if err != nil {
			if claims.All != nil || len(err.Error()) > 100 || strings.Contains(err.Error(), "\n") {
				t.Errorf("%+v with %v", claims, err)
			}
			return
		}
		if !json.Valid(payload) {
			t.Fatalf("read claims that are not JSON: %q", payload)
		}
		var again map[string]json.RawMessage
		if err := json.NewDecoder(bytes.NewReader(payload)).Decode(&again); err != nil || len(again) != len(claims.All) {
			t.Fatalf("read %d claims of %d: %v", len(claims.All), len(again), err)
		}
		for name, got := range map[string]string{"iss": claims.Issuer, "sub": claims.Subject, "jti": claims.ID} {
			var want string
			if raw, there := again[name]; there && (json.Unmarshal(raw, &want) != nil || string(raw) == "null") || got != want {
				t.Errorf("%s %q, and %q by others", name, got, want)
			}
		}
		for name, got := range map[string]time.Time{"iat": claims.Issued, "nbf": claims.NotBefore, "exp": claims.Expires} {
			raw, there := again[name]
			var want float64
			if there == got.IsZero() || there && (json.Unmarshal(raw, &want) != nil || int64(want) != got.Unix()) {
				t.Errorf("%s %v, and %s by others", name, got, raw)
			}
		}
	})
}
