package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/test/pgtest"
)

const keyName = "prod/orders/db"

// world is a server, and an operator's way to it over TLS.
type world struct {
	// pid is the process of the server, unless it is this one.
	pid     int
	address string
	caFile  string
	token   string
	roots   *x509.CertPool
	control keyturnv1connect.ControlServiceClient
	// plain is for calls without the operator's token.
	plain *http.Client
	// pause stops the server until resume starts it again at the same address.
	pause, resume func()
	// stop stops it for good, once.
	stop func()
}

func newWorld(b *testing.B, drivers map[string]provider.Driver, documents string) *world {
	b.Helper()
	return newWorldOn(b, server.StoreConfig{}, drivers, documents)
}

// newWorldOn is newWorld with its data elsewhere.
func newWorldOn(b *testing.B, data server.StoreConfig, drivers map[string]provider.Driver, documents string) *world {
	b.Helper()
	w := startServer(b, server.Config{
		Store: data, DataDir: filepath.Join(b.TempDir(), "data"),
		// All agents of a benchmark share one token.
		Limits: server.LimitsConfig{PerSecond: 100_000, Burst: 100_000},
	}, drivers)
	w.apply(b, documents)
	return w
}

// startServer starts a server on a free port.
func startServer(b *testing.B, config server.Config, drivers map[string]provider.Driver) *world {
	b.Helper()
	config.Listen, config.Log.Level = "127.0.0.1:0", "warn"
	options := server.Options{Drivers: drivers, LogTo: io.Discard}
	srv, err := server.Start(b.Context(), config, options)
	if err != nil {
		b.Fatal(err)
	}
	config.Listen = strings.TrimPrefix(srv.Address(), "https://")
	stop := func() {
		// As long as keyturn server gives calls under way.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := srv.Stop(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			b.Errorf("stop the server: %v", err)
		}
	}
	var once sync.Once
	b.Cleanup(func() { once.Do(stop) })
	w := operate(b, srv.Address(), srv.CAFile(), srv.TokenFile())
	w.stop = func() { once.Do(stop) }
	w.pause = stop
	w.resume = func() {
		b.Helper()
		if srv, err = server.Start(b.Context(), config, options); err != nil {
			b.Fatal(err)
		}
	}
	return w
}

// operate is an operator's way to a server.
func operate(b *testing.B, address, caFile, tokenFile string) *world {
	b.Helper()
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		b.Fatal(err)
	}
	w := &world{address: address, caFile: caFile, token: strings.TrimSpace(string(token)), roots: rootsOf(b, caFile)}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots}, ForceAttemptHTTP2: true}
	b.Cleanup(transport.CloseIdleConnections)
	w.plain = &http.Client{Transport: transport}
	w.control = keyturnv1connect.NewControlServiceClient(&http.Client{Transport: bearer{w.token, transport}}, w.address)
	return w
}

func (w *world) apply(b *testing.B, documents string) {
	b.Helper()
	response, err := w.control.Apply(b.Context(), &keyturnv1.ApplyRequest{Documents: []*keyturnv1.Document{{Name: "bench.yaml", Content: []byte(documents)}}})
	if err != nil {
		b.Fatal(err)
	}
	for _, problem := range response.GetProblems() {
		if problem.GetSeverity() == "error" {
			b.Fatal(problem)
		}
	}
}

// postgresStore starts a PostgreSQL for servers to keep their data in. It returns
// what their configuration says of it, and the superuser's URL.
func postgresStore(b *testing.B) (data server.StoreConfig, url string) {
	b.Helper()
	database := pgtest.Start(b, pgserver.Config{Durable: true})
	pgtest.Exec(b, database, "postgres", "CREATE DATABASE keyturn")
	password := filepath.Join(b.TempDir(), "store.password")
	if err := os.WriteFile(password, []byte(database.Password()+"\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	return server.StoreConfig{Postgres: &server.PostgresConfig{URL: database.URL(pgserver.Superuser, "", "keyturn"), PasswordFile: password}}, database.SuperuserURL("keyturn")
}

func rootsOf(b *testing.B, path string) *x509.CertPool {
	b.Helper()
	pem, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		b.Fatalf("%s holds no certificate", path)
	}
	return roots
}

// bearer adds a token to every call.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (t bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+t.token)
	return t.next.RoundTrip(r)
}

// rotated is a rotation as an operator saw it.
type rotated struct {
	rotation *keyturnv1.Rotation
	// took is the time from the command to the news of the end.
	took time.Duration
	// cutOver is when the news came that every presenter had acknowledged.
	cutOver time.Time
}

// rotate rotates the key and waits for the end.
func (w *world) rotate(b *testing.B) rotated {
	b.Helper()
	return w.rotateKey(b, keyName, time.Minute)
}

func (w *world) rotateKey(b *testing.B, name string, within time.Duration) rotated {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), within)
	defer cancel()
	began := time.Now()
	response, err := w.control.Rotate(ctx, &keyturnv1.RotateRequest{Name: name, Reason: "benchmark"})
	if err != nil {
		b.Fatal(err)
	}
	stream, err := w.control.WatchRotation(ctx, &keyturnv1.WatchRotationRequest{Id: response.GetRotationId()})
	if err != nil {
		b.Fatal(err)
	}
	defer stream.Close()
	var seen rotated
	for stream.Receive() {
		seen.rotation = stream.Msg().GetRotation()
		if seen.cutOver.IsZero() && seen.rotation.GetCutOverAt() != nil {
			seen.cutOver = time.Now()
		}
		if seen.rotation.GetEnded() {
			seen.took = time.Since(began)
			if seen.rotation.GetPhase() != "done" {
				b.Fatalf("the rotation ended as %v", seen.rotation)
			}
			return seen
		}
	}
	b.Fatalf("the rotation was lost: %v; it was %v", stream.Err(), seen.rotation)
	return rotated{}
}
