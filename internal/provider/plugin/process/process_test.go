package process_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/provider/plugin"
	"github.com/keyturn/keyturn/internal/provider/plugin/process"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

const password = "hunter2-hunter2"

// script is an executable shell script.
func script(t *testing.T, body string) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "plugin")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return path
}

// call runs a script with a request that holds a secret.
func call(t *testing.T, within time.Duration, body string, change ...func(*process.Config)) ([]byte, error) {
	t.Helper()
	config := process.Config{Path: script(t, body)}
	for _, c := range change {
		c(&config)
	}
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	return process.New(config).Call(ctx, provider.Env{}, plugin.Request{
		ID: "1", Method: "accept", Body: []byte(`{"password":"` + password + `"}` + "\n"), Scrub: plugin.NewScrubber(secret.NewString(password)),
	})
}

const long = 20 * time.Second

// TestWhatAProgramGets: the request on standard input, the environment of the
// configuration and no more, no secret in argv, a narrow umask, no core dumps.
func TestWhatAProgramGets(t *testing.T) {
	t.Setenv("OF_THE_SERVER", "not for plugins")
	answer, err := call(t, long, `
read -r request
until [ "$(ulimit -Hc)" = 0 ]; do :; done
cat /proc/$$/environ | tr '\0' '\n' | grep -v '^PWD=\|^_=\|^SHLVL=\|^OLDPWD='
echo "args $*"
echo "request $request"
echo "umask $(umask)"
echo "core $(ulimit -c)"
grep NoNewPrivs /proc/$$/status
pwd
`, func(c *process.Config) {
		c.Args, c.Env = []string{"--fast"}, map[string]string{"ADMIN_FILE": "/run/secrets/admin"}
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "ADMIN_FILE=/run/secrets/admin\nargs --fast\nrequest {\"password\":\"" + password + "\"}\numask 0077\ncore 0\nNoNewPrivs:\t1\n/\n"
	if string(answer) != want {
		t.Errorf("got\n%s\nwant\n%s", answer, want)
	}
}

// TestBadPrograms: each ends in a clear error in time, without a secret.
func TestBadPrograms(t *testing.T) {
	for name, test := range map[string]struct {
		body   string
		within time.Duration
		is     error
		says   string
	}{
		"hangs":                {"sleep 600", 300 * time.Millisecond, context.DeadlineExceeded, "was killed"},
		"ignores signals":      {"trap '' TERM INT HUP\nwhile :; do sleep 600; done", 300 * time.Millisecond, context.DeadlineExceeded, "was killed"},
		"answers, then hangs":  {"echo '{\"ok\":true}'\nsleep 600", 300 * time.Millisecond, context.DeadlineExceeded, "was killed"},
		"floods its output":    {"exec cat /dev/zero", long, plugin.ErrAnswer, "more than 1048576 bytes"},
		"floods its errors":    {"head -c 50000000 /dev/zero | tr '\\0' 'x' >&2\nexit 3", long, nil, "exit code 3"},
		"fails after all":      {"echo '{\"ok\":true}'\necho broken >&2\nexit 1", long, nil, "exit code 1; it wrote: broken"},
		"is killed":            {"kill -SEGV $$", long, nil, "signal segmentation fault"},
		"shows the secret":     {"read -r x\necho \"got $x\" >&2\nexit 1", long, nil, "[redacted]"},
		"shows it in base64":   {"base64 >&2\nexit 1", long, nil, "[redacted]"},
		"shows it in hex":      {"od -An -v -tx1 | tr -d ' \\n' >&2\nexit 1", long, nil, "[redacted]"},
		"writes control codes": {"printf '\\033[2Jgone\\n' >&2\nexit 1", long, nil, "gone"},
	} {
		began := time.Now()
		_, err := call(t, test.within, test.body)
		if err == nil || test.is != nil && !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %v, want one that says %q", name, err, test.says)
			continue
		}
		if took := time.Since(began); took > test.within+5*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
		for _, bad := range []string{"hunter2", "aHVudGVy", "68756e", "\x1b"} {
			if strings.Contains(err.Error(), bad) {
				t.Errorf("%s: the error shows %q: %v", name, bad, err)
			}
		}
		if len(err.Error()) > 1000 {
			t.Errorf("%s: the error has %d bytes", name, len(err.Error()))
		}
	}
}

// TestNothingIsLeftBehind: children of a program die with it, also those that hold
// its output, whether it ended or was killed.
func TestNothingIsLeftBehind(t *testing.T) {
	for name, end := range map[string]string{"ended": "exit 0", "killed": "sleep 600"} {
		pids := filepath.Join(t.TempDir(), "pids")
		began := time.Now()
		_, err := call(t, time.Second, fmt.Sprintf("sleep 600 &\necho $! >%s\n(sleep 600) & echo $! >>%s\n%s", pids, pids, end))
		if (name == "killed") != (err != nil) {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
		text, err := os.ReadFile(pids)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				t.Fatal(err)
			}
			gone(t, pid)
		}
	}
}

// gone waits until a process is dead; it may wait for somebody to reap it.
func gone(t *testing.T, pid int) {
	t.Helper()
	eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// eventually polls condition until it holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for !condition() {
		select {
		case <-timeout:
			t.Fatalf("it did not come true: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// TestEscapedChild: a process that leaves the group and holds the output does not
// hold the call.
func TestEscapedChild(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	_, err := call(t, long, "setsid sh -c 'echo $$ >"+pids+"; exec sleep 600' &\nuntil [ -s "+pids+" ]; do :; done\necho '{}'")
	if !errors.Is(err, plugin.ErrAnswer) || !strings.Contains(err.Error(), "left a process behind") {
		t.Errorf("got %v", err)
	}
	text, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

// TestUnreadRequest: a program need not read what it is sent.
func TestUnreadRequest(t *testing.T) {
	if answer, err := call(t, long, "exec <&-\necho '{}'"); err != nil || string(answer) != "{}\n" {
		t.Errorf("got %q, %v", answer, err)
	}
}

// TestUnsafePrograms: what somebody else could have written is not run.
func TestUnsafePrograms(t *testing.T) {
	for name, spoil := range map[string]func(path string) (string, error){
		"absent":          func(path string) (string, error) { return path + "x", nil },
		"not executable":  func(path string) (string, error) { return path, os.Chmod(path, 0o644) },
		"open to others":  func(path string) (string, error) { return path, os.Chmod(path, 0o777) },
		"a folder":        func(path string) (string, error) { return filepath.Dir(path), nil },
		"an open folder":  func(path string) (string, error) { return path, os.Chmod(filepath.Dir(path), 0o777) },
		"of another user": func(path string) (string, error) { return path, os.Chown(path, 12345, -1) },
	} {
		path, err := spoil(script(t, "echo ran"))
		if errors.Is(err, os.ErrPermission) {
			continue // only root can give files away
		}
		if err != nil {
			t.Fatal(err)
		}
		answer, err := process.New(process.Config{Path: path}).Call(t.Context(), provider.Env{}, plugin.Request{Scrub: plugin.NewScrubber()})
		if err == nil || len(answer) > 0 || !strings.Contains(err.Error(), "exec.path") {
			t.Errorf("%s: got %q, %v", name, answer, err)
		}
	}
}

// TestConcurrencyIsBounded: no more processes run than are allowed, and who waits
// keeps his deadline.
func TestConcurrencyIsBounded(t *testing.T) {
	dir := t.TempDir()
	started := filepath.Join(dir, "started")
	transport := process.New(process.Config{Path: script(t, "echo x >>"+started+"\nsleep 600"), Concurrency: 1})
	first, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() {
		_, err := transport.Call(first, provider.Env{}, plugin.Request{Scrub: plugin.NewScrubber()})
		ended <- err
	}()
	eventually(t, "the first runs", func() bool {
		_, err := os.Stat(started)
		return err == nil
	})
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := transport.Call(short, provider.Env{}, plugin.Request{Scrub: plugin.NewScrubber()})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "running already") {
		t.Errorf("the second: %v", err)
	}
	if text, err := os.ReadFile(started); err != nil || string(text) != "x\n" {
		t.Errorf("started %q, %v", text, err)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the first: %v", err)
	}
}

// TestUser: as root a program can run as another user, who gains nothing of root's.
func TestUser(t *testing.T) {
	as := func(user string) func(*process.Config) { return func(c *process.Config) { c.User = user } }
	if _, err := call(t, long, "id -u", as("nobody-of-this-name")); err == nil || !strings.Contains(err.Error(), "exec.user") {
		t.Errorf("an unknown user: %v", err)
	}
	if os.Geteuid() != 0 {
		if _, err := call(t, long, "id -u", as("0:0")); err == nil {
			t.Error("an ordinary user ran a program as root")
		}
		return
	}
	// The folders of tests are closed to others, so the program is one of the system.
	answer, err := process.New(process.Config{Path: "/usr/bin/id", User: "65534:65534"}).Call(t.Context(), provider.Env{}, plugin.Request{Scrub: plugin.NewScrubber()})
	if err != nil || !strings.HasPrefix(string(answer), "uid=65534(") || strings.Contains(string(answer), "root") {
		t.Errorf("got %q, %v", answer, err)
	}
}
