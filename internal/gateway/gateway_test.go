package gateway_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/gateway"
	"github.com/keyturn/keyturn/internal/gateway/forward"
)

// configOf is the configuration of a gateway whose centre is nowhere.
func configOf(t *testing.T) gateway.Config {
	t.Helper()
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("kt_0123456789abcdef_a-token-that-nobody-takes"), 0o600); err != nil {
		t.Fatal(err)
	}
	return gateway.Config{
		Name: "gw-1", Listen: "127.0.0.1:0", DataDir: filepath.Join(dir, "data"),
		Centre: gateway.CentreConfig{Address: "https://" + closed(t), TokenFile: token},
		Forward: gateway.ForwardConfig{
			Listen:   "unix:" + filepath.Join(dir, "proxy.sock"),
			Settings: forward.Settings{Gates: map[string]forward.GateConfig{"orders": {Keys: []string{"**"}}}},
		},
	}
}

// closed is an address at which nobody answers.
func closed(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func start(t *testing.T, config gateway.Config, log io.Writer) *gateway.Gateway {
	t.Helper()
	g, err := gateway.Start(t.Context(), config, gateway.Options{LogTo: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, g) })
	return g
}

func stop(t *testing.T, g *gateway.Gateway) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
	defer cancel()
	if err := g.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-API-Key", "acme_0123")
	response, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// TestStartsWithoutCentre: a gateway starts while the centre is away, says that it cannot
// tell yet, and refuses nobody. However many issuers are away, it waits for all together.
func TestStartsWithoutCentre(t *testing.T) {
	config := configOf(t)
	config.Forward.Tokens = map[string]forward.TokensConfig{}
	for _, name := range []string{"a", "b", "c"} {
		config.Forward.Tokens[name] = forward.TokensConfig{Issuer: config.Centre.Address + "/" + name, Audience: "orders"}
	}
	began := time.Now()
	g := start(t, config, io.Discard)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the start took %v", took)
	}
	region := regionOf(t, g)
	socket := strings.TrimPrefix(config.Forward.Listen, "unix:")
	local := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	t.Cleanup(local.CloseIdleConnections)
	for _, want := range []struct {
		client *http.Client
		url    string
		status int
	}{
		{region, g.Address() + "/healthz", 200},
		{region, g.Address() + "/readyz", 503},
		{region, g.Address() + "/v1/forward/orders", 403}, // it shows no token of a proxy
		{local, "http://gateway/v1/forward/orders", 503},
		{local, "http://gateway/readyz", 503},
	} {
		if status, body := get(t, want.client, want.url); status != want.status {
			t.Errorf("%s: %d %s, want %d", want.url, status, body, want.status)
		}
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket: %v, %v", info, err)
	}
}

// TestCallsOfATokenAreBounded: who calls too often is told so, and nobody else is.
func TestCallsOfATokenAreBounded(t *testing.T) {
	config := configOf(t)
	config.Serve, config.Forward = []string{gateway.ServeDelivery}, gateway.ForwardConfig{}
	config.Limits.PerSecond, config.Limits.Burst = 0.001, 3
	g := start(t, config, io.Discard)
	c := clientOf(t, g)
	leave := func(token string) connect.Code {
		ctx, info := connect.NewClientContext(t.Context())
		info.RequestHeader().Set("Authorization", "Bearer "+token)
		_, err := c.Leave(ctx, &keyturnv1.LeaveRequest{PartyId: "app"})
		return connect.CodeOf(err)
	}
	var got []connect.Code
	for range 5 {
		got = append(got, leave("kt_a_x"))
	}
	want := []connect.Code{connect.CodeUnavailable, connect.CodeUnavailable, connect.CodeUnavailable, connect.CodeResourceExhausted, connect.CodeResourceExhausted}
	if !slices.Equal(got, want) {
		t.Errorf("one token: %v, want %v", got, want)
	}
	if code := leave("kt_b_y"); code != connect.CodeUnavailable {
		t.Errorf("another token: %v", code)
	}
}

// clientOf speaks to a gateway.
func clientOf(t *testing.T, g *gateway.Gateway) keyturnv1connect.DeliveryServiceClient {
	t.Helper()
	return keyturnv1connect.NewDeliveryServiceClient(regionOf(t, g), g.Address())
}

// regionOf is a client that trusts the gateway's own CA.
func regionOf(t *testing.T, g *gateway.Gateway) *http.Client {
	t.Helper()
	pem, err := os.ReadFile(g.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// TestCacheBelongsToOneGateway: the folder of one gateway is refused by another one, and
// by one of another centre; addresses may come and go one by one. Without its key it is
// not opened, nor replaced.
func TestCacheBelongsToOneGateway(t *testing.T) {
	config := configOf(t)
	config.Serve = []string{gateway.ServeDelivery}
	config.Forward = gateway.ForwardConfig{}
	first := config.Centre.Address
	begin := func(change func(*gateway.Config)) error {
		other := config
		change(&other)
		g, err := gateway.Start(t.Context(), other, gateway.Options{LogTo: io.Discard})
		if err == nil {
			stop(t, g)
		}
		return err
	}
	for _, step := range []struct {
		what   string
		change func(*gateway.Config)
		want   error
	}{
		{"first", func(*gateway.Config) {}, nil},
		{"another name", func(c *gateway.Config) { c.Name = "gw-2" }, gateway.ErrForeignCache},
		{"another centre", func(c *gateway.Config) { c.Centre.Address = "https://b.example" }, gateway.ErrForeignCache},
		{"one more address", func(c *gateway.Config) { c.Centre.Address = first + ",https://b.example/" }, nil},
		{"one less", func(c *gateway.Config) { c.Centre.Address = "https://b.example" }, nil},
	} {
		if err := begin(step.change); !errors.Is(err, step.want) {
			t.Errorf("%s: %v, want %v", step.what, err, step.want)
		}
	}
	config.Centre.Address = "https://b.example"
	kek := filepath.Join(config.DataDir, "kek.json")
	if err := os.Rename(kek, kek+".away"); err != nil {
		t.Fatal(err)
	}
	if err := begin(func(*gateway.Config) {}); err == nil || !strings.Contains(err.Error(), "bring it back, or delete") {
		t.Errorf("without its key: %v", err)
	}
	if _, err := os.Stat(kek); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("another key was made: %v", err)
	}
	if err := errors.Join(os.Rename(kek+".away", kek), os.WriteFile(filepath.Join(config.DataDir, "cache.db"), []byte("no database at all"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := begin(func(*gateway.Config) {}); err == nil || !strings.Contains(err.Error(), "docs/runbooks/gateway.md") {
		t.Errorf("a cache that is damaged: %v", err)
	}
}

// TestFilesOfOthersAreRefused: a token that everybody can read, a socket's path at which
// something else is, and a folder of others are refused, with the mend.
func TestFilesOfOthersAreRefused(t *testing.T) {
	for what, spoil := range map[string]func(*gateway.Config) string{
		"no token": func(c *gateway.Config) string {
			c.Centre.TokenFile += ".none"
			return "centre.tokenFile"
		},
		"no CA": func(c *gateway.Config) string {
			c.Centre.CAFile = c.Centre.TokenFile
			return "holds no PEM certificate"
		},
		"a file in the socket's place": func(c *gateway.Config) string {
			c.Forward.Listen = "unix:" + c.Centre.TokenFile
			return "is no socket"
		},
		"a folder of others": func(c *gateway.Config) string {
			if err := errors.Join(os.MkdirAll(c.DataDir, 0o700), os.Chmod(c.DataDir, 0o777)); err != nil {
				t.Fatal(err)
			}
			return "chmod 700"
		},
	} {
		config := configOf(t)
		want := spoil(&config)
		var log bytes.Buffer
		g, err := gateway.Start(t.Context(), config, gateway.Options{LogTo: &log})
		if err == nil {
			stop(t, g)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", what, err, want)
		}
		if strings.Contains(log.String(), "a-token-that-nobody-takes") {
			t.Errorf("%s: the log has the token", what)
		}
	}
}
