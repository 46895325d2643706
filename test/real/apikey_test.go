package real

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/server"
)

// apiKey is the key of a client whose requests are verified by API key.
const apiKey = "partners/acme"

const apiKeyPolicy = `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: partners}
spec:
  stages: [{name: all, bake: 0s, ackTimeout: 10s}]
  drain: {min: 0s, quiet: 300ms, max: 1m, every: 100ms}
  quarantine: 0s
  endQuarantineEarly: true
`

// newAPIKeyWorld starts a server that rotates API keys, which needs no other system.
// more continues the config of the key in examples.
func newAPIKeyWorld(t *testing.T, policy, more string, change ...func(*world)) *world {
	t.Helper()
	document, err := os.ReadFile("../../examples/apikey/partner.yaml")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{dir: t.TempDir(), logs: &logBuffer{}}
	w.config = server.Config{
		Listen: "127.0.0.1:0", DataDir: filepath.Join(w.dir, "data"), Log: server.LogConfig{Format: "text", Level: "debug"},
		Limits: server.LimitsConfig{PerSecond: 5000, Burst: 20_000},
	}
	w.heard, w.config.Telemetry = newReceiver(t)
	w.options = server.Options{LogTo: w.logs}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the server's log:\n%s", w.logs.tail(6000))
		}
	})
	for _, one := range change {
		one(w)
	}
	w.start(t)
	t.Cleanup(func() { w.stop(t) })
	w.apply(t, policy+"---\n"+string(document)+more)
	return w
}

func (w *world) rotateKey(t *testing.T, name, reason string) string {
	t.Helper()
	response, err := w.control.Rotate(t.Context(), &keyturnv1.RotateRequest{Name: name, Reason: reason})
	if err != nil {
		t.Fatal(err)
	}
	return response.GetRotationId()
}

// reveal reads the current version's key, as an operator does.
func (w *world) reveal(t *testing.T, name string, version uint64) string {
	t.Helper()
	response, err := w.control.GetSecret(t.Context(), &keyturnv1.GetSecretRequest{Name: name, Version: version})
	if err != nil {
		t.Fatal(err)
	}
	return string(response.GetSecrets()["key"])
}

// verified is the answer to a service that asks whose a key is.
type verified struct {
	Valid, Limited bool
	Key, Client    string
	Version        uint64
	Scopes         []string
}

// verify asks the server whose a key is, as a service does to which it was shown.
func (w *world) verify(ctx context.Context, text, application string) (verified, error) {
	return w.verifyFrom(ctx, text, application, "192.0.2.7")
}

// verifyFrom does so for a key that was shown from an address.
func (w *world) verifyFrom(ctx context.Context, text, application, address string) (verified, error) {
	var v verified
	body, err := json.Marshal(map[string]string{"key": text, "address": address, "application": application})
	if err != nil {
		return v, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, w.address()+"/v1/apikeys/verify", bytes.NewReader(body))
	if err != nil {
		return v, err
	}
	response, err := w.client.Do(request)
	if err != nil {
		return v, err
	}
	defer func() { _ = response.Body.Close() }() // it was read
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return v, err
	}
	if response.StatusCode != http.StatusOK {
		return v, fmt.Errorf("status %d: %s", response.StatusCode, answer)
	}
	err = json.Unmarshal(answer, &v)
	return v, err
}

var errNotLetIn = errors.New("a key that should be good is refused")

// caller is a client that shows its API key all the time, always the one that it
// was given last.
func (w *world) caller(t *testing.T, l *load, id string) {
	t.Helper()
	w.user(t, l, apiKey, id, pauseBetween, func(ctx context.Context, c client.Credential) error {
		v, err := w.verify(ctx, c.Secret("key").RevealString(), id)
		if err == nil && (!v.Valid || v.Version != uint64(c.Version) || v.Client != "ACME Ltd.") {
			err = fmt.Errorf("%w: %+v", errNotLetIn, v)
		}
		return err
	})
}

// TestAPIKeyRotatesUnderLoad: clients show their API key all the time while it is
// rotated; none of them is ever refused, the old key is proven refused, and the
// use that was measured names who used it.
func TestAPIKeyRotatesUnderLoad(t *testing.T) {
	w := newAPIKeyWorld(t, apiKeyPolicy, "    keep: sealed\n")
	w.finish(t, w.rotateKey(t, apiKey, "first"), "done")
	first := w.reveal(t, apiKey, 0)
	if !strings.HasPrefix(first, "acme_live_") {
		t.Errorf("the key does not begin with its prefix")
	}
	if v, err := w.verify(t.Context(), first, "test"); err != nil || !v.Valid || v.Key != apiKey || v.Version != 1 || !slices.Equal(v.Scopes, []string{"orders:read"}) {
		t.Fatalf("the first key: %+v, %v", v, err)
	}
	l := &load{}
	for i := range 3 {
		w.caller(t, l, fmt.Sprint("caller-", i))
	}
	for version := uint64(2); version <= 3; version++ {
		l.more(t, 30)
		old := w.reveal(t, apiKey, 0)
		w.finish(t, w.rotateKey(t, apiKey, "again"), "done")
		if v, err := w.verify(t.Context(), old, "test"); err != nil || v.Valid || v.Key != "" {
			t.Errorf("the old key after the rotation: %+v, %v", v, err)
		}
		if v, err := w.verify(t.Context(), w.reveal(t, apiKey, 0), "test"); err != nil || !v.Valid || v.Version != version {
			t.Errorf("the new key after the rotation: %+v, %v", v, err)
		}
	}
	l.more(t, 30)
	l.check(t)
	if n := strings.Count(w.logs.String(), first); n != 0 {
		t.Errorf("the key is in the server's log %d times", n)
	}
}

// self asks as the client of a key: what is answered to whoever shows it.
func (w *world) self(t *testing.T, method, path, text string) (status int, answer map[string]any) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, w.address()+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+text)
	bare, _ := w.client.Transport.(bearer)
	response, err := bare.next.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }() // it was read
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		t.Fatalf("status %d: %v", response.StatusCode, err)
	}
	return response.StatusCode, answer
}

const (
	ownStatus    = "/v1/apikeys/self"
	ownSuccessor = "/v1/apikeys/self/successor"
)

// TestAPIKeyClientProvesPossession: a partner fetches its next key with the one it
// has. Until it has shown the next one, the old one does not begin to drain; as
// long as one of its applications uses the old one, that is let in and named; then
// the old one is refused, by its hash, since nobody but the partner has the key.
func TestAPIKeyClientProvesPossession(t *testing.T) {
	w := newAPIKeyWorld(t, strings.NewReplacer("ackTimeout: 10s", "ackTimeout: 1h", "max: 1m", "max: 2s").Replace(apiKeyPolicy), "    late: 1s\n")
	w.finish(t, w.rotateKey(t, apiKey, "first"), "done")
	first := w.reveal(t, apiKey, 0)
	if code, own := w.self(t, http.MethodGet, ownStatus, first); code != http.StatusOK || own["state"] != "current" || own["proven"] == nil || own["client"] != "ACME Ltd." {
		t.Fatalf("the first status: %d %v", code, own)
	}
	if _, err := w.control.GetSecret(t.Context(), &keyturnv1.GetSecretRequest{Name: apiKey}); err == nil || !strings.Contains(err.Error(), "shown once") {
		t.Errorf("a key that its client has is still to be had: %v", err)
	}
	if code, own := w.self(t, http.MethodPost, ownSuccessor, first); code != http.StatusConflict {
		t.Errorf("a successor before the rotation: %d %v", code, own)
	}
	var using atomic.Bool
	using.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer func() {
		cancel()
		running.Wait()
	}()
	var refused atomic.Int64
	running.Go(func() {
		for ctx.Err() == nil {
			if using.Load() {
				if v, err := w.verify(ctx, first, "billing"); (err != nil || !v.Valid) && ctx.Err() == nil {
					refused.Add(1)
				}
			}
			select {
			case <-time.After(pauseBetween):
			case <-ctx.Done():
			}
		}
	})
	id := w.rotateKey(t, apiKey, "yearly")
	w.wait(t, id, func(r *keyturnv1.Rotation) bool { return r.GetPhase() == "presenting" })
	if code, own := w.self(t, http.MethodGet, ownStatus, first); code != http.StatusOK || own["successor"] != 2.0 || own["proven"] != nil {
		t.Errorf("the status with a successor: %d %v", code, own)
	}
	eventually(t, "the page names who uses the old key", func() bool { return strings.Contains(w.page(t, first, "status"), "<td>billing<td>192.0.2.7<td>") })
	if shown := w.page(t, first, "status"); !strings.Contains(shown, "A next key is ready") || !strings.Contains(shown, `<li class="now">Fetch the next key`) {
		t.Errorf("the page with a successor: %s", shown)
	}
	if shown := w.page(t, first, "prove"); !strings.Contains(shown, "nothing is proven") {
		t.Errorf("the page that was shown the old key as a proof: %s", shown)
	}
	var second string
	for range 2 { // an answer may be lost
		code, next := w.self(t, http.MethodPost, ownSuccessor, first)
		if code != http.StatusOK || next["version"] != 2.0 {
			t.Fatalf("the successor: %d %v", code, next)
		}
		second, _ = next["key"].(string)
	}
	if shown := w.page(t, first, "successor"); strings.Count(shown, second) != 1 || strings.Contains(shown, first) {
		t.Errorf("the page does not show the next key once, or shows the old one")
	}
	response, err := w.control.GetRotation(t.Context(), &keyturnv1.GetRotationRequest{Id: id})
	if err != nil || response.GetRotation().GetPhase() != "presenting" {
		t.Fatalf("fetched and not proven, the rotation is %v, %v", response.GetRotation().GetPhase(), err)
	}
	if code, own := w.self(t, http.MethodGet, ownStatus, second); code != http.StatusOK || own["proven"] == nil {
		t.Errorf("the proof: %d %v", code, own)
	}
	if code, own := w.self(t, http.MethodPost, ownSuccessor, first); code != http.StatusConflict {
		t.Errorf("the successor after the proof: %d %v", code, own)
	}
	held := w.wait(t, id, func(r *keyturnv1.Rotation) bool { return r.GetHold().GetReason() == "drain-max" })
	if held.GetEnded() || len(held.GetHolders()) != 1 || held.GetHolders()[0].GetApplication() != "billing" || held.GetHolders()[0].GetAddress() != "192.0.2.7" {
		t.Errorf("at the end of the grace with the old key in use: %v, holders %v", held.GetPhase(), held.GetHolders())
	}
	w.paged(t, `"reason":"partner-late"`, `"severity":"ticket"`, "ACME Ltd. still uses v1", `"parties":["billing at 192.0.2.7"]`, "partner-late.md")
	if code, own := w.self(t, http.MethodGet, ownStatus, first); code != http.StatusOK || own["state"] != "retiring" || own["humanDecides"] == nil {
		t.Errorf("the status of the old key: %d %v", code, own)
	}
	if n := refused.Load(); n != 0 {
		t.Errorf("the old key was refused %d times while it was in use", n)
	}
	var used struct {
		Versions []struct {
			Version, Uses int
			Accepted      bool
			By            []struct{ Application, LastSeen string }
		}
	}
	w.get(t, "/v1/apikeys/uses?key="+apiKey, &used)
	if len(used.Versions) != 2 || used.Versions[0].Uses == 0 || !used.Versions[0].Accepted || used.Versions[0].By[0].Application != "billing" || used.Versions[0].By[0].LastSeen == "" || used.Versions[1].Uses != 0 {
		t.Errorf("the uses: %+v", used)
	}
	using.Store(false)
	w.finish(t, id, "done")
	if v, err := w.verify(t.Context(), first, "test"); err != nil || v.Valid {
		t.Errorf("the old key after the rotation: %+v, %v", v, err)
	}
	w.paged(t, `"reason":"partner-refused"`, `"severity":"page"`, "v1 of partners/acme, the API key of ACME Ltd., is refused", "test at 192.0.2.7")
	if code, _ := w.self(t, http.MethodGet, ownStatus, first); code != http.StatusUnauthorized {
		t.Errorf("the old key's status after the rotation: %d", code)
	}
	for text, want := range map[string]string{second: "nothing to do", first: "not valid", "<b>": "not valid"} {
		page := w.page(t, text, "status")
		if !strings.Contains(page, want) || strings.Contains(page, text) {
			t.Errorf("the page does not say %q, or shows the key", want)
		}
	}
	for what, text := range map[string]string{"first": first, "second": second} {
		if strings.Contains(w.logs.String(), text) {
			t.Errorf("the %s key is in the server's log", what)
		}
	}
}

// page is what a browser shows after a form was sent with a key.
func (w *world) page(t *testing.T, text, do string) string {
	t.Helper()
	form := url.Values{"key": {text}, "do": {do}}.Encode()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.address()+"/apikeys", strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := w.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }() // it was read
	page, err := io.ReadAll(response.Body)
	_, style, _ := strings.Cut(string(page), "<style>")
	style, _, _ = strings.Cut(style, "</style>")
	sum := sha256.Sum256([]byte(style))
	want := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
	if err != nil || response.Header.Get("Cache-Control") != "no-store" || response.Header.Get("Content-Security-Policy") != want || strings.Contains(string(page), "<script") {
		t.Errorf("the page: %v, want the policy %s, %v", response.Header, want, err)
	}
	return string(page)
}

// get reads JSON as an operator.
func (w *world) get(t *testing.T, path string, into any) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.address()+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := w.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }() // it was read
	if err := json.NewDecoder(response.Body).Decode(into); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d, %v", path, response.StatusCode, err)
	}
}
