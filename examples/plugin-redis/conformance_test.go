package plugin

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/keyturn/keyturn/internal/provider/plugin"
	"github.com/keyturn/keyturn/internal/provider/plugin/process"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providertest"
)

const name = "prod/orders/redis"

// program is the example, installed where only its owner may write, as exec.path
// wants it.
func program(t *testing.T) string {
	t.Helper()
	source, err := os.ReadFile("redis_acl.py")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "redis_acl.py")
	if err := os.WriteFile(path, source, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func adminFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "admin")
	if err := os.WriteFile(path, []byte(adminPassword+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// targetOf is a fresh server behind a plugin.
func targetOf(t *testing.T, transport plugin.Transport) providertest.Target {
	t.Helper()
	server := startRedis(t)
	return providertest.Target{
		Driver: plugin.New(plugin.Config{Kind: "exec", Plugins: map[string]plugin.Transport{"redis": transport}}),
		Config: provider.Config{
			"plugin":    "redis",
			"endpoints": []any{map[string]any{"name": "eu", "region": "eu", "host": server.address}},
			"methods":   []any{"usage", "preflight", "held", "destroy"},
			"settings":  map[string]any{"prefix": "orders-v"},
		},
		Key: name,
		Use: func(ctx context.Context, _ string, v provider.Version) (providertest.Use, error) {
			c, err := login(ctx, server.address, v.Material.Attributes["username"], v.Material.Secrets["password"].RevealString())
			return use{c}, err
		},
		Silence: func(t *testing.T, _ string) func() {
			if err := server.process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			return func() { _ = server.process.Signal(syscall.SIGCONT) }
		},
		Output: func(t *testing.T) []byte {
			text, err := os.ReadFile(server.log)
			if err != nil {
				t.Fatal(err)
			}
			return text
		},
	}
}

type use struct{ *conn }

func (u use) Alive(context.Context) bool {
	answer, err := u.do("PING")
	return err == nil && answer == "+PONG"
}

// TestConformance runs the suite with the plugin as a program. TestSuiteByTheService
// runs it with the plugin as a service, on two servers.
func TestConformance(t *testing.T) {
	transport := process.New(process.Config{Path: program(t), Env: map[string]string{"REDIS_ADMIN_FILE": adminFile(t)}})
	providertest.Run(t, func(t *testing.T) providertest.Target {
		t.Parallel()
		return targetOf(t, transport)
	})
}
