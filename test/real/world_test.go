package real

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
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
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/test/pgtest"
)

// Names used in every test here.
const (
	keyName  = "prod/orders/db"
	database = "orders"
)

// world is a Keyturn server beside a PostgreSQL primary and its hot standby.
type world struct {
	dir              string
	config           server.Config
	primary, standby *pgserver.Server
	server           *server.Server
	control          keyturnv1connect.ControlServiceClient
	logs             *logBuffer
	roots            *x509.CertPool
	token            string
}

// logBuffer keeps what a server logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// policySpec is what the tests vary of the policy.
const quickPolicy = `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: database}
spec:
  stages:
    - {name: canary, match: 'party.labels.cohort == "canary"', bake: 0s, ackTimeout: 5s}
    - {name: first, match: 'party.labels.cohort == "first"', bake: 0s, ackTimeout: 5s, onEmpty: skip}
    - {name: rest, bake: 0s, ackTimeout: 5s}
  drain: {min: 0s, quiet: 0s, max: 1m, every: 100ms}
  quarantine: 0s
  endQuarantineEarly: true
  emergency: {strategy: replace-first, grace: 5s}
`

func newWorld(t *testing.T, policy string) *world {
	t.Helper()
	w := &world{dir: t.TempDir(), logs: &logBuffer{}}
	w.primary, w.standby = pgtest.StartPair(t, pgserver.Config{LogStatements: true, Region: "eu"}, "us")
	pgtest.Exec(
		t, w.primary, "postgres",
		"CREATE ROLE rotator LOGIN CREATEROLE PASSWORD 'rotator-password-of-the-test'",
		"GRANT pg_signal_backend TO rotator", "GRANT pg_read_all_stats TO rotator",
		"CREATE DATABASE "+database,
	)
	password := filepath.Join(w.dir, "rotator.password")
	if err := os.WriteFile(password, []byte("rotator-password-of-the-test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.config = server.Config{
		Listen: "127.0.0.1:0", DataDir: filepath.Join(w.dir, "data"), Log: server.LogConfig{Format: "text", Level: "debug"},
		Limits: server.LimitsConfig{PerSecond: 5000, Burst: 20_000},
	}
	w.start(t)
	t.Cleanup(func() { w.stop(t) })
	w.apply(t, policy+"---\n"+w.keyDocument(password))
	return w
}

func (w *world) keyDocument(passwordFile string) string {
	return fmt.Sprintf(`
apiVersion: keyturn/v1
kind: Key
metadata: {name: %s, owner: team-orders}
spec:
  provider: postgres
  policy: database
  config:
    admin: "postgres://rotator@%s/%s?sslmode=disable"
    adminPassword: {file: %s}
    strategy: alternating-users
    users: [orders_a, orders_b]
    region: eu
    replicas: [{host: "%s", region: us}]
`, keyName, w.primary.Addr(), database, passwordFile, w.standby.Addr())
}

func (w *world) start(t *testing.T) {
	t.Helper()
	var err error
	if w.server, err = server.Start(t.Context(), w.config, server.Options{LogTo: w.logs}); err != nil {
		t.Fatal(err)
	}
	w.config.Listen = strings.TrimPrefix(w.server.Address(), "https://")
	if w.server.TokenFile() != "" {
		token, err := os.ReadFile(w.server.TokenFile())
		if err != nil {
			t.Fatal(err)
		}
		w.token = strings.TrimSpace(string(token))
	}
	pem, err := os.ReadFile(w.server.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	w.roots = x509.NewCertPool()
	w.roots.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	w.control = keyturnv1connect.NewControlServiceClient(&http.Client{Transport: bearer{w.token, transport}}, w.server.Address())
}

func (w *world) stop(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
	defer cancel()
	if err := w.server.Stop(ctx); err != nil {
		t.Errorf("stop the server: %v", err)
	}
}

// bearer adds a token to every call.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

func (w *world) apply(t *testing.T, documents string) {
	t.Helper()
	response, err := w.control.Apply(t.Context(), &keyturnv1.ApplyRequest{
		Documents: []*keyturnv1.Document{{Name: "test.yaml", Content: []byte(documents)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range response.GetProblems() {
		if problem.GetSeverity() == "error" {
			t.Fatalf("%s:%d: %s: %s; %s", problem.GetFile(), problem.GetLine(), problem.GetPath(), problem.GetMessage(), problem.GetHint())
		}
	}
}

func (w *world) rotate(t *testing.T, request *keyturnv1.RotateRequest) string {
	t.Helper()
	request.Name = keyName
	response, err := w.control.Rotate(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	return response.GetRotationId()
}


// wait waits until the rotation satisfies until, or has ended.
func (w *world) wait(t *testing.T, id string, until func(*keyturnv1.Rotation) bool) *keyturnv1.Rotation {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var last *keyturnv1.Rotation
	for ctx.Err() == nil {
		stream, err := w.control.WatchRotation(ctx, &keyturnv1.WatchRotationRequest{Id: id})
		if err != nil {
			t.Fatal(err)
		}
		for stream.Receive() {
			last = stream.Msg().GetRotation()
			if last.GetEnded() || until != nil && until(last) {
				_ = stream.Close() // enough was seen
				return last
			}
		}
		if err := stream.Err(); err != nil && connect.CodeOf(err) != connect.CodeUnavailable && ctx.Err() == nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("rotation %s did not get there: %v", id, last)
	return nil
}
