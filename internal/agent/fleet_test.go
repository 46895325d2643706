package agent_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/agent"
	"github.com/keyturn/keyturn/internal/agent/run"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("AGENT_TEST_APP"); path != "" {
		application(path)
	}
	if path := os.Getenv("AGENT_TEST_VICTIM"); path != "" {
		victim(path)
	}
	os.Exit(m.Run())
}

// application is what an agent serves: it prints its file at the start and at
// every SIGHUP, and ends with its standard input.
func application(path string) {
	hup := make(chan os.Signal, 16)
	signal.Notify(hup, syscall.SIGHUP)
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}()
	for {
		b, err := os.ReadFile(path)
		if err != nil {
			b = []byte("no file")
		}
		fmt.Println(strconv.Quote(string(b)))
		<-hup
	}
}

// startApp starts an application and returns its pid file and what it reads.
func startApp(t *testing.T, path string) (pidFile string, reads <-chan string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "AGENT_TEST_APP="+path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 1000)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if text, err := strconv.Unquote(lines.Text()); err == nil {
				seen <- text
			}
		}
	}()
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	pidFile = filepath.Join(t.TempDir(), "app.pid")
	if err := os.WriteFile(pidFile, fmt.Appendln(nil, cmd.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	return pidFile, seen
}

// next returns what the application read next.
func next(t *testing.T, reads <-chan string) string {
	t.Helper()
	select {
	case s := <-reads:
		return s
	case <-time.After(10 * time.Second):
		t.Fatal("the application was not told within 10 s")
		return ""
	}
}

// fleet is a fake server with one agent.
type fleet struct {
	t     *testing.T
	cfg   agent.Config
	log   *lockedBuffer
	known chan []client.Known
	// calls are handled one after the other, as package client does it.
	calls   chan call
	acks    chan client.Outcome
	reports chan client.Sample
	now     func() time.Time
	restore time.Duration
	offline bool
	stop    func()
}

type call struct {
	batch    []client.Assignment
	outcomes chan<- []client.Outcome
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newFleet(t *testing.T, targets ...agent.Target) *fleet {
	t.Helper()
	f := &fleet{
		t: t, log: &lockedBuffer{}, known: make(chan []client.Known, 10), calls: make(chan call),
		acks: make(chan client.Outcome, 1000), reports: make(chan client.Sample, 10000), now: time.Now, restore: time.Hour,
		cfg: agent.Config{Server: "https://127.0.0.1:1", PartyID: "node-1", StateDir: filepath.Join(t.TempDir(), "state"), Targets: targets},
	}
	t.Cleanup(func() {
		f.halt()
		if t.Failed() {
			t.Log(f.log.String())
		}
		for _, word := range []string{"secret-"} {
			if strings.Contains(f.log.String(), word) {
				t.Errorf("a secret is in the log:\n%s", f.log.String())
			}
		}
	})
	return f
}

// start runs the agent and returns what it says it knows.
func (f *fleet) start() []client.Known {
	f.t.Helper()
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan error, 1)
	go func() {
		done <- agent.Run(ctx, f.cfg, agent.Eager(agent.Deps{
			Logger: slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Delivery: f, Now: f.now,
		}, f.restore))
	}()
	f.stop = func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("Run: %v", err)
		}
	}
	select {
	case k := <-f.known:
		return k
	case err := <-done:
		f.stop = nil
		f.t.Fatalf("Run: %v", err)
	case <-time.After(20 * time.Second):
		f.t.Fatalf("the agent does not watch after 20 s:\n%s", f.log)
	}
	return nil
}

func (f *fleet) halt() {
	if f.stop != nil {
		f.stop()
		f.stop = nil
	}
}

// Watch implements agent.Delivery.
func (f *fleet) Watch(ctx context.Context, known []client.Known, handle client.HandleFunc) error {
	f.known <- known
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case c := <-f.calls:
			c.outcomes <- handle(ctx, c.batch)
		}
	}
}

// Ack implements agent.Delivery.
func (f *fleet) Ack(_ context.Context, outcomes []client.Outcome) error {
	for _, o := range outcomes {
		f.acks <- o
	}
	return nil
}

// Report implements agent.Delivery.
func (f *fleet) Report(_ context.Context, samples []client.Sample) error {
	if f.offline {
		return errors.New("away")
	}
	for _, s := range samples {
		f.reports <- s
	}
	return nil
}

// assign delivers and returns the outcomes by key.
func (f *fleet) assign(batch ...client.Assignment) map[key.Name]client.Outcome {
	f.t.Helper()
	answer := make(chan []client.Outcome, 1)
	f.calls <- call{batch, answer}
	out := make(map[key.Name]client.Outcome)
	for _, o := range <-answer {
		out[o.Key] = o
	}
	return out
}

func (f *fleet) wantApplied(batch ...client.Assignment) {
	f.t.Helper()
	out := f.assign(batch...)
	for _, a := range batch {
		if o := out[a.Key]; o.Code != client.Applied || o.Version != a.Version || o.Epoch != a.Epoch || o.Using != a.Version {
			f.t.Errorf("%s %s: %+v", a.Key, a.Version, o)
		}
	}
}

func (f *fleet) wantFailed(using key.Version, says string, batch ...client.Assignment) {
	f.t.Helper()
	out := f.assign(batch...)
	for _, a := range batch {
		o := out[a.Key]
		if o.Code != client.Failed || o.Epoch != a.Epoch || o.Using != using || !strings.Contains(o.Detail, says) {
			f.t.Errorf("%s %s: %+v, want failed, using %s, %q", a.Key, a.Version, o, using, says)
		}
		if strings.Contains(o.Detail, "secret-") {
			f.t.Errorf("a secret is in the detail: %s", o.Detail)
		}
	}
}

// version makes an assignment whose user and password tell the version.
func version(name key.Name, v key.Version, epoch uint64) client.Assignment {
	return client.Assignment{
		Key: name, Version: v, Epoch: epoch, Rotation: key.RotationID{byte(v)},
		Attributes: map[string]string{"username": fmt.Sprintf("user-%d", v)},
		Secrets:    map[string]secret.Value{"password": secret.NewString(fmt.Sprintf("secret-%s-%d", name, v))},
	}
}

func content(v key.Version) string { return fmt.Sprintf("user-%d secret-db-%d", v, v) }

func dbTarget(dir string) agent.Target {
	return agent.Target{
		Name: "app", Path: filepath.Join(dir, "app.conf"), Mode: 0o600, UID: -1, GID: -1,
		Template: `{{ with key "db" }}{{ .username }} {{ .password }}{{ end }}`,
	}
}

func hup(pidFile string) agent.Reload {
	return agent.Reload{Signal: &run.Signal{Number: syscall.SIGHUP, PIDFile: pidFile}, Timeout: time.Minute}
}

// healthyUnless is a health check that fails when the file contains word.
func healthyUnless(path, word string) *agent.Health {
	return &agent.Health{
		Health:      run.Health{Command: []string{"/bin/sh", "-c", "! grep " + word + " " + path}, Timeout: time.Minute, Interval: time.Millisecond, Retries: 1},
		SampleEvery: time.Hour, SampleFor: time.Hour, SampleThen: time.Hour,
	}
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != want {
		t.Errorf("%s: %q, %v, want %q", path, b, err, want)
	}
}

// pemOf saves the certificate of a TLS server on loopback.
func pemOf(t *testing.T, address string) string {
	t.Helper()
	dialer := tls.Dialer{NetDialer: &net.Dialer{}, Config: &tls.Config{InsecureSkipVerify: true}} // the certificate is what we want to learn
	conn, err := dialer.DialContext(t.Context(), "tcp", strings.TrimPrefix(address, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cert := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
