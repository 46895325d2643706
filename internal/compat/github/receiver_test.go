package github_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/compat/github"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/key"
)

type matcher struct {
	texts, places []string
	err           error
}

func (m *matcher) MatchLeaks(_ context.Context, _ audit.Actor, candidates []engine.LeakCandidate, _ func(key.Name) bool) ([]engine.LeakMatch, error) {
	if len(candidates) > engine.MaxLeakCandidates {
		return nil, errors.New("too many")
	}
	if m.err != nil {
		return nil, m.err
	}
	for _, c := range candidates {
		m.texts, m.places = append(m.texts, c.Text.RevealString()), append(m.places, c.Place)
	}
	return nil, nil
}

// memory remembers messages in memory.
type memory struct {
	seen map[[sha256.Size]byte]bool
	err  error
}

func (m *memory) Seen(_ context.Context, digest [sha256.Size]byte) (bool, error) {
	return m.seen[digest], m.err
}

func (m *memory) Note(_ context.Context, digest [sha256.Size]byte) error {
	m.seen[digest] = true
	return m.err
}

type partner struct {
	private *ecdsa.PrivateKey
	now     time.Time
	fetched int
	keys    *github.Keys
	matcher matcher
	memory  memory
	refused []string
	serve   http.Handler
}

func published(t testing.TB, private *ecdsa.PrivateKey, id string) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	b, err := json.Marshal(map[string]any{"public_keys": []any{map[string]any{"key_identifier": id, "key": string(text), "is_current": true}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newPartner(t testing.TB) *partner {
	t.Helper()
	p := &partner{now: time.Now(), memory: memory{seen: map[[sha256.Size]byte]bool{}}}
	var err error
	if p.private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		p.fetched++
		_, _ = w.Write(published(t, p.private, "one"))
	}))
	t.Cleanup(web.Close)
	p.keys = github.NewKeys(github.KeysConfig{Source: web.URL, Now: func() time.Time { return p.now }})
	p.serve = p.node()
	return p
}

// node is a node that the partner's messages reach.
func (p *partner) node() http.Handler {
	return github.New(github.Config{
		Matcher: &p.matcher, Keys: p.keys, Memory: &p.memory, Now: func() time.Time { return p.now },
		Refused: func(_ *http.Request, why string) { p.refused = append(p.refused, why) },
	})
}

func (p *partner) sign(t testing.TB, body string) string {
	t.Helper()
	digest := sha256.Sum256([]byte(body))
	signature, err := ecdsa.SignASN1(rand.Reader, p.private, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(signature)
}

func (p *partner) post(t testing.TB, body, id, signature string) int {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/leaks/github", strings.NewReader(body))
	r.Header.Set(github.HeaderKey, id)
	r.Header.Set(github.HeaderSignature, signature)
	w := httptest.NewRecorder()
	p.serve.ServeHTTP(w, r)
	return w.Code
}

func TestReceives(t *testing.T) {
	p := newPartner(t)
	body := `[{"token":"kt_live_x","type":"keyturn","url":"https://github.com/a/b/blob/c/d.txt","source":"commit"},{"token":"other","type":"keyturn"}]`
	if code := p.post(t, body, "one", p.sign(t, body)); code != http.StatusOK {
		t.Fatalf("status %d: %v", code, p.refused)
	}
	if fmt.Sprint(p.matcher.texts) != "[kt_live_x other]" || p.matcher.places[0] != "GitHub commit https://github.com/a/b/blob/c/d.txt" {
		t.Errorf("compared %q at %q", p.matcher.texts, p.matcher.places)
	}
	// The same again, also under another signature of the same body.
	if code := p.post(t, body, "one", p.sign(t, body)); code != http.StatusConflict || len(p.matcher.texts) != 2 {
		t.Errorf("again: status %d, %d texts", code, len(p.matcher.texts))
	}
	// Nor does another node take it.
	p.serve = p.node()
	if code := p.post(t, body, "one", p.sign(t, body)); code != http.StatusConflict || len(p.matcher.texts) != 2 {
		t.Errorf("at another node: status %d, %d texts", code, len(p.matcher.texts))
	}
	// More tokens than one comparison takes.
	many := "[" + strings.TrimSuffix(strings.Repeat(`{"token":"abcdefgh"},`, 1200), ",") + "]"
	if code := p.post(t, many, "one", p.sign(t, many)); code != http.StatusOK || len(p.matcher.texts) != 1202 {
		t.Errorf("many: status %d, %d texts", code, len(p.matcher.texts))
	}
	// What could not be compared is taken when it is sent again.
	p.matcher.err = errors.New("the store is down")
	body = `[{"token":"later"}]`
	if code := p.post(t, body, "one", p.sign(t, body)); code != http.StatusServiceUnavailable {
		t.Errorf("while the store is down: status %d", code)
	}
	p.matcher.err = nil
	if code := p.post(t, body, "one", p.sign(t, body)); code != http.StatusOK {
		t.Errorf("sent again: status %d", code)
	}
}

// TestRateIsBounded: of one message after the other, so many tokens are compared as
// one node does, and more as time passes.
func TestRateIsBounded(t *testing.T) {
	p := newPartner(t)
	taken := 0
	send := func() int {
		taken++
		body := fmt.Sprintf(`[%s{"token":"number-%d"}]`, strings.Repeat(`{"token":"abcdefgh"},`, 4999), taken)
		return p.post(t, body, "one", p.sign(t, body))
	}
	for range 10 {
		if code := send(); code != http.StatusOK {
			t.Fatalf("message %d: status %d", taken, code)
		}
	}
	if code := send(); code != http.StatusTooManyRequests || len(p.matcher.texts) != 50_000 {
		t.Errorf("status %d after %d tokens", code, len(p.matcher.texts))
	}
	p.now = p.now.Add(3 * time.Second)
	if code := send(); code != http.StatusOK {
		t.Errorf("three seconds later: status %d", code)
	}
}

func TestRefuses(t *testing.T) {
	p := newPartner(t)
	body := `[{"token":"kt_live_x"}]`
	good := p.sign(t, body)
	other := newPartner(t)
	notAList, huge := `{"token":1}`, `[{"token":"`+strings.Repeat("x", github.MaxBody)+`"}]`
	tests := map[string]struct {
		body, id, signature string
		want                int
	}{
		"no signature":         {body, "one", "", http.StatusUnauthorized},
		"no key":               {body, "", good, http.StatusUnauthorized},
		"another key":          {body, "one", other.sign(t, body), http.StatusUnauthorized},
		"an unknown key":       {body, "two", good, http.StatusUnauthorized},
		"another body":         {body + " ", "one", good, http.StatusUnauthorized},
		"no base64":            {body, "one", "!!", http.StatusUnauthorized},
		"no DER":               {body, "one", "AAAA", http.StatusUnauthorized},
		"a long identifier":    {body, strings.Repeat("x", 1000), good, http.StatusUnauthorized},
		"no list":              {notAList, "one", p.sign(t, notAList), http.StatusBadRequest},
		"more than is allowed": {huge, "one", p.sign(t, huge), http.StatusRequestEntityTooLarge},
	}
	for name, test := range tests {
		before := len(p.refused)
		if code := p.post(t, test.body, test.id, test.signature); code != test.want {
			t.Errorf("%s: status %d, want %d", name, code, test.want)
		}
		if len(p.refused) != before+1 {
			t.Errorf("%s: told %d times", name, len(p.refused)-before)
		}
	}
	if len(p.matcher.texts) != 0 {
		t.Errorf("compared %q", p.matcher.texts)
	}
}

func TestKeysAreKept(t *testing.T) {
	p := newPartner(t)
	ask := func(id string) error { _, err := p.keys.Key(t.Context(), id); return err }
	for range 5 {
		if err := ask("one"); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		if err := ask("two"); !errors.Is(err, github.ErrUnknownKey) {
			t.Fatal(err)
		}
	}
	if p.fetched != 1 {
		t.Errorf("fetched %d times within a minute", p.fetched)
	}
	p.now = p.now.Add(2 * time.Minute)
	_, _ = ask("two"), ask("two")
	if p.fetched != 2 {
		t.Errorf("fetched %d times, want again for an unknown key after a minute", p.fetched)
	}
	p.now = p.now.Add(2 * time.Hour)
	if err := ask("one"); err != nil || p.fetched != 3 {
		t.Errorf("fetched %d times, %v; want again after an hour", p.fetched, err)
	}
	path := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(path, published(t, p.private, "file"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := github.NewKeys(github.KeysConfig{Source: path, Now: time.Now}).Key(t.Context(), "file"); err != nil {
		t.Error(err)
	}
}

// FuzzMessage: what is not signed is never compared; what is signed never panics,
// and everything that is compared stands in it.
func FuzzMessage(f *testing.F) {
	f.Add([]byte(`[{"token":"a","url":"b"}]`), true)
	f.Add([]byte(`[{"token":1}]`), true)
	f.Add([]byte(`[]`), false)
	f.Fuzz(func(t *testing.T, body []byte, signed bool) {
		p := newPartner(t)
		signature := "AAAA"
		if signed {
			signature = p.sign(t, string(body))
		}
		code := p.post(t, string(body), "one", signature)
		if !signed && (code == http.StatusOK || len(p.matcher.texts) > 0) {
			t.Fatalf("unsigned: status %d", code)
		}
		if code == http.StatusOK && !json.Valid(body) {
			t.Fatal("what is no JSON was taken")
		}
		if len(p.matcher.texts) > bytes.Count(body, []byte("{")) {
			t.Fatalf("%d texts of %q", len(p.matcher.texts), body)
		}
	})
}
