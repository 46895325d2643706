package forward_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/gateway/forward"
)

// nginx runs the page's block at an address, before the gateway and the origin.
func nginx(t *testing.T, address string, gateway *httptest.Server, origin *origin, token string) {
	t.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		program = "/usr/sbin/nginx"
	}
	dir := t.TempDir()
	put(t, filepath.Join(dir, "token"), "proxy_set_header Keyturn-Proxy-Token "+token+";\n")
	text := replace(t, block(t, "nginx"), map[string]string{
		"server gateway.example.com:7449;": "server " + gateway.Listener.Addr().String() + ";",
		"listen 8080;":                     "listen " + address + ";",
		"http://origin.example.com:9000;":  origin.URL + ";",
		"/etc/nginx/keyturn-token;":        filepath.Join(dir, "token") + ";",
		"/etc/nginx/keyturn-ca.pem;":       authority(t, gateway) + ";",
	})
	var temp strings.Builder
	for _, name := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temp, "%s_temp_path %s;\n", name, filepath.Join(dir, name))
	}
	put(t, filepath.Join(dir, "nginx.conf"), "daemon off;\nmaster_process off;\npid "+filepath.Join(dir, "pid")+";\nerror_log stderr warn;\nevents {}\nhttp {\naccess_log off;\n"+temp.String()+text+"}\n")
	run(t, address, nil, program, "-p", dir, "-e", "stderr", "-c", filepath.Join(dir, "nginx.conf"))
}

// TestNginx runs a real nginx with the block of the page.
func TestNginx(t *testing.T) {
	const token = "a-token-of-this-proxy"
	w := pageWorld(t, token, nil, func(*forward.GateConfig) {})
	gateway := httptest.NewTLSServer(w.handler())
	t.Cleanup(gateway.Close)
	origin := newOrigin(t)
	address := freeAddress(t)
	nginx(t, address, gateway, origin, token)
	throughProxy(t, proxied{address: address, malformed: http.StatusUnauthorized, large: http.StatusRequestHeaderFieldsTooLarge, away: http.StatusServiceUnavailable}, w, gateway, origin, token)
}

// TestNginxIsAStranger: a proxy with a wrong token lets nobody in, and passes on no client's.
func TestNginxIsAStranger(t *testing.T) {
	const token = "a-token-of-this-proxy"
	w := pageWorld(t, token, nil, func(*forward.GateConfig) {})
	gateway := httptest.NewTLSServer(w.handler())
	t.Cleanup(gateway.Close)
	origin := newOrigin(t)
	address := freeAddress(t)
	nginx(t, address, gateway, origin, "another-token-altogether")
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-API-Key", "kt_good")
	r.Header.Set(forward.HeaderProxyToken, token)
	transport := &http.Transport{DisableKeepAlives: true}
	answer, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	if answer.StatusCode != http.StatusForbidden || origin.count() != 0 || len(w.asked) != 0 {
		t.Errorf("%d, the origin was asked %d times, and %v was verified", answer.StatusCode, origin.count(), w.asked)
	}
}
