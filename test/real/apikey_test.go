package real

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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
func newAPIKeyWorld(t *testing.T) *world {
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
	w.start(t)
	t.Cleanup(func() { w.stop(t) })
	w.apply(t, apiKeyPolicy+"---\n"+string(document))
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
	var v verified
	body, err := json.Marshal(map[string]string{"key": text, "address": "192.0.2.7", "application": application})
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
	keys, err := client.Open(t.Context(), w.party(client.KindClient, id, "", ""), apiKey)
	if err != nil {
		t.Fatal(err)
	}
	handle := keys.Key(apiKey)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
		keys.Close()
	})
	running.Go(func() {
		for ctx.Err() == nil {
			credential := handle.Current()
			v, err := w.verify(ctx, credential.Secret("key").RevealString(), id)
			if err == nil && (!v.Valid || v.Version != uint64(credential.Version) || v.Client != "ACME Ltd.") {
				err = fmt.Errorf("%w: %+v", errNotLetIn, v)
			}
			if ctx.Err() != nil {
				return
			}
			l.queries.Add(1)
			if err != nil {
				l.fail(id, err)
			}
			select {
			case <-time.After(pauseBetween):
			case <-ctx.Done():
			}
		}
	})
}

// TestAPIKeyRotatesUnderLoad: clients show their API key all the time while it is
// rotated; none of them is ever refused, the old key is proven refused, and the
// use that was measured names who used it.
func TestAPIKeyRotatesUnderLoad(t *testing.T) {
	w := newAPIKeyWorld(t)
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
