package cli_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/cli"
)

// environ is the environment of commands that reach a fake.
func environ(t *testing.T) (*fake, []string) {
	t.Helper()
	dir := t.TempDir()
	f, address, caCert := startFake(t, dir)
	return f, []string{"KEYTURN_ADDR=" + address, "KEYTURN_CACERT=" + caCert, "KEYTURN_TOKEN=" + adminToken, "HOME=" + dir}
}

// TestInterrupt: a wait that is interrupted ends at once and leaves the rotation alone.
func TestInterrupt(t *testing.T) {
	f, env := environ(t)
	ctx, cancel := context.WithCancel(t.Context())
	// The hold is the last thing that the fake tells before it waits.
	stderr, w := io.Pipe()
	done := make(chan cli.Exit, 1)
	go func() {
		config := hooks()
		config.Args, config.Environ, config.Stdout, config.Stderr = []string{"rotate", "prod/held/db", "--wait"}, env, io.Discard, w
		done <- cli.Main(ctx, config)
		w.Close()
	}()
	var seen strings.Builder
	buffer := make([]byte, 1000)
	for {
		n, err := stderr.Read(buffer)
		seen.Write(buffer[:n])
		if err != nil {
			break
		}
		if strings.Contains(seen.String(), "on hold") {
			cancel()
		}
	}
	cancel()
	if code := <-done; code != cli.ExitInterrupted {
		t.Errorf("exit code %d, want %d\n%s", code, cli.ExitInterrupted, seen.String())
	}
	if !strings.Contains(seen.String(), "interrupted; the rotation goes on") {
		t.Errorf("the user does not learn that the rotation goes on:\n%s", seen.String())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Contains(f.calls, "Steer") || slices.Contains(f.calls, "Rollback") {
		t.Errorf("the rotation was not left alone: %v", f.calls)
	}
}

// TestLostAnswer: when the answer to rotate is lost, one rotation begins.
func TestLostAnswer(t *testing.T) {
	f, env := environ(t)
	f.lose = "Rotate"
	out := runIn(t.Context(), env, "rotate", "prod/orders/db")
	if out.code != cli.ExitOK {
		t.Fatalf("exit code %d: %s", out.code, out.stderr)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.rotations) != 1 || f.lose != "" {
		t.Errorf("%d rotations began, want 1; lost: %q", len(f.rotations), f.lose)
	}
}

// TestRewrittenLog: whoever holds the signing key can write another history; the
// checkpoint kept from the last verification reveals it.
func TestRewrittenLog(t *testing.T) {
	f, env := environ(t)
	if out := runIn(t.Context(), env, "audit", "verify"); out.code != cli.ExitOK {
		t.Fatal(out.stderr)
	}
	f.log.add(t, audit.Entry{At: noon(), Actor: audit.Actor{ID: "a", Kind: "user"}, Action: audit.ActionRead, Outcome: audit.OutcomeOK})
	if out := runIn(t.Context(), env, "audit", "verify"); out.code != cli.ExitOK {
		t.Fatalf("a log that has grown is refused: %s", out.stderr)
	}

	rewritten := &memoryLog{signer: f.log.signer}
	for range 7 {
		rewritten.add(t, audit.Entry{At: noon(), Actor: audit.Actor{ID: "nobody", Kind: "user"}, Action: audit.ActionRead, Outcome: audit.OutcomeOK})
	}
	good := f.log
	f.log = rewritten
	if out := runIn(t.Context(), env, "audit", "verify"); out.code != cli.ExitFailed || !strings.Contains(out.stderr, "the audit log is ") {
		t.Errorf("a rewritten log passed: %d %s%s", out.code, out.stdout, out.stderr)
	}
	shorter := &memoryLog{signer: f.log.signer}
	shorter.add(t, audit.Entry{At: noon(), Actor: audit.Actor{ID: "alice", Kind: "user"}, Action: audit.ActionToken, Target: "tok0", Outcome: audit.OutcomeOK})
	f.log = shorter
	if out := runIn(t.Context(), env, "audit", "verify"); out.code != cli.ExitFailed {
		t.Errorf("a log without its end passed: %s%s", out.stdout, out.stderr)
	}
	f.log = newMemoryLog(t)
	out := runIn(t.Context(), env, "audit", "verify")
	if out.code != cli.ExitFailed || !strings.Contains(out.stderr, "if the server was set up anew") {
		t.Errorf("a log with another key passed, or without a hint: %s%s", out.stdout, out.stderr)
	}
	f.log = good
	if out := runIn(t.Context(), env, "audit", "verify"); out.code != cli.ExitOK {
		t.Errorf("failed verifications were remembered: %s", out.stderr)
	}
}

// TestOldBundle: an older bundle passes and is said to be old, a rewritten one
// of the same length does not pass.
func TestOldBundle(t *testing.T) {
	f, env := environ(t)
	old := filepath.Join(t.TempDir(), "old.bundle")
	if out := runIn(t.Context(), env, "audit", "export", "-o", old); out.code != cli.ExitOK {
		t.Fatal(out.stderr)
	}
	f.log.add(t, audit.Entry{At: noon(), Actor: audit.Actor{ID: "a", Kind: "user"}, Action: audit.ActionRead, Outcome: audit.OutcomeOK})
	if out := runIn(t.Context(), env, "audit", "verify"); out.code != cli.ExitOK {
		t.Fatal(out.stderr)
	}
	out := runIn(t.Context(), env, "audit", "verify", old)
	if out.code != cli.ExitOK || !strings.Contains(out.stderr, "it has 5 of 6 entries") {
		t.Errorf("%d %s%s", out.code, out.stdout, out.stderr)
	}
	rewritten := &memoryLog{signer: f.log.signer}
	for range 6 {
		rewritten.add(t, audit.Entry{At: noon(), Actor: audit.Actor{ID: "nobody", Kind: "user"}, Action: audit.ActionRead, Outcome: audit.OutcomeOK})
	}
	f.log = rewritten
	if out := runIn(t.Context(), env, "audit", "export", "-o", old); out.code != cli.ExitOK {
		t.Fatal(out.stderr)
	}
	if out := runIn(t.Context(), env, "audit", "verify", old); out.code != cli.ExitFailed {
		t.Errorf("a rewritten bundle passed: %s%s", out.stdout, out.stderr)
	}
}

// TestNoSecretInErrors: whatever goes wrong, a token and a secret appear nowhere
// but where they were asked for.
func TestNoSecretInErrors(t *testing.T) {
	f, env := environ(t)
	token := "kt-" + rand.Text()
	env = append(env, "KEYTURN_TOKEN="+token)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = f
	for _, args := range [][]string{
		{"key", "list"},
		{"key", "list", "--output", "json"},
		{"get", "prod/orders/db"},
		{"key", "list", "--address", "127.0.0.1:1"},
		{"key", "list", "--address", "127.0.0.1:1", "--token-file", file},
		{"key", "list", "--ca-cert", file},
		{"apply", "-f", file},
		{"policy", "lint", file},
		{"agent", "--config", file},
		{"audit", "verify", file},
	} {
		out := runIn(t.Context(), env, args...)
		if out.code == cli.ExitOK {
			t.Errorf("%v succeeded", args)
		}
		if strings.Contains(out.stdout+out.stderr, token) {
			t.Errorf("%v tells the token:\n%s%s", args, out.stdout, out.stderr)
		}
	}
}

// TestJSONEverywhere: with --output json every command that prints a result
// prints JSON, and errors are JSON with code and message.
func TestJSONEverywhere(t *testing.T) {
	_, env := environ(t)
	id := oldRotation().GetId()
	for _, args := range [][]string{
		{"version"},
		{"key", "list"},
		{"key", "show", "prod/orders/db"},
		{"key", "versions", "prod/orders/db"},
		{"get", "prod/orders/db"},
		{"get", "prod/orders/db", "--field", "password"},
		{"policy", "plan", "prod/orders/db"},
		{"rotate", "prod/orders/db"},
		{"rotate", "prod/orders/db", "--wait"},
		{"rotate", "prod/bad/canary", "--wait"},
		{"rollback", id[:12]},
		{"rotation", "list"},
		{"rotation", "show", id},
		{"rotation", "pause", id},
		{"rotation", "approve", id},
		{"party", "list"},
		{"party", "remove", "web-1"},
		{"token", "create", "x", "--role", "viewer", "--keys", "**"},
		{"token", "join", "x", "--keys", "**"},
		{"token", "list"},
		{"token", "revoke", "tok1"},
		{"audit", "verify"},
		{"doctor"},
		{"dev"},
		{"key", "show", "none"},
		{"key"},
		{"nonsense"},
		{"rotate", "--nonsense"},
		{"rotate"},
	} {
		out := runIn(t.Context(), env, append(args, "--output", "json")...)
		if out.stdout != "" && !json.Valid([]byte(out.stdout)) {
			t.Errorf("%v: no JSON: %s", args, out.stdout)
		}
		if out.code == cli.ExitOK && (out.stdout == "" || out.stderr != "") {
			t.Errorf("%v: a success without a result, or with %q", args, out.stderr)
		}
		if out.code == cli.ExitOK {
			continue
		}
		var e struct{ Code, Message string }
		if err := json.Unmarshal([]byte(out.stderr), &e); err != nil || e.Code == "" || e.Message == "" {
			t.Errorf("%v: the error is no JSON: %v: %s", args, err, out.stderr)
		}
	}
}

// TestClosedOutput: a result that cannot be written is no success.
func TestClosedOutput(t *testing.T) {
	_, env := environ(t)
	for _, args := range [][]string{{"get", "prod/orders/db"}, {"get", "prod/orders/db", "--field", "password"}, {"key", "list"}, {"version"}, {"audit", "tail"}} {
		config := hooks()
		r, w := io.Pipe()
		r.Close()
		var stderr strings.Builder
		config.Args, config.Environ, config.Stdout, config.Stderr = args, env, w, &stderr
		if code := cli.Main(t.Context(), config); code != cli.ExitFailed {
			t.Errorf("%v: exit code %d: %s", args, code, stderr.String())
		}
	}
}
