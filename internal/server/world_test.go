package server_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// memory is a system in memory that accepts whatever it is told to.
type memory struct {
	mu       sync.Mutex
	accepted map[string]bool
}

func (m *memory) Check(provider.Config) (provider.Topology, error) {
	return provider.Topology{Endpoints: []provider.Endpoint{{Name: "one"}}}, nil
}

func (m *memory) Open(context.Context, provider.Config, provider.Env) (provider.System, error) {
	return m, nil
}

func (m *memory) Mint(_ context.Context, call provider.Call, request provider.MintRequest) (provider.Material, error) {
	return provider.Material{
		Attributes: map[string]string{"username": "u"},
		Secrets:    map[string]secret.Value{"password": secret.NewString(string(call.Key) + " " + request.Number.String())},
	}, nil
}

func (m *memory) set(v provider.Version, accepted bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.accepted[v.Material.Secrets["password"].RevealString()] = accepted
	return nil
}

func (m *memory) Accept(_ context.Context, _ provider.Call, _ string, v provider.Version) error {
	return m.set(v, true)
}

func (m *memory) Refuse(_ context.Context, _ provider.Call, _ string, v provider.Version) error {
	return m.set(v, false)
}

func (m *memory) Probe(_ context.Context, _ provider.Call, _ string, v provider.Version) (provider.Verdict, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.accepted[v.Material.Secrets["password"].RevealString()] {
		return provider.Accepted, nil
	}
	return provider.Refused, nil
}

type world struct {
	*server.Server
	dir  string
	http *http.Client
	root string
}

func configOf(dir string) server.Config {
	return server.Config{Listen: "127.0.0.1:0", DataDir: dir, Log: server.LogConfig{Level: "error", Format: "text"}}
}

// startServer starts a server on a folder; it is stopped when the test ends.
func startServer(tb testing.TB, config server.Config) *world {
	tb.Helper()
	return startServerWith(tb, config, map[string]provider.Driver{"memory": &memory{accepted: map[string]bool{}}})
}

// startServerWith does so with given systems.
func startServerWith(tb testing.TB, config server.Config, drivers map[string]provider.Driver) *world {
	tb.Helper()
	return startServerAs(tb, config, server.Options{LogTo: tb.Output(), Drivers: drivers})
}

func startServerAs(tb testing.TB, config server.Config, options server.Options) *world {
	tb.Helper()
	s, err := server.Start(tb.Context(), config, options)
	if err != nil {
		tb.Fatal(err)
	}
	w := &world{Server: s, dir: config.DataDir}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			tb.Errorf("stop: %v", err)
		}
	})
	pem, err := os.ReadFile(s.CAFile())
	if err != nil {
		tb.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true}
	w.http = &http.Client{Transport: transport}
	tb.Cleanup(transport.CloseIdleConnections)
	token, err := os.ReadFile(filepath.Join(config.DataDir, "root.token"))
	if err != nil {
		tb.Fatal(err)
	}
	w.root = strings.TrimSpace(string(token))
	return w
}

// caller sends a bearer token with every call.
type caller struct {
	*world
	token string
}

func (c *caller) Do(r *http.Request) (*http.Response, error) {
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	return c.http.Do(r)
}

func (w *world) control(token string) keyturnv1connect.ControlServiceClient {
	return keyturnv1connect.NewControlServiceClient(&caller{w, token}, w.Address())
}

func (w *world) delivery(token string) keyturnv1connect.DeliveryServiceClient {
	return keyturnv1connect.NewDeliveryServiceClient(&caller{w, token}, w.Address())
}

func (w *world) gateway(token string) keyturnv1connect.GatewayServiceClient {
	return keyturnv1connect.NewGatewayServiceClient(&caller{w, token}, w.Address())
}

// token makes a token of a role for keys.
func (w *world) token(tb testing.TB, name, role string, keys ...string) string {
	tb.Helper()
	answer, err := w.control(w.root).CreateToken(tb.Context(), &keyturnv1.CreateTokenRequest{Name: name, Role: role, Keys: keys})
	if err != nil {
		tb.Fatal(err)
	}
	return answer.GetToken()
}

const documents = `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: quick}
spec:
  stages: [{name: all, bake: 0s, ackTimeout: 1s, onEmpty: skip}]
  drain: {min: 0s, quiet: 0s, max: 1m}
  quarantine: 1h
  approvals: {required: 1, when: 'key.labels.tier == "0"'}
---
apiVersion: keyturn/v1
kind: Policy
metadata: {name: dev-only}
spec:
  stages: [{name: all, bake: 0s, ackTimeout: 1s, onEmpty: skip}]
---
apiVersion: keyturn/v1
kind: Key
metadata: {name: prod/db, labels: {tier: "0"}}
spec: {provider: memory, policy: quick, config: {secretname: prodname}}
---
apiVersion: keyturn/v1
kind: Key
metadata: {name: dev/db}
spec: {provider: memory, policy: dev-only}
`

func (w *world) apply(tb testing.TB, token, source string) *keyturnv1.ApplyResponse {
	tb.Helper()
	answer, err := w.control(token).Apply(tb.Context(), &keyturnv1.ApplyRequest{Documents: []*keyturnv1.Document{{Name: "test.yaml", Content: []byte(source)}}})
	if err != nil {
		tb.Fatal(err)
	}
	return answer
}

func (w *world) mustApply(tb testing.TB) {
	tb.Helper()
	for _, p := range w.apply(tb, w.root, documents).GetProblems() {
		if p.GetSeverity() == "error" {
			tb.Fatalf("%v", p)
		}
	}
}

// watched opens a stream and returns it after its first answer.
func (w *world) watched(tb testing.TB, ctx context.Context, token string, request *keyturnv1.WatchRequest) (*connect.ServerStreamForClient[keyturnv1.WatchResponse], error) {
	tb.Helper()
	stream, err := w.delivery(token).Watch(ctx, request)
	if err != nil {
		return nil, err
	}
	tb.Cleanup(func() { _ = stream.Close() })
	if !stream.Receive() {
		return nil, stream.Err()
	}
	return stream, nil
}

func watchOf(id string, keys ...string) *keyturnv1.WatchRequest {
	request := &keyturnv1.WatchRequest{Party: &keyturnv1.Party{Id: id, Kind: keyturnv1.PartyKind_PARTY_KIND_AGENT}}
	for _, name := range keys {
		request.Keys = append(request.Keys, &keyturnv1.Known{Key: name})
	}
	return request
}

func wantCode(tb testing.TB, what string, err error, want connect.Code) {
	tb.Helper()
	got := connect.Code(0)
	if err != nil {
		got = connect.CodeOf(err)
	}
	if got != want {
		tb.Errorf("%s: got %v (%v), want %v", what, got, err, want)
	}
	var wire *connect.Error
	if err != nil && !errors.As(err, &wire) {
		tb.Errorf("%s: %v did not come from the server", what, err)
	}
}
