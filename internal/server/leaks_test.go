package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/compat/github"
	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// leaky is a system whose versions have secrets that are long enough to be known by.
type leaky struct{ *memory }

func leakySecret(number string) string { return "Zk3vQ9xT7bLm2NcR8sWdY4hJpA6fGuE5iKoV1qXe-" + number }

func (l leaky) Open(context.Context, provider.Config, provider.Env) (provider.System, error) {
	return l, nil
}

func (leaky) Mint(_ context.Context, _ provider.Call, request provider.MintRequest) (provider.Material, error) {
	return provider.Material{Secrets: map[string]secret.Value{"password": secret.NewString(leakySecret(request.Number.String()))}}, nil
}

// signer is a key of GitHub's.
type signer struct {
	id      string
	private *ecdsa.PrivateKey
}

func newSigner(t *testing.T, id string) signer {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{id, private}
}

// publish writes the keys that GitHub has now.
func publish(t *testing.T, path string, signers ...signer) {
	t.Helper()
	var list []map[string]any
	for _, s := range signers {
		der, err := x509.MarshalPKIXPublicKey(&s.private.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
		list = append(list, map[string]any{"key_identifier": s.id, "key": string(text), "is_current": true})
	}
	b, err := json.Marshal(map[string]any{"public_keys": list})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// report sends a message as GitHub does, and returns the answer.
func (w *world) report(t *testing.T, s signer, signed, body string) (int, string) {
	t.Helper()
	digest := sha256.Sum256([]byte(signed))
	signature, err := ecdsa.SignASN1(rand.Reader, s.private, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.Address()+"/v1/leaks/github", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(github.HeaderKey, s.id)
	r.Header.Set(github.HeaderSignature, base64.StdEncoding.EncodeToString(signature))
	response, err := w.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(answer)
}

// TestGitHubReachesARunningServer: a signed message marks the version that leaked,
// with the labels that GitHub asks for; a replayed, altered, foreign or huge one does
// nothing, and new keys of GitHub's are taken up.
func TestGitHubReachesARunningServer(t *testing.T) {
	t.Parallel()
	keys := filepath.Join(t.TempDir(), "keys.json")
	first, second, stranger := newSigner(t, "one"), newSigner(t, "two"), newSigner(t, "one")
	publish(t, keys, first)
	config := configOf(t.TempDir())
	config.Leaks.GitHub = &server.GitHubConfig{Keys: keys, Feedback: true}
	var later atomic.Int64
	w := startServerAs(t, config, server.Options{
		LogTo: t.Output(), Drivers: map[string]provider.Driver{"memory": leaky{&memory{accepted: map[string]bool{}}}},
		Now: func() time.Time { return time.Now().Add(time.Duration(later.Load())) },
	})
	w.mustApply(t)
	w.rotateNow(t)

	issued, err := keytable.Draw("kt_live", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	message := func(token string) string {
		b, err := json.Marshal([]map[string]string{
			{"token": token, "type": "keyturn_api_key", "url": "https://github.com/a/b/blob/c/d.env", "source": "content"},
			{"token": "kt_live_" + strings.Repeat("A", 36), "type": "keyturn_api_key", "url": "", "source": "commit"},
			{"token": string(issued), "type": "keyturn_api_key", "url": "", "source": "commit"},
		})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	body := message(leakySecret("v1"))
	huge := message(strings.Repeat("x", github.MaxBody))
	for name, refused := range map[string]struct {
		by           signer
		signed, body string
		want         int
	}{
		"a stranger": {stranger, body, body, http.StatusUnauthorized},
		"altered":    {first, body, body + " ", http.StatusUnauthorized},
		"huge":       {first, huge, huge, http.StatusRequestEntityTooLarge},
		"no list":    {first, "{}", "{}", http.StatusBadRequest},
	} {
		if status, answer := w.report(t, refused.by, refused.signed, refused.body); status != refused.want || strings.Contains(answer, "positive") {
			t.Errorf("%s: status %d, %s", name, status, answer)
		}
	}
	if leaks := w.leaks(t); leaks != 0 {
		t.Fatalf("%d entries of leaks after refused messages", leaks)
	}
	status, answer := w.report(t, first, body, body)
	var labels []struct {
		Token string `json:"token_raw"`
		Type  string `json:"token_type"`
		Label string `json:"label"`
	}
	if err := json.Unmarshal([]byte(answer), &labels); err != nil || status != http.StatusOK {
		t.Fatalf("status %d, %s", status, answer)
	}
	if len(labels) != 2 || labels[0].Label != "true_positive" || labels[0].Token != leakySecret("v1") || labels[0].Type != "keyturn_api_key" || labels[1].Label != "false_positive" {
		t.Errorf("labels %+v", labels)
	}
	if leaks := w.leaks(t); leaks != 1 {
		t.Errorf("%d entries of leaks", leaks)
	}
	if status, _ := w.report(t, first, body, body); status != http.StatusConflict {
		t.Errorf("replayed: status %d", status)
	}
	// GitHub makes another key, and withdraws the first.
	publish(t, keys, second)
	other := message("another text that is long enough")
	if status, _ := w.report(t, second, other, other); status != http.StatusUnauthorized {
		t.Errorf("an unknown key within a minute: status %d", status)
	}
	later.Store(int64(2 * time.Minute))
	if status, answer := w.report(t, second, other, other); status != http.StatusOK || strings.Contains(answer, "true_positive") {
		t.Errorf("the new key: status %d, %s", status, answer)
	}
	last := message("some other text that is long enough")
	if status, _ := w.report(t, first, last, last); status != http.StatusUnauthorized {
		t.Errorf("a withdrawn key: status %d", status)
	}
}

// leaks is how many leaked versions the audit log has.
func (w *world) leaks(t *testing.T) int {
	t.Helper()
	answer, err := w.control(w.root).ReadLog(t.Context(), &keyturnv1.ReadLogRequest{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, entry := range answer.GetEntries() {
		if strings.Contains(entry, `"leak.found"`) {
			n++
		}
	}
	return n
}
