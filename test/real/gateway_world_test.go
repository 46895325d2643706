package real

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/gateway"
)

// gatewayVariable holds the path of a gateway's configuration.
const gatewayVariable = "KEYTURN_TEST_GATEWAY"

// childGateway runs a gateway until its standard input ends.
func childGateway(path string) int {
	config, err := gateway.LoadConfig(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	g, err := gateway.Start(context.Background(), config, gateway.Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(sayReady + g.Address())
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := g.Stop(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// gatewayProcess is a gateway that runs as a process of its own. What it is reached by
// stays when it is started again.
type gatewayProcess struct {
	name, token string
	// dir is its data folder, config the file of its configuration.
	dir, config string
	// address serves the region over TLS, local the proxies of its machine: host and port
	// or unix: and a path. metrics is an address.
	address, local, metrics string
	// proxyToken is what services show at address.
	proxyToken string
	logs       *logBuffer

	cmd   *exec.Cmd
	stdin io.WriteCloser
	done  chan struct{}
}

// gatewayConfig serves API keys, to proxies that say in two ways where a client is.
const gatewayConfig = `
name: NAME
listen: ADDRESS
dataDir: DIR
serve: [SERVE]
centre: {address: CENTRE, caFile: CA, tokenFile: TOKEN}
log: {level: debug, format: text}
metricsListen: METRICS
apiKeys: {maxAge: 10m, reportEvery: 200ms}
forward:
  listen: LOCAL
  proxyTokenFiles: [PROXIES]
  gates:
    orders:
      keys: [partners/**]
      scopes: [orders:read]
      only401And403: true
    by-real-ip:
      keys: [partners/**]
      scopes: [orders:read]
      clientAddress: X-Real-IP
      only401And403: true
`

// gateway starts a gateway that serves proxies at local; "" is an address on loopback.
func (w *world) gateway(t *testing.T, name, local string, serve ...string) *gatewayProcess {
	t.Helper()
	answer, err := w.control.CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{Name: name, Role: "gateway", Keys: []string{"**"}})
	if err != nil {
		t.Fatal(err)
	}
	g := &gatewayProcess{
		name: name, token: answer.GetToken(), dir: filepath.Join(w.dir, name), config: filepath.Join(w.dir, name+".yaml"),
		address: "https://" + freeAddress(t), local: local, metrics: freeAddress(t), proxyToken: "proxies-" + rand.Text(), logs: &logBuffer{},
	}
	if g.local == "" {
		g.local = freeAddress(t)
	}
	tokenFile, proxies := filepath.Join(w.dir, name+".token"), filepath.Join(w.dir, name+".proxies")
	config := strings.NewReplacer(
		"NAME", name, "ADDRESS", strings.TrimPrefix(g.address, "https://"), "DIR", g.dir, "SERVE", strings.Join(serve, ", "), "CENTRE", w.known(), "CA", w.caFile(),
		"TOKEN", tokenFile, "METRICS", g.metrics, "LOCAL", g.local, "PROXIES", proxies,
	).Replace(gatewayConfig)
	for path, text := range map[string]string{tokenFile: g.token, proxies: g.proxyToken, g.config: config} {
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%s", name, g.logs.tail(4000))
		}
		g.kill(t)
	})
	g.start(t)
	return g
}

func (g *gatewayProcess) start(t *testing.T) {
	t.Helper()
	g.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0])
	g.cmd.Env = append(os.Environ(), gatewayVariable+"="+g.config)
	g.cmd.Stderr = g.logs
	var err error
	if g.stdin, err = g.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := g.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready, done := make(chan struct{}, 1), make(chan struct{})
	g.done = done
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			if strings.HasPrefix(lines.Text(), sayReady) {
				ready <- struct{}{}
			}
		}
	}()
	select {
	case <-ready:
	case <-g.done:
		t.Fatalf("%s ended at its start:\n%s", g.name, g.logs.tail(2000))
	}
}

// kill ends the gateway as SIGKILL does.
func (g *gatewayProcess) kill(t *testing.T) {
	t.Helper()
	if g.cmd == nil || g.cmd.ProcessState != nil {
		return
	}
	if err := g.cmd.Process.Kill(); err != nil {
		t.Errorf("kill %s: %v", g.name, err)
	}
	<-g.done
	_ = g.cmd.Wait() // it was killed
}

// roots are the authorities of the gateway's certificate.
func (g *gatewayProcess) roots(t *testing.T) *x509.CertPool {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(g.dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return roots
}

// scrape is what the gateway tells of itself.
func (g *gatewayProcess) scrape(t *testing.T) string {
	t.Helper()
	response, err := http.Get("http://" + g.metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }() // it was read
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("metrics of %s: status %d, %v", g.name, response.StatusCode, err)
	}
	return string(text)
}

// asked is what the gateway answers a proxy of its machine about a credential.
func (g *gatewayProcess) asked(t *testing.T, text string) (status int, outcome string) {
	t.Helper()
	network, address := "tcp", g.local
	if path, ok := strings.CutPrefix(g.local, "unix:"); ok {
		network, address = "unix", path
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://gateway/v1/forward/orders", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Api-Key", text)
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close() // the head says enough
	return response.StatusCode, response.Header.Get("Keyturn-Outcome")
}

// knows waits until the gateway lets a key in.
func (g *gatewayProcess) knows(t *testing.T, text string) {
	t.Helper()
	eventually(t, g.name+" knows the key", func() bool {
		status, _ := g.asked(t, text)
		return status == http.StatusOK
	})
}

func freeAddress(t *testing.T) string {
	t.Helper()
	free, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = free.Close() // somebody else takes it
	return free.Addr().String()
}

// edge is an nginx that asks gateways whether a request may pass to its origin.
type edge struct{ address string }

// nginxConfig asks one gateway, and the other when that does not answer.
const nginxConfig = `
USER
pid DIR/nginx.pid;
error_log DIR/error.log;
worker_processes 2;
events { worker_connections 256; }
http {
  access_log DIR/access.log;
  client_body_temp_path DIR/body;
  proxy_temp_path DIR/proxy;
  fastcgi_temp_path DIR/fastcgi;
  uwsgi_temp_path DIR/uwsgi;
  scgi_temp_path DIR/scgi;
  upstream gateways { GATEWAYS keepalive 16; }
  upstream origin { server ORIGIN; keepalive 16; }
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  server {
    listen ADDRESS;
    location /orders {
      auth_request /_keyturn/orders;
      auth_request_set $keyturn_key $upstream_http_keyturn_key;
      auth_request_set $keyturn_version $upstream_http_keyturn_version;
      auth_request_set $keyturn_client $upstream_http_keyturn_client;
      proxy_set_header Keyturn-Key $keyturn_key;
      proxy_set_header Keyturn-Version $keyturn_version;
      proxy_set_header Keyturn-Client $keyturn_client;
      proxy_set_header X-Api-Key "";
      proxy_set_header Authorization "";
      proxy_set_header Connection "";
      proxy_pass http://origin;
    }
    location /real {
      auth_request /_keyturn/by-real-ip;
      proxy_pass http://origin;
    }
    location /_keyturn/ {
      internal;
      proxy_pass http://gateways/v1/forward/;
      proxy_pass_request_body off;
      proxy_set_header Content-Length "";
      proxy_set_header Connection "";
      proxy_set_header X-Real-IP $remote_addr;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_connect_timeout 1s;
      proxy_next_upstream error timeout;
    }
  }
}
`

// nginx starts an nginx before an origin that answers with what it is told of the
// client.
func (w *world) nginx(t *testing.T, gateways ...*gatewayProcess) *edge {
	t.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/nginx"); err != nil {
			t.Fatalf("no nginx: run scripts/install-parts: %v", err)
		}
	}
	origin := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(out, "%s %s %s", r.Header.Get("Keyturn-Key"), r.Header.Get("Keyturn-Version"), r.Header.Get("Keyturn-Client"))
		if r.Header.Get("X-Api-Key") != "" && strings.HasPrefix(r.URL.Path, "/orders") {
			t.Error("the origin sees the key")
		}
	}))
	t.Cleanup(origin.Close)
	dir := filepath.Join(w.dir, "nginx")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var upstream strings.Builder
	for _, g := range gateways {
		fmt.Fprintf(&upstream, "server %s max_fails=0; ", g.local)
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;" // the socket of a gateway is for its group
	}
	e := &edge{address: freeAddress(t)}
	config := strings.NewReplacer(
		"USER", user, "DIR", dir, "GATEWAYS", upstream.String(), "ORIGIN", strings.TrimPrefix(origin.URL, "http://"), "ADDRESS", e.address,
	).Replace(nginxConfig)
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	logs := &logBuffer{}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program, "-p", dir, "-c", path, "-g", "daemon off;")
	cmd.Stdout, cmd.Stderr = logs, logs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it is ended by a signal
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		<-ended
		if said, err := os.ReadFile(filepath.Join(dir, "error.log")); t.Failed() && err == nil {
			t.Logf("nginx says:\n%s", said[max(0, len(said)-3000):])
		}
	})
	eventually(t, "nginx answers", func() bool {
		select {
		case <-ended:
			t.Fatalf("nginx ended at its start: %s", logs.String())
		default:
		}
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", e.address)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return e
}

// visitor is an application that shows an API key to the edge.
type visitor struct {
	edge   *edge
	client *http.Client
	// through is where an outer proxy says that it comes from; empty: there is none.
	through string
}

// visitor returns one at an address of its own on loopback.
func (e *edge) visitor(t *testing.T, from, through string) *visitor {
	t.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	transport := &http.Transport{DialContext: dialer.DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	return &visitor{edge: e, client: &http.Client{Transport: transport}, through: through}
}

// errNotAdmitted: the edge has not passed a request on.
var errNotAdmitted = errors.New("not admitted")

// show shows a key and returns what the origin answers. Unless it was let in the error
// wraps errNotAdmitted, and status says how it was turned away.
func (v *visitor) show(ctx context.Context, path, text string) (said string, status int, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+v.edge.address+path, http.NoBody)
	if err != nil {
		return "", 0, err
	}
	request.Header.Set("X-Api-Key", text)
	if v.through != "" {
		request.Header.Set("X-Forwarded-For", v.through)
	}
	response, err := v.client.Do(request)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = response.Body.Close() }() // it was read
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%w: status %d", errNotAdmitted, response.StatusCode)
	}
	return string(body), response.StatusCode, err
}
