package run_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/internal/agent/run"
	"github.com/keyturn/keyturn/secret"
)

func TestMain(m *testing.M) {
	if os.Getenv("RUN_TEST_HELPER") == "wait-for-hup" {
		hup := make(chan os.Signal, 1)
		signal.Notify(hup, syscall.SIGHUP)
		fmt.Println("ready")
		<-hup
		fmt.Println("got it")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func sh(script string, timeout time.Duration) run.Command {
	return run.Command{Args: []string{"/bin/sh", "-c", script}, Timeout: timeout}
}

func TestCommand(t *testing.T) {
	redact := run.NewRedactor(secret.NewString("hunter2-secret"))
	if err := sh("exit 0", time.Minute).Run(t.Context(), redact); err != nil {
		t.Error(err)
	}
	err := sh("echo password=hunter2-secret is wrong >&2; exit 3", time.Minute).Run(t.Context(), redact)
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "password=[redacted] is wrong") {
		t.Errorf("got %v", err)
	}
	if err := (run.Command{Args: []string{"/no/such/program"}, Timeout: time.Minute}).Run(t.Context(), redact); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing program: %v", err)
	}
	// A long output neither blocks the command nor is kept.
	if err := sh("head -c 3000000 /dev/zero | tr '\\0' x; exit 1", time.Minute).Run(t.Context(), redact); err == nil || len(err.Error()) > 1000 {
		t.Errorf("long output: an error of %d bytes", len(err.Error()))
	}
	// A daemon that holds the pipe is no failure and no hang.
	begin := time.Now()
	if err := sh("sleep 7 & exit 0", time.Minute).Run(t.Context(), redact); err != nil || time.Since(begin) > 5*time.Second {
		t.Errorf("daemon: %v after %v", err, time.Since(begin))
	}
}

func TestCommandSeesNoToken(t *testing.T) {
	t.Setenv("KEYTURN_TOKEN", "kt_agent")
	t.Setenv("KEYTURN_JOIN_TOKEN", "kt_join")
	c := sh(`test -z "$KEYTURN_TOKEN$KEYTURN_JOIN_TOKEN" && test "$KEYTURN_TARGET" = db`, time.Minute)
	c.Env = []string{"KEYTURN_TARGET=db"}
	if err := c.Run(t.Context(), run.Redactor{}); err != nil {
		t.Error(err)
	}
}

// TestTimeoutKillsTheGroup: the grandchild must not survive.
func TestTimeoutKillsTheGroup(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	err := sh("sleep 600 & echo $! > "+pidFile+"; wait", 300*time.Millisecond).Run(t.Context(), run.Redactor{})
	if !errors.Is(err, run.ErrTimeout) {
		t.Fatalf("got %v", err)
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the grandchild is dead", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

func TestRedactor(t *testing.T) {
	pem := "-----BEGIN X-----\nMIIabcdefgh1234\nzz\n-----END X-----\n"
	r := run.NewRedactor(secret.NewString("p&ss w\"rd"), secret.NewString(pem), secret.Value{})
	for in, want := range map[string]string{
		"nothing here":            "nothing here",
		`a p&ss w"rd b`:           "a [redacted] b",
		`{"p":"p\u0026ss w\"rd"}`: `{"p":"[redacted]"}`,
		"q=p%26ss+w%22rd":         "q=[redacted]",
		"b=cCZzcyB3InJk":          "b=[redacted]",
		"MIIabcdefgh1234 alone":   "[redacted] alone",
		"two\nlines\x1b[1m\x00":   "two lines[1m",
	} {
		if got := r.Text([]byte(in), 1000); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	if got := run.NewRedactor(secret.NewString("abc")).Text([]byte("abcdef"), 100); strings.Contains(got, "abc") {
		t.Errorf("short secret: %q", got)
	}
}

// TestRedactionBeforeCutting: a secret that the limit cuts leaves no beginning behind.
func TestRedactionBeforeCutting(t *testing.T) {
	const password = "correct-horse-battery"
	for pad := run.MaxOutput - 30; pad < run.MaxOutput+5; pad++ {
		script := fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; printf %s; exit 1", pad, password)
		err := sh(script, time.Minute).Run(t.Context(), run.NewRedactor(secret.NewString(password)))
		if err == nil || strings.Contains(err.Error(), "corr") {
			t.Fatalf("padding %d: %v", pad, err)
		}
	}
}

func TestSignal(t *testing.T) {
	dir := t.TempDir()
	pidFile := filepath.Join(dir, "app.pid")
	start := func() (*exec.Cmd, *bufio.Reader) {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "RUN_TEST_HELPER=wait-for-hup")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(out)
		if line, err := r.ReadString('\n'); err != nil || line != "ready\n" {
			t.Fatalf("helper: %q, %v", line, err)
		}
		return cmd, r
	}
	wait := func(cmd *exec.Cmd, r *bufio.Reader) {
		t.Helper()
		if line, err := r.ReadString('\n'); err != nil || line != "got it\n" {
			t.Errorf("helper: %q, %v", line, err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	hup, err := run.ParseSignal("hup")
	if err != nil || hup != unix.SIGHUP {
		t.Fatal(hup, err)
	}
	byFile := run.Signal{Number: hup, PIDFile: pidFile}
	if err := byFile.Send(t.Context()); !errors.Is(err, run.ErrNotRunning) {
		t.Errorf("no pid file: %v", err)
	}

	cmd, r := start()
	if err := os.WriteFile(pidFile, fmt.Appendf(nil, "%d\n", cmd.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	// The number belongs to a stranger: the pid file is an hour older than the process.
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(pidFile, old, old); err != nil {
		t.Fatal(err)
	}
	if err := byFile.Send(t.Context()); !errors.Is(err, run.ErrNotRunning) {
		t.Errorf("stale pid file: %v", err)
	}
	now := time.Now()
	if err := os.Chtimes(pidFile, now, now); err != nil {
		t.Fatal(err)
	}
	if err := byFile.Send(t.Context()); err != nil {
		t.Error(err)
	}
	wait(cmd, r)
	if err := byFile.Send(t.Context()); !errors.Is(err, run.ErrNotRunning) {
		t.Errorf("ended process: %v", err)
	}

	for _, text := range []string{"", "x", "-1", "0", "1"} {
		if err := os.WriteFile(pidFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := byFile.Send(t.Context()); err == nil || errors.Is(err, run.ErrNotRunning) {
			t.Errorf("pid file %q: %v", text, err)
		}
	}

	// By name: a copy of ourselves under a name of its own.
	cmd, r = start()
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pidFile, fmt.Appendf(nil, "%d", cmd.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	byName := run.Signal{Number: hup, Process: "no-such-process-name"}
	if err := byName.Send(t.Context()); !errors.Is(err, run.ErrNotRunning) {
		t.Errorf("unknown name: %v", err)
	}
	// The helper is our child and has our name, so that the topmost process of
	// that name is another one; ourselves are left out of the search.
	byName.Process = strings.TrimSpace(string(name))
	if err := byName.Send(t.Context()); err != nil {
		t.Error(err)
	}
	wait(cmd, r)
	if _, err := run.ParseSignal("NOPE"); err == nil {
		t.Error("an unknown signal was accepted")
	}
}

func TestHealth(t *testing.T) {
	var calls atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/redirect":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case r.URL.Path == "/third" && calls.Add(1) < 3, r.URL.Path == "/bad":
			http.Error(w, "bad password top-secret", http.StatusInternalServerError)
		case r.URL.Path == "/hang":
			<-r.Context().Done()
		}
	}))
	defer server.Close()
	redact := run.NewRedactor(secret.NewString("top-secret"))
	h := run.Health{Timeout: time.Minute, Interval: time.Millisecond}
	with := func(path string, retries int) run.Health {
		h.HTTP, h.Retries = server.URL+path, retries
		return h
	}
	if err := with("/ok", 0).Check(t.Context(), redact); err != nil {
		t.Error(err)
	}
	if err := with("/redirect", 0).Check(t.Context(), redact); !errors.Is(err, run.ErrUnhealthy) {
		t.Errorf("redirect: %v", err)
	}
	if err := with("/third", 2).Check(t.Context(), redact); err != nil || calls.Load() != 3 {
		t.Errorf("third try: %v after %d", err, calls.Load())
	}
	err := with("/bad", 1).Check(t.Context(), redact)
	if !errors.Is(err, run.ErrUnhealthy) || !strings.Contains(err.Error(), "2 tries") || !strings.Contains(err.Error(), "bad password [redacted]") {
		t.Errorf("bad: %v", err)
	}
	h.Timeout = 50 * time.Millisecond
	if err := with("/hang", 0).Once(t.Context(), redact); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hang: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	h.Interval = time.Hour
	cancel()
	if err := with("/bad", 5).Check(ctx, redact); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp := run.Health{TCP: l.Addr().String(), Timeout: time.Minute}
	if err := tcp.Once(t.Context(), redact); err != nil {
		t.Error(err)
	}
	l.Close()
	if err := tcp.Once(t.Context(), redact); !errors.Is(err, run.ErrUnhealthy) {
		t.Errorf("closed port: %v", err)
	}
	if err := (run.Health{Command: []string{"/bin/false"}, Timeout: time.Minute}).Once(t.Context(), redact); !errors.Is(err, run.ErrUnhealthy) {
		t.Errorf("command: %v", err)
	}
}

// eventually polls a condition of a real system, for at most 10 s.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("waited 10 s until %s", what)
		case <-tick.C:
		}
	}
}
