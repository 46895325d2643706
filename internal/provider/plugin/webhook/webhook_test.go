package webhook_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/keyturn/keyturn/internal/provider/plugin"
	"github.com/keyturn/keyturn/internal/provider/plugin/webhook"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

const (
	oldSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	newSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
	password  = "hunter2-hunter2"
	body      = `{"password":"` + password + `"}`
)

func file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func call(ctx context.Context, c webhook.Config, env provider.Env) ([]byte, error) {
	return webhook.New(c).Call(ctx, env, plugin.Request{ID: "call-1", Method: "accept", Body: []byte(body), Scrub: plugin.NewScrubber(secret.NewString(password))})
}

// verifies reports whether a receiver that knows one secret takes the request.
func verifies(t *testing.T, r *http.Request, content []byte, known string) bool {
	t.Helper()
	hook, err := standardwebhooks.NewWebhook(known)
	if err != nil {
		t.Fatal(err)
	}
	return hook.Verify(content, r.Header) == nil
}

// TestSigned: a receiver that knows one of the secrets takes the request, and none
// that was changed.
func TestSigned(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, _ := io.ReadAll(r.Body)
		for _, known := range []string{oldSecret, newSecret} {
			if !verifies(t, r, content, known) {
				t.Errorf("a receiver that knows %.9s… refuses", known)
			}
			if verifies(t, r, append(content, ' '), known) {
				t.Error("a changed body is taken")
			}
		}
		if verifies(t, r, content, "whsec_"+strings.Repeat("AAAA", 8)) {
			t.Error("a receiver that knows another secret takes it")
		}
		r.Header.Set("webhook-id", "call-2")
		if verifies(t, r, content, newSecret) {
			t.Error("another ID is taken")
		}
		if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" || string(content) != body {
			t.Errorf("%s with %q: %s", r.Method, r.Header.Get("Content-Type"), content)
		}
		fmt.Fprint(w, `{"ok":true}`)
	}))
	defer server.Close()
	answer, err := call(t.Context(), webhook.Config{URL: server.URL, SecretFile: file(t, "hook", newSecret+"\n"+oldSecret+"\n")}, provider.Env{})
	if err != nil || string(answer) != `{"ok":true}` {
		t.Errorf("got %q, %v", answer, err)
	}
}

// TestManagedSecretRotates: the signing secret is a key of Keyturn. Receivers that
// know the version before it take requests for as long as they need.
func TestManagedSecretRotates(t *testing.T) {
	known := oldSecret
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, _ := io.ReadAll(r.Body)
		if !verifies(t, r, content, known) {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer server.Close()
	current := oldSecret
	env := provider.Env{Resolve: func(_ context.Context, name key.Name) (provider.Material, error) {
		if name != "prod/hook" {
			return provider.Material{}, provider.ErrNoVersion
		}
		return provider.Material{Secrets: map[string]secret.Value{"secret": secret.NewString(current)}}, nil
	}}
	transport := webhook.New(webhook.Config{URL: server.URL, SecretKey: "prod/hook"})
	try := func(want bool) {
		t.Helper()
		_, err := transport.Call(t.Context(), env, plugin.Request{ID: "1", Body: []byte("{}"), Scrub: plugin.NewScrubber()})
		if (err == nil) != want {
			t.Errorf("got %v", err)
		}
		if err != nil && !errors.Is(err, provider.ErrDenied) {
			t.Errorf("got %v, want ErrDenied", err)
		}
	}
	try(true)
	current = newSecret // it has rotated, the receiver is not there yet
	try(true)
	known = newSecret
	try(true)
	known = "whsec_" + strings.Repeat("AAAA", 8)
	try(false)
	if _, err := call(t.Context(), webhook.Config{URL: server.URL, SecretKey: "prod/other"}, env); !errors.Is(err, provider.ErrNoVersion) {
		t.Errorf("a key without a version: %v", err)
	}
}

// TestAnswersThatAreNone: each status becomes the error that Keyturn acts on.
func TestAnswersThatAreNone(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		header string
		body   string
		is     func(error) bool
	}{
		"busy":          {status: 429, header: "7", is: later},
		"down":          {status: 503, header: "7", is: provider.IsSilent},
		"gateway":       {status: 502, is: provider.IsSilent},
		"redirect":      {status: 307, is: provider.IsPermanent},
		"unknown":       {status: 401, is: func(err error) bool { return errors.Is(err, provider.ErrDenied) }},
		"not there":     {status: 404, is: func(err error) bool { return !provider.IsPermanent(err) && !provider.IsSilent(err) }},
		"broken":        {status: 500, body: "got hunter2-hunter2 and aHVudGVyMi1odW50ZXIy\nTraceback", is: func(err error) bool { return strings.Contains(err.Error(), secret.Redacted) }},
		"created":       {status: 201, body: `{"ok":true}`, is: func(err error) bool { return err != nil }},
		"floods":        {status: 200, body: strings.Repeat("x", plugin.MaxAnswer+1), is: func(err error) bool { return errors.Is(err, plugin.ErrAnswer) }},
		"floods errors": {status: 500, body: strings.Repeat("x", 4<<20), is: func(err error) bool { return len(err.Error()) < 1000 }},
	} {
		followed := false
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/elsewhere" {
				followed = true
				return
			}
			w.Header().Set("Location", "/elsewhere")
			w.Header().Set("Retry-After", test.header)
			w.WriteHeader(test.status)
			_, _ = io.WriteString(w, test.body)
		}))
		_, err := call(t.Context(), webhook.Config{URL: server.URL, SecretFile: file(t, "hook", oldSecret)}, provider.Env{})
		server.Close()
		if err == nil || !test.is(err) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "aHVudGVy") {
			t.Errorf("%s: got %v", name, err)
		}
		if followed {
			t.Errorf("%s: the redirect was followed", name)
		}
	}
}

func later(err error) bool {
	after, is := provider.IsLater(err)
	return is && after == 7*time.Second
}

// TestTLS: who the service is, is verified, and who calls it may be.
func TestTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") }))
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	server.StartTLS()
	defer server.Close()
	server.Config.ErrorLog = nil
	certificate := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	private, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	ca, hook := file(t, "ca.pem", certificate), file(t, "hook", oldSecret)
	privateFile := file(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	good := webhook.Config{URL: server.URL, CA: ca, Cert: ca, Key: privateFile, SecretFile: hook}
	if _, err := call(t.Context(), good, provider.Env{}); err != nil {
		t.Errorf("with certificates: %v", err)
	}
	for name, spoil := range map[string]func(*webhook.Config){
		"an unknown authority":  func(c *webhook.Config) { c.CA = "" },
		"no client certificate": func(c *webhook.Config) { c.Cert, c.Key = "", "" },
		"another host":          func(c *webhook.Config) { c.URL = strings.Replace(c.URL, "127.0.0.1", "localhost", 1) },
		"no authorities":        func(c *webhook.Config) { c.CA = hook },
		"absent authorities":    func(c *webhook.Config) { c.CA = "/nowhere" },
	} {
		bad := good
		spoil(&bad)
		if _, err := call(t.Context(), bad, provider.Env{}); err == nil {
			t.Errorf("%s: the call went through", name)
		}
	}
}

// TestURLs: what may be called, and that a bad address is not repeated.
func TestURLs(t *testing.T) {
	for _, good := range []string{"https://keys.example.com/keyturn", "http://127.0.0.1:8080/", "http://[::1]:80/x"} {
		if _, err := webhook.CheckURL(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "keys.example.com", "ftp://hunter2.example", "http://hunter2.example", "http://localhost:80", "https://u:hunter2@x", "https://x/?code=hunter2", "https://x/#hunter2", "https://x/?", "http://127.0.0.1.hunter2.example/", "http://[::2]/", "https://hunter2\x7f/"} {
		if _, err := webhook.CheckURL(bad); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestBadSecrets: without a proper signing secret nothing is sent.
func TestBadSecrets(t *testing.T) {
	sent := false
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { sent = true }))
	defer server.Close()
	open := file(t, "hook", oldSecret)
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"absent": "/nowhere", "open": open, "empty": file(t, "hook", "\n"), "many": file(t, "hook", strings.Repeat(oldSecret+"\n", 5)),
		"no prefix": file(t, "hook", strings.TrimPrefix(oldSecret, "whsec_")), "short": file(t, "hook", "whsec_AAAA"), "no base64": file(t, "hook", "whsec_"+strings.Repeat("?", 40)),
	} {
		_, err := call(t.Context(), webhook.Config{URL: server.URL, SecretFile: path}, provider.Env{})
		if err == nil || strings.Contains(err.Error(), "MfKQ9r8GKYqrTwjUPD8") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if sent {
		t.Error("something was sent")
	}
}

// TestSilence: a service that hangs or is not there gives no answer, in time.
func TestSilence(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body) // so that the end of the connection is noticed
		<-r.Context().Done()
	}))
	defer server.Close()
	for name, url := range map[string]string{"hangs": server.URL, "is not there": "http://127.0.0.1:1"} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		began := time.Now()
		_, err := call(ctx, webhook.Config{URL: url, SecretFile: file(t, "hook", oldSecret)}, provider.Env{})
		cancel()
		if !provider.IsSilent(err) || time.Since(began) > 5*time.Second {
			t.Errorf("%s: got %v after %v", name, err, time.Since(began))
		}
	}
}
