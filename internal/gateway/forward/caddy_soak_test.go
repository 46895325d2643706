//go:build soak

package forward_test

import (
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/gateway/forward"
)

// buildCaddy builds a pinned Caddy in a module and caches of its own, which are gone
// afterwards.
func buildCaddy(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	put(t, filepath.Join(dir, "go.mod"), "module caddy\n\ngo 1.26\n\nrequire github.com/caddyserver/caddy/v2 v2.11.9\n")
	put(t, filepath.Join(dir, "main.go"), `package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/standard"
)

func main() { caddycmd.Main() }
`)
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", "caddy", ".")
	cmd.Dir = dir
	// With mod the sums of what is required are noted on the way.
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0", "GOFLAGS=-modcacherw -mod=mod", "GOMODCACHE="+filepath.Join(dir, "mod"), "GOCACHE="+filepath.Join(dir, "cache"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build Caddy: %v: %s", err, out[max(0, len(out)-2000):])
	}
	return filepath.Join(dir, "caddy")
}

// TestCaddy runs a real Caddy with the block of the page.
func TestCaddy(t *testing.T) {
	const token = "a-token-of-this-proxy"
	w := pageWorld(t, token, nil, func(g *forward.GateConfig) { g.RequestURL, g.Only401And403 = "x-forwarded", false })
	gateway := httptest.NewTLSServer(w.handler())
	t.Cleanup(gateway.Close)
	origin := newOrigin(t)
	dir, address := t.TempDir(), freeAddress(t)
	text := replace(t, block(t, "caddy"), map[string]string{
		"orders.example.com {":              "http://" + address + " {",
		"https://gateway.example.com:7449 ": gateway.URL + " ",
		"origin.example.com:9000":           strings.TrimPrefix(origin.URL, "http://"),
		"/etc/caddy/keyturn-ca.pem":         authority(t, gateway),
	})
	put(t, filepath.Join(dir, "Caddyfile"), "{\n\tadmin off\n\tauto_https off\n\tpersist_config off\n}\n\n"+text)
	run(t, address, []string{"KEYTURN_PROXY_TOKEN=" + token, "HOME=" + dir, "XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir},
		buildCaddy(t), "run", "--adapter", "caddyfile", "--config", filepath.Join(dir, "Caddyfile"))
	throughProxy(t, proxied{address: address, malformed: http.StatusBadRequest, large: http.StatusRequestHeaderFieldsTooLarge, away: http.StatusBadGateway}, w, gateway, origin, token)
}
