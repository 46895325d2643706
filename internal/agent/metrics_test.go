package agent_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/agent"
	"github.com/keyturn/keyturn/internal/agent/metadata"
)

// quiet is a connection to a server that has nothing to say.
type quiet struct{}

func (quiet) Watch(ctx context.Context, _ []client.Known, _ client.HandleFunc) error {
	<-ctx.Done()
	return ctx.Err()
}
func (quiet) Ack(context.Context, []client.Outcome) error   { return nil }
func (quiet) Report(context.Context, []client.Sample) error { return nil }

// freeAddress is an address on loopback where nobody listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }() // nobody has connected
	return l.Addr().String()
}

// TestMetrics: requests of processes are counted by form and result, and the tokens
// that are held named; nothing else is told at that address, and no secret.
func TestMetrics(t *testing.T) {
	dir := t.TempDir()
	endpoint, scraped := freeAddress(t), freeAddress(t)
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte("kt_the_token_of_the_agent"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := agent.ParseConfig("agent.yaml", fmt.Appendf(nil, `
server: https://127.0.0.1:1
stateDir: %[1]s/state
tokenFile: %[1]s/token
metricsListen: %[2]s
metadata:
  listen: %[3]s
  tokens: [{name: orders, issuer: "https://127.0.0.1:1/orders"}]
`, dir, scraped, endpoint))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- agent.Run(ctx, cfg, agent.Deps{Delivery: quiet{}, Dumpable: true}) }()
	ask := func(method, where string, header ...string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+where, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			return 0, ""
		}
		defer func() { _ = response.Body.Close() }() // it is read
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Error(err)
		}
		return response.StatusCode, string(body)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	session := ""
	for status := 0; status != http.StatusOK; {
		select {
		case err := <-ended:
			t.Fatalf("the agent ended: %v", err)
		case <-tick.C:
		}
		status, session = ask(http.MethodPut, endpoint+"/v1/session", metadata.TTLHeader, "60")
	}
	for _, path := range []string{"/v1/tokens/admin", "/v1/tokens/root", "/made/up"} {
		ask(http.MethodGet, endpoint+path, metadata.SessionHeader, session)
	}
	ask(http.MethodGet, endpoint+"/v1/tokens/orders")
	status, text := ask(http.MethodGet, scraped+"/metrics")
	for _, want := range []string{
		`keyturn_agent_token_requests_total{form="session",result="ok"} 1`, `keyturn_agent_token_requests_total{form="token",result="not-found"} 2`,
		`keyturn_agent_token_requests_total{form="token",result="unauthorized"} 1`, `keyturn_agent_token_requests_total{form="other",result="not-found"} 1`,
		`keyturn_agent_token_expires_seconds{token="orders"} 0`,
	} {
		if !slices.Contains(strings.Split(text, "\n"), want) {
			t.Errorf("status %d, no %s in\n%s", status, want, text)
		}
	}
	if strings.Contains(text, "kt_the_token") || strings.Contains(text, session) || strings.Contains(text, "admin") {
		t.Errorf("the metrics tell too much:\n%s", text)
	}
	if status, _ := ask(http.MethodGet, scraped+"/v1/session"); status != http.StatusNotFound {
		t.Errorf("something else is answered where metrics are: %d", status)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if status, _ := ask(http.MethodGet, scraped+"/metrics"); status != 0 {
		t.Error("metrics are served when the agent has ended")
	}
}
