package server_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/internal/store/sqlite"
)

func get(t *testing.T, w *world, path, token string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.Address()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := w.http.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

func TestWhatNeedsNoToken(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	for path, want := range map[string]int{
		"/healthz": 200, "/readyz": 200, "/metrics": 401, "/": 404, "/keyturn.v1.ControlService/ListKeys": 401, "/debug/pprof/": 404,
	} {
		if got, text := get(t, w, path, ""); got != want {
			t.Errorf("%s: status %d: %s", path, got, text)
		}
	}
	if got, _ := get(t, w, "/metrics", w.token(t, "v", "viewer", "dev/**")); got != http.StatusForbidden {
		t.Errorf("metrics for a viewer of some keys: %d", got)
	}
	if got, text := get(t, w, "/metrics", w.token(t, "p", "viewer", "**")); got != http.StatusOK || !strings.Contains(text, "keyturn_") {
		t.Errorf("metrics: %d %s", got, text)
	}
}

func TestNotReadyWhenTheStoreIsClosed(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	if err := server.CloseStore(w.Server); err != nil {
		t.Fatal(err)
	}
	if got, text := get(t, w, "/readyz", ""); got != http.StatusServiceUnavailable || strings.Contains(text, w.dir) {
		t.Errorf("status %d: %s", got, text)
	}
	if got, _ := get(t, w, "/healthz", ""); got != http.StatusOK {
		t.Errorf("healthz: %d", got)
	}
}

func TestTLSVersion(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	for version, want := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		config := w.http.Transport.(*http.Transport).TLSClientConfig.Clone()
		config.MinVersion, config.MaxVersion = version, version
		conn, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", strings.TrimPrefix(w.Address(), "https://"))
		if (err == nil) != want {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			_ = conn.Close()
		}
	}
}

func TestBodyTooLarge(t *testing.T) {
	config := configOf(t.TempDir())
	config.Limits.Body = 4096
	w := startServer(t, config)
	_, err := w.control(w.root).Apply(t.Context(), &keyturnv1.ApplyRequest{Documents: []*keyturnv1.Document{{Name: "x", Content: bytes.Repeat([]byte{'#'}, 5000)}}})
	wantCode(t, "5,000 bytes", err, connect.CodeResourceExhausted)
}

// A client that sends its headers a byte at a time is turned away.
func TestSlowHeadersAreCutOff(t *testing.T) {
	t.Parallel()
	w := startServer(t, configOf(t.TempDir()))
	config := w.http.Transport.(*http.Transport).TLSClientConfig.Clone()
	config.NextProtos = []string{"http/1.1"}
	conn, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", strings.TrimPrefix(w.Address(), "https://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	began := time.Now()
	if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(began.Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection was kept for %v: %s", time.Since(began), text)
	}
}

// An address that shows bad tokens is bounded, and its neighbours with good
// tokens are served all the same.
func TestFloodOfBadTokens(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	ctx := t.Context()
	good := w.control(w.token(t, "good", "viewer", "**"))
	if _, err := good.ListKeys(ctx, &keyturnv1.ListKeysRequest{}); err != nil {
		t.Fatal(err)
	}
	codes := map[connect.Code]int{}
	for range 200 {
		_, err := w.control("kt_bad").ListKeys(ctx, &keyturnv1.ListKeysRequest{})
		codes[connect.CodeOf(err)]++
	}
	if codes[connect.CodeUnauthenticated] > 60 || codes[connect.CodeResourceExhausted] < 140 {
		t.Errorf("answers: %v", codes)
	}
	_, err := w.control("kt_bad").ListKeys(ctx, &keyturnv1.ListKeysRequest{})
	var wire *connect.Error
	if !errors.As(err, &wire) || wire.Meta().Get("Retry-After") == "" {
		t.Errorf("it does not say when to come back: %v", err)
	}
	_, err = w.delivery("").Join(ctx, &keyturnv1.JoinRequest{JoinToken: "kt_bad"})
	wantCode(t, "joining from there", err, connect.CodeResourceExhausted)
	if _, err := good.ListKeys(ctx, &keyturnv1.ListKeysRequest{}); err != nil {
		t.Errorf("the neighbour: %v", err)
	}
}

func TestFloodOfBadJoinTokens(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	codes := map[connect.Code]int{}
	for range 100 {
		_, err := w.delivery("").Join(t.Context(), &keyturnv1.JoinRequest{JoinToken: "kt_bad"})
		codes[connect.CodeOf(err)]++
	}
	if codes[connect.CodeUnauthenticated] > 60 || codes[connect.CodeResourceExhausted] < 40 {
		t.Errorf("answers: %v", codes)
	}
}

func TestRateOfAToken(t *testing.T) {
	config := configOf(t.TempDir())
	config.Limits.PerSecond, config.Limits.Burst = 0.001, 5
	w := startServer(t, config)
	codes := map[connect.Code]int{}
	for range 10 {
		_, err := w.control(w.root).ListKeys(t.Context(), &keyturnv1.ListKeysRequest{})
		code := connect.Code(0)
		if err != nil {
			code = connect.CodeOf(err)
		}
		codes[code]++
	}
	if codes[0] != 5 || codes[connect.CodeResourceExhausted] != 5 {
		t.Errorf("answers: %v", codes)
	}
}

func TestStopWithOpenStreams(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	ctx := t.Context()
	answer, err := w.control(w.root).Rotate(ctx, &keyturnv1.RotateRequest{Name: "prod/db"}) // it waits for an approval
	if err != nil {
		t.Fatal(err)
	}
	var watches []*connect.ServerStreamForClient[keyturnv1.WatchResponse]
	for i := range 100 {
		stream, err := w.watched(t, ctx, w.root, watchOf(fmt.Sprint("web", i), "dev/db"))
		if err != nil {
			t.Fatal(err)
		}
		watches = append(watches, stream)
	}
	rotation, err := w.control(w.root).WatchRotation(ctx, &keyturnv1.WatchRotationRequest{Id: answer.GetRotationId()})
	if err != nil || !rotation.Receive() {
		t.Fatalf("%v %v", err, rotation.Err())
	}
	polled := make(chan error, 1)
	go func() {
		watch := watchOf("poller", "dev/db")
		_, err := w.delivery(w.root).Poll(ctx, &keyturnv1.PollRequest{Party: watch.GetParty(), Keys: watch.GetKeys()})
		polled <- err
	}()
	<-polled
	began := time.Now()
	stopping, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := w.Stop(stopping); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	for _, stream := range watches {
		var last *keyturnv1.WatchResponse
		for stream.Receive() {
			last = stream.Msg()
		}
		// A stop in good order is no error: the last answer says when to come back.
		if after := last.GetComeBack().AsDuration(); stream.Err() != nil || after < 100*time.Millisecond || after > time.Minute {
			t.Errorf("a stream ended with %v, and asked to come back within %v", stream.Err(), after)
		}
	}
	for rotation.Receive() {
	}
	wantCode(t, "the watch of a rotation", rotation.Err(), connect.CodeUnavailable)
	if err := w.Stop(stopping); err != nil {
		t.Errorf("again: %v", err)
	}
}

// refuse wants Start to fail and to say something.
func refuse(t *testing.T, config server.Config, says string) error {
	t.Helper()
	s, err := server.Start(t.Context(), config, server.Options{LogTo: io.Discard})
	if err == nil {
		_ = s.Stop(t.Context())
	}
	if err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v, want %q", err, says)
	}
	return err
}

func TestStartRefuses(t *testing.T) {
	// used is a folder in which a server has run.
	used := func(t *testing.T) string {
		t.Helper()
		dir := t.TempDir()
		w := startServer(t, configOf(dir))
		if err := w.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	t.Run("a folder that others may write to", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		_ = refuse(t, configOf(dir), "chmod 700")
	})
	for _, name := range []string{"kek.json", "audit.key", "ca.key", "keyturn.db"} {
		t.Run(name+" that others may read", func(t *testing.T) {
			dir := used(t)
			if err := os.Chmod(filepath.Join(dir, name), 0o644); err != nil {
				t.Fatal(err)
			}
			_ = refuse(t, configOf(dir), name)
		})
	}
	for _, name := range []string{"kek.json", "audit.key"} {
		t.Run("a database without "+name, func(t *testing.T) {
			dir := used(t)
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			_ = refuse(t, configOf(dir), name)
			if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
				t.Error("another one was made")
			}
		})
	}
	t.Run("another name of the log", func(t *testing.T) {
		config := configOf(used(t))
		config.LogName = "other"
		_ = refuse(t, config, "logName")
	})
	t.Run("an address in use", func(t *testing.T) {
		listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = listener.Close() }()
		config := configOf(t.TempDir())
		config.Listen = listener.Addr().String()
		_ = refuse(t, config, "listen")
		config.Listen = "127.0.0.1:0"
		startServer(t, config) // nothing was left behind
	})
	t.Run("a folder in use", func(t *testing.T) {
		dir := t.TempDir()
		startServer(t, configOf(dir))
		if err := refuse(t, configOf(dir), "in use"); !errors.Is(err, sqlite.ErrLocked) {
			t.Error(err)
		}
	})
	t.Run("a certificate that is not there", func(t *testing.T) {
		config := configOf(t.TempDir())
		config.TLS = server.TLSConfig{Cert: "/nonexistent.pem", Key: "/nonexistent.key"}
		_ = refuse(t, config, "tls")
	})
}

func TestFilesAreTheOwnersAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	startServer(t, configOf(dir))
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) < 5 {
		t.Fatalf("%v %v", entries, err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		if entry.Name() != "ca.pem" && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", entry.Name(), info.Mode().Perm())
		}
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	w := startServer(t, configOf(dir))
	w.mustApply(t)
	verifier := w.VerifierKey()
	if err := w.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := startServer(t, configOf(dir))
	if again.TokenFile() != "" || again.VerifierKey() != verifier {
		t.Error("it began anew")
	}
	keys, err := again.control(w.root).ListKeys(t.Context(), &keyturnv1.ListKeysRequest{})
	if err != nil || len(keys.GetKeys()) != 2 {
		t.Errorf("%v %v", keys, err)
	}
}

// The operator's certificate is renewed without a restart, and a pair that does
// not fit together, because it is just being replaced, disturbs nobody.
func TestOwnCertificateIsRenewed(t *testing.T) {
	maker := startServer(t, configOf(t.TempDir()))
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "tls.pem"), filepath.Join(dir, "tls.key")
	write := func(path string, content []byte) {
		t.Helper()
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, path := range map[string]string{"ca.pem": cert, "ca.key": key} {
		content, err := os.ReadFile(filepath.Join(maker.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		write(path, content)
	}
	config := configOf(t.TempDir())
	config.TLS = server.TLSConfig{Cert: cert, Key: key}
	s, err := server.Start(t.Context(), config, server.Options{LogTo: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop(context.Background()) })
	presented := func() *x509.Certificate {
		t.Helper()
		dialer := &tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
		conn, err := dialer.DialContext(t.Context(), "tcp", strings.TrimPrefix(s.Address(), "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		return conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	}
	before := presented()
	other := startServer(t, configOf(t.TempDir()))
	newCert, err := os.ReadFile(filepath.Join(other.dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	newKey, err := os.ReadFile(filepath.Join(other.dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	write(cert, newCert)
	if !presented().Equal(before) {
		t.Error("half a pair was presented")
	}
	write(key, newKey)
	if presented().Equal(before) {
		t.Error("the renewed certificate is not presented")
	}
}

func TestJSONOverHTTP(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.Address()+"/keyturn.v1.ControlService/GetKey", bufio.NewReader(strings.NewReader(`{"name":"dev/db"}`)))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+w.root)
	answer, err := w.http.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	var body struct {
		Key struct{ Name, Provider string }
	}
	if err := json.NewDecoder(answer.Body).Decode(&body); err != nil || body.Key.Name != "dev/db" || body.Key.Provider != "memory" {
		t.Errorf("%+v %v", body, err)
	}
}
