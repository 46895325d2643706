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

// program is the example, as exec.path names it.
func program(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("redis_acl.py")
	if err != nil {
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

// keyConfig is the config block of a key on two servers.
func keyConfig(eu, us *redis) map[string]any {
	return map[string]any{
		"plugin": "redis",
		"endpoints": []any{
			map[string]any{"name": "eu", "region": "eu", "host": eu.address},
			map[string]any{"name": "us", "region": "us", "host": us.address},
		},
		"methods":  []any{"usage", "preflight", "held", "destroy"},
		"settings": map[string]any{"prefix": "orders-v"},
	}
}

// targetOf is a fresh pair of servers behind a plugin.
func targetOf(t *testing.T, kind string, transport plugin.Transport) providertest.Target {
	t.Helper()
	servers := map[string]*redis{"eu": startRedis(t), "us": startRedis(t)}
	return providertest.Target{
		Driver: plugin.New(plugin.Config{Kind: kind, Plugins: map[string]plugin.Transport{"redis": transport}}),
		Config: keyConfig(servers["eu"], servers["us"]), Key: name,
		Use: func(ctx context.Context, endpoint string, v provider.Version) (providertest.Use, error) {
			c, err := login(ctx, servers[endpoint].address, v.Material.Attributes["username"], v.Material.Secrets["password"].RevealString())
			return use{c}, err
		},
		Silence: func(t *testing.T, endpoint string) func() {
			process := servers[endpoint].process
			if err := process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			return func() { _ = process.Signal(syscall.SIGCONT) }
		},
		Output: func(t *testing.T) []byte {
			var all []byte
			for _, server := range servers {
				text, err := os.ReadFile(server.log)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, text...)
			}
			return all
		},
	}
}

type use struct{ *conn }

func (u use) Alive(context.Context) bool {
	answer, err := u.do("PING")
	return err == nil && answer == "+PONG"
}

func TestConformance(t *testing.T) {
	providertest.Run(t, func(t *testing.T) providertest.Target {
		return targetOf(t, "exec", process.New(process.Config{Path: program(t), Env: map[string]string{"REDIS_ADMIN_FILE": adminFile(t)}}))
	})
}
