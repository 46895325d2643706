package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	// The program is built from these: a change to them must not leave a cached result.
	_ "github.com/keyturn/keyturn/internal/cli"
	_ "github.com/keyturn/keyturn/internal/demo"
	"github.com/keyturn/keyturn/internal/pgserver"
	_ "github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/test/pgtest"
)

// TestProgram runs the scripts in testdata with the built program, each against
// a server and a PostgreSQL of its own.
func TestProgram(t *testing.T) {
	pgtest.Require(t)
	bin := build(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, "config"))
			return startSystems(t, env, bin)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"ask": ask},
	})
}

// ask METHOD URL STATUS [HEADER=VALUE...] sends a request until it is answered, and
// compares the status; the body goes to answer.txt. A value @FILE is what is in it.
func ask(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: ask METHOD URL STATUS [HEADER=VALUE...]")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var status int
	var body []byte
	ts.Check(poll(ctx, func() bool {
		r, err := http.NewRequestWithContext(ctx, args[0], args[1], http.NoBody)
		ts.Check(err)
		for _, header := range args[3:] {
			name, value, _ := strings.Cut(header, "=")
			if file, ok := strings.CutPrefix(value, "@"); ok {
				value = strings.TrimSpace(ts.ReadFile(file))
			}
			r.Header.Set(name, value)
			if name == "Host" {
				r.Host = value
			}
		}
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			return false // it does not listen yet
		}
		defer response.Body.Close()
		status = response.StatusCode
		body, err = io.ReadAll(io.LimitReader(response.Body, 1<<20))
		return err == nil
	}))
	if fmt.Sprint(status) != args[2] {
		ts.Fatalf("status %d, want %s: %s", status, args[2], body)
	}
	ts.Check(os.WriteFile(ts.MkAbs("answer.txt"), body, 0o600))
}

func build(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	command := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(bin, "keyturn"), "github.com/keyturn/keyturn/cmd/keyturn")
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, output)
	}
	return bin
}

// startSystems starts PostgreSQL and a server, and tells the script by its
// environment how to reach them.
func startSystems(t *testing.T, env *testscript.Env, bin string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	pg, err := pgserver.Start(ctx, pgserver.Config{})
	if err != nil {
		return err
	}
	env.Defer(func() { _ = pg.Close() })
	pgtest.Exec(
		t, pg, "postgres",
		"CREATE ROLE rotator LOGIN CREATEROLE PASSWORD 'rotator-of-the-script'",
		"GRANT pg_signal_backend TO rotator", "GRANT pg_read_all_stats TO rotator", "CREATE DATABASE orders",
	)
	address, err := freeAddress(ctx)
	if err != nil {
		return err
	}
	config := filepath.Join(env.WorkDir, "server.yaml")
	data := filepath.Join(env.WorkDir, "data")
	document := fmt.Sprintf("listen: %s\ndataDir: %s\nlog: {format: text}\n", address, data)
	if err := os.WriteFile(config, []byte(document), 0o600); err != nil {
		return err
	}
	server := exec.Command(filepath.Join(bin, "keyturn"), "server", "--config", config)
	server.Env = append(os.Environ(), "ROTATOR_PASSWORD=rotator-of-the-script")
	logs, err := os.Create(filepath.Join(env.WorkDir, "server.log"))
	if err != nil {
		return err
	}
	server.Stdout, server.Stderr = logs, logs
	if err := server.Start(); err != nil {
		return err
	}
	env.Defer(func() {
		_ = server.Process.Signal(syscall.SIGTERM)
		if err := server.Wait(); err != nil {
			t.Errorf("the server ended badly: %v", err)
		}
		_ = logs.Close()
	})
	if err := awaitFile(ctx, filepath.Join(data, "root.token")); err != nil {
		return err
	}
	env.Setenv("KEYTURN_ADDR", "https://"+address)
	env.Setenv("KEYTURN_TOKEN_FILE", filepath.Join(data, "root.token"))
	env.Setenv("KEYTURN_CACERT", filepath.Join(data, "ca.pem"))
	env.Setenv("PGHOSTPORT", pg.Addr())
	for _, name := range []string{"FREEADDR", "FREEADDR2"} {
		if address, err = freeAddress(ctx); err != nil {
			return err
		}
		env.Setenv(name, address)
	}
	return awaitReady(ctx, filepath.Join(env.WorkDir, "server.log"))
}

func freeAddress(ctx context.Context) (string, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

func awaitFile(ctx context.Context, path string) error {
	return poll(ctx, func() bool {
		_, err := os.Stat(path)
		return err == nil
	})
}

func awaitReady(ctx context.Context, log string) error {
	return poll(ctx, func() bool {
		content, err := os.ReadFile(log)
		return err == nil && strings.Contains(string(content), "msg=ready")
	})
}

// poll waits until condition holds or ctx ends.
func poll(ctx context.Context, condition func() bool) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
	return nil
}
