package forward_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/keyturn/keyturn/internal/gateway/forward"
)

const page = "../../../docs/reference/gateway-proxies.md"

// block returns the first fenced block of the page in a language.
func block(t *testing.T, language string) string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "```"+language+"\n")
	block, _, closed := strings.Cut(rest, "```\n")
	if !found || !closed {
		t.Fatalf("%s has no block of %s", page, language)
	}
	return block
}

// pageWorld is a service with the gates of the page, the first of them changed by change,
// whose callers show a token of a file; verifier verifies access tokens, nil: the world.
func pageWorld(t *testing.T, token string, verifier forward.Tokens, change func(*forward.GateConfig)) *world {
	t.Helper()
	var config struct {
		Forward forward.Settings `yaml:"forward"`
	}
	if err := yaml.UnmarshalWithOptions([]byte(block(t, "yaml")), &config, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	orders := config.Forward.Gates["orders"]
	change(&orders)
	config.Forward.Gates["orders"] = orders
	file := filepath.Join(t.TempDir(), "tokens")
	put(t, file, token)
	w := &world{}
	if verifier == nil {
		verifier = tokens{w}
	}
	log := slog.New(slog.NewTextHandler(&w.log, nil))
	proxies, err := forward.NewProxyTokens(forward.ProxyTokensConfig{Files: []string{file}, Now: time.Now, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	w.Service, err = forward.New(forward.Config{
		Settings: config.Forward, Keys: w, Tokens: map[string]forward.Tokens{"orders": verifier}, Caller: proxies.Caller, Logger: log, Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// origin is what stands behind the proxy; it answers as the header X-Answer asks.
type origin struct {
	*httptest.Server
	mu   sync.Mutex
	seen []http.Header
	body string
}

func newOrigin(t *testing.T) *origin {
	t.Helper()
	o := &origin{}
	o.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		o.mu.Lock()
		defer o.mu.Unlock()
		o.seen, o.body = append(o.seen, r.Header.Clone()), string(body)
		status := http.StatusOK
		if _, err := fmt.Sscan(r.Header.Get("X-Answer"), &status); err != nil {
			status = http.StatusOK
		}
		w.Header().Set("X-Origin", "yes")
		w.WriteHeader(status)
	}))
	t.Cleanup(o.Close)
	return o
}

func (o *origin) last(t *testing.T) http.Header {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.seen) == 0 {
		t.Fatal("the origin was not asked")
	}
	return o.seen[len(o.seen)-1]
}

func (o *origin) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.seen)
}

// freeAddress is an address that nothing else uses.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.83.7.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

// replace puts what a test has in the place of what the page names, each once.
func replace(t *testing.T, text string, replacements map[string]string) string {
	t.Helper()
	for from, to := range replacements {
		if strings.Count(text, from) != 1 {
			t.Fatalf("the block of the page has %q %d times", from, strings.Count(text, from))
		}
		text = strings.Replace(text, from, to, 1)
	}
	return text
}

// authority writes the gateway's certificate into a file.
func authority(t *testing.T, gateway *httptest.Server) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	put(t, file, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: gateway.Certificate().Raw})))
	return file
}

// run starts a proxy, and returns once it listens.
func run(t *testing.T, address string, env []string, program string, args ...string) {
	t.Helper()
	var said bytes.Buffer
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; scripts/install-parts installs what is missing", err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		stop()
		<-ended
		if t.Failed() {
			t.Logf("%s: %.8000s", program, said.String())
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", address)
		if err == nil {
			_ = conn.Close()
			return
		}
		select {
		case <-ended:
			t.Fatalf("%s has ended: %s", program, said.String())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// proxied is a proxy that asks a gateway, and how it differs from others.
type proxied struct {
	address string
	// malformed is the status for two credentials, large for large headers beside a good
	// one, away that while no gateway answers.
	malformed, large, away int
}

// throughProxy sends requests through a proxy: each outcome has its status and what comes
// with it, the origin is reached by nobody else than who is admitted, and it sees who that
// is and not what the client has made up.
func throughProxy(t *testing.T, p proxied, w *world, gateway *httptest.Server, origin *origin, token string) {
	t.Helper()
	transport := &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 83, 7, 9)}}).DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	ask := func(method, body string, header ...string) (int, http.Header) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+p.address+"/a/b?gate=admin&scope=", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			r.Header[header[i]] = append(r.Header[header[i]], header[i+1])
		}
		answer, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		_ = answer.Body.Close()
		return answer.StatusCode, answer.Header
	}
	const insufficient = bearer + `, error="insufficient_scope"`
	cookie := strings.Repeat("x", 7<<10)
	reached := 0
	for _, test := range []struct {
		header    []string
		status    int
		challenge string
	}{
		{[]string{"X-Api-Key", "kt_good"}, 200, ""},
		{[]string{"Authorization", "Bearer g.oo.d"}, 200, ""},
		{[]string{"Authorization", "DPoP b.oun.d", "Dpop", "proof"}, 200, ""},
		{nil, 401, bearer},
		{[]string{"X-Api-Key", "kt_bad"}, 401, bearer + `, error="invalid_token"`},
		{[]string{"X-Api-Key", "kt_good", "X-Api-Key", "kt_good"}, p.malformed, bearer + `, error="invalid_request"`},
		{[]string{"X-Api-Key", "kt_good", "Authorization", "Bearer kt_good"}, p.malformed, bearer + `, error="invalid_request"`},
		{[]string{"Authorization", "Bearer n.onc.e"}, 401, bearer + `, error="use_dpop_nonce"`},
		{[]string{"X-Api-Key", "kt_bare"}, 403, insufficient + `, scope="orders:read"`},
		{[]string{"X-Api-Key", "kt_internal"}, 403, insufficient},
		{[]string{"X-Api-Key", "kt_often"}, 429, ""},
		{[]string{"X-Api-Key", "kt_unsure"}, 503, ""},
		{[]string{"X-Api-Key", "kt_good", "Cookie", cookie, "X-More", cookie, "X-Most", cookie}, p.large, ""},
	} {
		// What a client may try to be taken for, or to be asked less by.
		forged := append(slices.Clone(test.header), "Keyturn-Key", "admin", "Keyturn-Subject", "root", "Keyturn-Scopes", "orders:read", "Keyturn_Key", "admin", "Keyturn.Key", "admin", "Keyturn-Outcome", "ok", "Keyturn-Proxy-Token", "x",
			"X-Forwarded-For", "198.51.100.1", "X-Original-Url", "https://evil.example/", "X-Original-Method", "TRACE", "X-Original-Uri", "/v1/forward/admin")
		status, answer := ask(http.MethodPost, "the body", forged...)
		if status != test.status || answer.Get("WWW-Authenticate") != test.challenge || (test.status == 429 || test.status == 503) != (answer.Get("Retry-After") == "2") ||
			strings.Contains(test.challenge, "nonce") != (answer.Get("DPoP-Nonce") == "the-nonce") {
			t.Errorf("%.60q: %d %v", test.header, status, answer)
		}
		if test.status == http.StatusOK {
			reached++
		}
		if origin.count() != reached {
			t.Fatalf("%.60q: the origin was asked %d times, %d were admitted", test.header, origin.count(), reached)
		}
	}
	ask(http.MethodPost, "the body", "X-Api-Key", "kt_good", "Keyturn-Key", "admin", "Keyturn-Key", "root", "Keyturn_Subject", "root", "Keyturn.Subject", "root", "Keyturn-Subject", "root", "Keyturn-Proxy-Token", token)
	seen := origin.last(t)
	want := map[string]string{"Keyturn-Kind": "apikey", "Keyturn-Key": "partners/acme", "Keyturn-Version": "7", "Keyturn-Client": "Z%C3%BCrich 100%25", "Keyturn-Scopes": "orders:read orders:list", "Keyturn-Subject": "-"}
	for name, values := range seen {
		if strings.HasPrefix(strings.ToLower(name), "keyturn") && !slices.Equal(values, []string{want[name]}) {
			t.Errorf("the origin sees %s: %q", name, values)
		}
	}
	for name := range want {
		if seen.Get(name) == "" {
			t.Errorf("the origin does not see %s", name)
		}
	}
	if origin.body != "the body" {
		t.Errorf("the origin sees %v, %q", seen, origin.body)
	}
	if last := w.asked[len(w.asked)-1]; last != "kt_good from 127.83.7.9" {
		t.Errorf("the key was shown %q", last)
	}
	if s := w.shown[1]; s.Method != http.MethodPost || s.URL != "http://"+p.address+"/a/b" || s.Address != "127.83.7.9" {
		t.Errorf("the proof is for %s %s, from %s", s.Method, s.URL, s.Address)
	}
	// What the origin answers is passed on, whatever it is.
	for _, want := range []string{"401", "403", "429", "500", "503"} {
		if status, answer := ask(http.MethodGet, "", "X-Api-Key", "kt_good", "X-Answer", want); fmt.Sprint(status) != want || answer.Get("X-Origin") != "yes" {
			t.Errorf("the origin answers %s, the client sees %d %v", want, status, answer)
		}
	}
	before := origin.count()
	gateway.CloseClientConnections()
	gateway.Close()
	if status, answer := ask(http.MethodGet, "", "X-Api-Key", "kt_good"); status != p.away || p.away == http.StatusServiceUnavailable && answer.Get("Retry-After") != "2" || origin.count() != before {
		t.Errorf("without a gateway: %d %v", status, answer)
	}
}
