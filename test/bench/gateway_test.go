package bench

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/gateway"
	"github.com/keyturn/keyturn/internal/gateway/forward"
	"github.com/keyturn/keyturn/internal/logging"
)

// forwardRatio is the least part of the floor's rate for proxies.
const forwardRatio = 0.7

const proxyToken = "the-token-of-the-proxies-of-the-bench"

// gateway starts a gateway that knows the key's present version.
func (w *world) gateway(b *testing.B, text string) *gateway.Gateway {
	b.Helper()
	token, err := w.control.CreateToken(b.Context(), &keyturnv1.CreateTokenRequest{Name: "gateway", Role: "gateway", Keys: []string{"**"}})
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	tokenFile, proxies := filepath.Join(dir, "token"), filepath.Join(dir, "proxies")
	for path, content := range map[string]string{tokenFile: token.GetToken(), proxies: proxyToken} {
		if err := os.WriteFile(path, []byte(content+"\n"), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	g, err := gateway.Start(b.Context(), gateway.Config{
		Name: "gateway", Listen: "127.0.0.1:0", DataDir: filepath.Join(dir, "data"), Serve: []string{gateway.ServeAPIKeys},
		Centre: gateway.CentreConfig{Address: w.address, CAFile: w.caFile, TokenFile: tokenFile},
		Log:    logging.Config{Level: "error"},
		Forward: gateway.ForwardConfig{
			Listen:   "127.0.0.1:0",
			Settings: forward.Settings{ProxyTokenFiles: []string{proxies}, Gates: map[string]forward.GateConfig{"orders": {Keys: []string{"**"}, Scopes: []string{"orders:read"}}}},
		},
	}, gateway.Options{LogTo: io.Discard})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := g.Stop(ctx); err != nil {
			b.Errorf("stop the gateway: %v", err)
		}
	})
	ask := asking(b, "http://"+g.LocalAddress()+"/v1/forward/orders", text)
	for deadline := time.Now().Add(time.Minute); ask() != nil; <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("the gateway does not know the key: %v", ask())
		}
	}
	return g
}

// BenchmarkVerifyThroughGateway compares the rate of verifications by a gateway's API,
// which is the server's, with that of the floor of BenchmarkVerifyOverAPI.
func BenchmarkVerifyThroughGateway(b *testing.B) {
	w := newWorld(b, nil, apiKeyDocuments)
	text := w.newKey(b)
	g := w.gateway(b, text)
	floor := floorServer(b)
	roots := rootsOf(b, g.CAFile())
	roots.AddCert(floor.Certificate())
	for b.Loop() {
		var ours, least time.Duration
		for range verifyParts {
			ours += call(b, g.Address()+"/v1/apikeys/verify", proxyToken, text, &tls.Config{RootCAs: roots})
			least += call(b, floor.URL, proxyToken, text, &tls.Config{RootCAs: roots})
		}
		const n = verifyPart * verifyParts
		scoreboard.add(b, result{
			Name: "apikey-verify-gateway", Unit: "per-cpu-s", Ours: n / ours.Seconds(), Floor: n / least.Seconds(),
			limit: verifyRatio * n / least.Seconds(), more: true,
		})
	}
}

// BenchmarkForwardThroughGateway compares the rate of answers to a proxy of the same
// machine with that of a handler that hashes the key of the header and says whose it is.
func BenchmarkForwardThroughGateway(b *testing.B) {
	w := newWorld(b, nil, apiKeyDocuments)
	text := w.newKey(b)
	g := w.gateway(b, text)
	floor := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		mac := hmac.New(sha256.New, []byte("a pepper of thirty-two characters"))
		_, _ = io.WriteString(mac, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")) // a hash never fails
		if sum := mac.Sum(nil); sum[0] == 255 && sum[1] == 255 && sum[2] == 255 {
			out.WriteHeader(http.StatusUnauthorized)
			return
		}
		for _, name := range forward.Headers() {
			out.Header().Set(name, "ACME Ltd.")
		}
	}))
	b.Cleanup(floor.Close)
	ours := asking(b, "http://"+g.LocalAddress()+"/v1/forward/orders", text)
	least := asking(b, floor.URL, text)
	for b.Loop() {
		var took, most time.Duration
		for range verifyParts {
			took += calls(b, ours)
			most += calls(b, least)
		}
		const n = verifyPart * verifyParts
		scoreboard.add(b, result{
			Name: "apikey-forward-gateway", Unit: "per-cpu-s", Ours: n / took.Seconds(), Floor: n / most.Seconds(),
			limit: forwardRatio * n / most.Seconds(), more: true,
		})
	}
}

// asking returns a call that a proxy makes about a key.
func asking(b *testing.B, url, text string) func() error {
	b.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: verifyCalls}
	b.Cleanup(transport.CloseIdleConnections)
	return func() error {
		request, err := http.NewRequestWithContext(b.Context(), http.MethodGet, url, http.NoBody)
		if err != nil {
			return err
		}
		request.Header.Set("Authorization", "Bearer "+text)
		response, err := transport.RoundTrip(request)
		if err != nil {
			return err
		}
		_ = response.Body.Close() // the head says enough
		if response.StatusCode != http.StatusOK || response.Header.Get(forward.HeaderClient) == "" {
			return fmt.Errorf("status %d", response.StatusCode)
		}
		return nil
	}
}
