package forward_test

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/gateway/forward"
)

const (
	tokenA = "aaaaaaaaaaaaaaaa"
	tokenB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

func request(t *testing.T, path string, header ...string) *http.Request {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, http.NoBody)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// TestProxyTokens: whoever shows one of the tokens, once and whole, may ask; a credential
// of a client in Authorization is none, but where services verify API keys themselves.
func TestProxyTokens(t *testing.T) {
	one, two := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two")
	put(t, one, tokenA+"\n")
	put(t, two, "\n  "+tokenB+"\t\r\ncccccccccccccccc")
	p, err := forward.NewProxyTokens(forward.ProxyTokensConfig{Files: []string{one, two}, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	const ask, verify = forward.Prefix + "orders", forward.VerifyPath
	for _, test := range []struct {
		path   string
		header []string
		good   bool
	}{
		{ask, []string{"Keyturn-Proxy-Token", tokenA}, true},
		{ask, []string{"Keyturn-Proxy-Token", tokenB}, true},
		{ask, []string{"Keyturn-Proxy-Token", "cccccccccccccccc"}, true},
		{ask, nil, false},
		{ask, []string{"Keyturn-Proxy-Token", ""}, false},
		{ask, []string{"Keyturn-Proxy-Token", tokenA + "a"}, false},
		{ask, []string{"Keyturn-Proxy-Token", tokenA[1:]}, false},
		{ask, []string{"Keyturn-Proxy-Token", tokenA, "Keyturn-Proxy-Token", tokenA}, false},
		{ask, []string{"Keyturn-Proxy-Token", tokenA + ", " + tokenA}, false},
		{ask, []string{"Keyturn-Proxy-Token", strings.Repeat("a", 4096)}, false},
		{ask, []string{"Authorization", "Bearer " + tokenA}, false},
		{forward.EnvoyPath, []string{"Authorization", "Bearer " + tokenA}, false},
		{verify, []string{"Authorization", "Bearer " + tokenA}, true},
		{verify, []string{"Authorization", "bearer  " + tokenA}, true},
		{verify, []string{"Keyturn-Proxy-Token", tokenB}, true},
		{verify, []string{"Authorization", tokenA}, false},
		{verify, []string{"Authorization", "Basic " + tokenA}, false},
		{verify, []string{"Authorization", "Bearer " + tokenA, "Authorization", "Bearer " + tokenA}, false},
		{verify, []string{"Keyturn-Proxy-Token", "x", "Authorization", "Bearer " + tokenA}, false},
	} {
		if err := p.Caller(request(t, test.path, test.header...)); (err == nil) != test.good || err != nil && (!errors.Is(err, forward.ErrCaller) || strings.Contains(err.Error(), "aaaa")) {
			t.Errorf("%s %.80q: %v", test.path, test.header, err)
		}
	}
}

// TestProxyTokensChange: a file that changes counts within a second; one that is no file of
// tokens any more does not, and is told of.
func TestProxyTokensChange(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	put(t, file, tokenA)
	var log bytes.Buffer
	now := time.Unix(1e9, 0)
	p, err := forward.NewProxyTokens(forward.ProxyTokensConfig{Files: []string{file}, Now: func() time.Time { return now }, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	check := func(when string, a, b bool) {
		t.Helper()
		for token, want := range map[string]bool{tokenA: a, tokenB: b} {
			if err := p.Caller(request(t, "/v1/forward/x", "Keyturn-Proxy-Token", token)); (err == nil) != want {
				t.Errorf("%s: %.1s: %v", when, token, err)
			}
		}
	}
	check("at first", true, false)
	put(t, file, tokenA+"\n"+tokenB)
	check("at once", true, false)
	now = now.Add(time.Second)
	check("a second later", true, true)
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	put(t, file, tokenB+"\n"+strings.Repeat("b", len(tokenA))) // of the same size and time
	if err := os.Chtimes(file, before.ModTime(), before.ModTime()); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Second)
	check("after the old one is gone", false, true)
	for what, spoil := range map[string]func() error{
		"removed": func() error { return os.Remove(file) },
		"empty":   func() error { return os.WriteFile(file, nil, 0o600) },
		"short":   func() error { return os.WriteFile(file, []byte(tokenA[1:]), 0o600) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Hour)
		check(what, false, true)
	}
	if n := strings.Count(log.String(), "those of before count on"); n != 3 || strings.Contains(log.String(), tokenA[1:]) {
		t.Errorf("logged %d times: %s", n, log.String())
	}
	put(t, file, tokenA)
	now = now.Add(time.Second)
	check("mended", true, false)
	now = now.Add(-time.Hour) // the clock is set back
	put(t, file, tokenB)
	check("set back", false, true)
}

// TestBadProxyTokens: files that hold no tokens are an error at the start, that names the
// place and no token.
func TestBadProxyTokens(t *testing.T) {
	for what, text := range map[string]string{
		"empty": "\n\n", "short": "aaaaaaaaaaaaaaa", "long": strings.Repeat("a", 513), "spaces": "aaaaaaaa aaaaaaaa", "binary": "aaaaaaaa\x00aaaaaaaa", "not ASCII": "aaaaaaaaaaaaaaaaü",
		"many": strings.Repeat(tokenA+"\n", 17), "large": strings.Repeat("\n", 1<<15) + tokenA,
	} {
		file := filepath.Join(t.TempDir(), "tokens")
		put(t, file, text)
		_, err := forward.NewProxyTokens(forward.ProxyTokensConfig{Files: []string{file}, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
		if !errors.Is(err, forward.ErrConfig) || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "aaaaaa") {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := forward.NewProxyTokens(forward.ProxyTokensConfig{Files: []string{filepath.Join(t.TempDir(), "none")}, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, forward.ErrConfig) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
