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
	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/provider"
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
	options          server.Options
	primary, standby *pgserver.Server
	// tap is the server's PostgreSQL driver; see there.
	tap *tap
	// heard is what the server sends elsewhere.
	heard   *receiver
	server  *server.Server
	control keyturnv1connect.ControlServiceClient
	client  *http.Client
	logs    *logBuffer
	roots   *x509.CertPool
	token   string
	// addresses are those of the servers that parties know; that of the one server if empty.
	addresses string
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

// tail returns the last n bytes.
func (l *logBuffer) tail(n int) string {
	s := l.String()
	return s[max(0, len(s)-n):]
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// quickPolicy waits for nothing but what has to happen. Tests vary it by
// replacing words.
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

// vary replaces words of quickPolicy, given as pairs of old and new.
func vary(t *testing.T, pairs ...string) string {
	t.Helper()
	policy := quickPolicy
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(policy, pairs[i]) {
			t.Fatalf("quickPolicy does not say %q", pairs[i])
		}
		policy = strings.ReplaceAll(policy, pairs[i], pairs[i+1])
	}
	return policy
}

// newWorld starts everything and applies the policy and a key.
func newWorld(t *testing.T, policy string) *world {
	t.Helper()
	w := newSystems(t)
	w.run(t, policy)
	return w
}

// run starts a server that is configured, and applies the policy and a key.
func (w *world) run(t *testing.T, policy string) {
	t.Helper()
	w.start(t)
	t.Cleanup(func() { w.stop(t) })
	w.apply(t, policy+"---\n"+w.keyDocument(w.primary.Addr()))
}

// newSystems starts PostgreSQL and configures a server that is not started.
func newSystems(t *testing.T) *world {
	t.Helper()
	w := &world{dir: t.TempDir(), logs: &logBuffer{}, tap: newTap()}
	w.primary, w.standby = pgtest.StartPair(t, pgserver.Config{LogStatements: true, Region: "eu"}, "us")
	pgtest.Exec(
		t, w.primary, "postgres",
		"CREATE ROLE rotator LOGIN CREATEROLE PASSWORD 'rotator-password-of-the-test'",
		"GRANT pg_signal_backend TO rotator", "GRANT pg_read_all_stats TO rotator",
		"CREATE DATABASE "+database,
	)
	if err := os.WriteFile(w.passwordFile(), []byte("rotator-password-of-the-test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.config = server.Config{
		Listen: "127.0.0.1:0", DataDir: filepath.Join(w.dir, "data"), Log: server.LogConfig{Format: "text", Level: "debug"},
		Limits: server.LimitsConfig{PerSecond: 5000, Burst: 20_000},
	}
	w.heard, w.config.Telemetry = newReceiver(t)
	w.options = server.Options{LogTo: w.logs, Drivers: map[string]provider.Driver{"postgres": w.tap}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the server's log:\n%s", w.logs.tail(6000))
		}
	})
	return w
}

func (w *world) passwordFile() string { return filepath.Join(w.dir, "rotator.password") }

// keyDocument is the key, whose primary is administered at the given address.
func (w *world) keyDocument(admin string) string {
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
    replicaWait: 3s
    replicas: [{host: "%s", region: us}]
`, keyName, admin, database, w.passwordFile(), w.standby.Addr())
}

// start starts the server, at the address it had before if there is one.
func (w *world) start(t *testing.T) {
	t.Helper()
	var err error
	if w.server, err = server.Start(t.Context(), w.config, w.options); err != nil {
		t.Fatal(err)
	}
	w.reach(t, w.server.Address())
}

// reach makes the clients of a server that is ready.
func (w *world) reach(t *testing.T, address string) {
	t.Helper()
	w.config.Listen = strings.TrimPrefix(address, "https://")
	token, err := os.ReadFile(filepath.Join(w.config.DataDir, "root.token"))
	if err != nil {
		t.Fatal(err)
	}
	w.token = strings.TrimSpace(string(token))
	pem, err := os.ReadFile(w.caFile())
	if err != nil {
		t.Fatal(err)
	}
	w.roots = x509.NewCertPool()
	w.roots.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	w.client = &http.Client{Transport: bearer{w.token, transport}}
	w.control = keyturnv1connect.NewControlServiceClient(w.client, w.address())
}

// known is what parties know of the servers.
func (w *world) known() string {
	if w.addresses != "" {
		return w.addresses
	}
	return w.address()
}

func (w *world) address() string { return "https://" + w.config.Listen }

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

// patience is how long anything may take on a busy machine.
const patience = 2 * time.Minute

// wait waits until the rotation satisfies until, or has ended.
func (w *world) wait(t *testing.T, id string, until func(*keyturnv1.Rotation) bool) *keyturnv1.Rotation {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
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

// finish waits for the rotation's end and fails the test unless it ended in phase.
func (w *world) finish(t *testing.T, id, phase string) *keyturnv1.Rotation {
	t.Helper()
	r := w.wait(t, id, nil)
	if r.GetPhase() != phase {
		t.Fatalf("the rotation ended as %s (%s), want %s\n%s", r.GetPhase(), r.GetReason(), phase, w.timeline(t, id))
	}
	return r
}

// first brings in the key's first version.
func (w *world) first(t *testing.T) {
	t.Helper()
	w.finish(t, w.rotate(t, &keyturnv1.RotateRequest{Reason: "first version"}), "done")
}

// held waits until the rotation is on hold for the given reason.
func (w *world) held(t *testing.T, id, reason string) *keyturnv1.Rotation {
	t.Helper()
	r := w.wait(t, id, func(r *keyturnv1.Rotation) bool { return r.GetHold().GetReason() == reason })
	if r.GetEnded() {
		t.Fatalf("the rotation ended as %s (%s) and was not held for %s\n%s", r.GetPhase(), r.GetReason(), reason, w.timeline(t, id))
	}
	return r
}

// reached waits until the rotation is in the given phase.
func (w *world) reached(t *testing.T, id, phase string) *keyturnv1.Rotation {
	t.Helper()
	r := w.wait(t, id, func(r *keyturnv1.Rotation) bool { return r.GetPhase() == phase })
	if r.GetPhase() != phase {
		t.Fatalf("the rotation ended as %s (%s) and never was %s\n%s", r.GetPhase(), r.GetReason(), phase, w.timeline(t, id))
	}
	return r
}

// timeline is what happened in a rotation, a line for each change.
func (w *world) timeline(t *testing.T, id string) string {
	t.Helper()
	response, err := w.control.GetRotation(t.Context(), &keyturnv1.GetRotationRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, entry := range response.GetTimeline() {
		fmt.Fprintf(&b, "%s %s %s\n", entry.GetAt().AsTime().Format("15:04:05.000"), entry.GetEvent(), entry.GetMessage())
	}
	return b.String()
}

// says fails the test unless text contains every one of the words.
func says(t *testing.T, what, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%s does not say %q:\n%s", what, word, text)
		}
	}
}

// waitsFor lists who a rotation waits for, by name.
func waitsFor(r *keyturnv1.Rotation) (names []string, messages string) {
	for _, waiting := range r.GetWaiting() {
		names = append(names, waiting.GetNames()...)
		messages += waiting.GetMessage() + "\n"
	}
	return names, messages
}

// current is the number of the key's current version.
func (w *world) current(t *testing.T) uint64 { return w.key(t).GetCurrent() }

func (w *world) key(t *testing.T) *keyturnv1.Key {
	t.Helper()
	response, err := w.control.GetKey(t.Context(), &keyturnv1.GetKeyRequest{Name: keyName})
	if err != nil {
		t.Fatal(err)
	}
	return response.GetKey()
}

// healthy fails the test unless the doctor finds the histories and the audit log whole.
func (w *world) healthy(t *testing.T) {
	t.Helper()
	response, err := w.control.Doctor(t.Context(), &keyturnv1.DoctorRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, check := range response.GetChecks() {
		if check.GetStatus() == "failed" {
			t.Errorf("doctor: %s: %s", check.GetName(), check.GetMessage())
		}
	}
}

// verified fails the test unless the audit log is whole and signed. It returns its entries.
func (w *world) verified(t *testing.T) (entries []string) {
	t.Helper()
	stream, err := w.control.ExportLog(t.Context(), &keyturnv1.ExportLogRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var bundle []byte
	for stream.Receive() {
		bundle = append(bundle, stream.Msg().GetPiece()...)
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	visit := func(e audit.Entry) error {
		entries = append(entries, fmt.Sprintf("%+v", e))
		return nil
	}
	report, err := audit.VerifyBundle(bytes.NewReader(bundle), audit.Options{Visit: visit})
	if err != nil || report.Entries == 0 {
		t.Errorf("the audit log: %v, %+v", err, report)
	}
	return entries
}

func (w *world) caFile() string { return filepath.Join(w.config.DataDir, "ca.pem") }
