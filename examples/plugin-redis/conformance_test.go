package plugin

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/keyturn/keyturn/internal/provider/plugin"
	"github.com/keyturn/keyturn/internal/provider/plugin/process"
	"github.com/keyturn/keyturn/key"
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
			"methods":   []any{"usage", "preflight", "held", "fence", "destroy"},
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

// TestFenceOfRedis: once the fence of a key was raised at a server, what was sent
// before comes too late, whether its version is known there, was destroyed, or was
// never heard of; the other server, and other keys with the same prefix, go on.
func TestFenceOfRedis(t *testing.T) {
	eu, us := startRedis(t), startRedis(t)
	transport := process.New(process.Config{Path: program(t), Env: map[string]string{"REDIS_ADMIN_FILE": adminFile(t)}})
	driver := plugin.New(plugin.Config{Kind: "exec", Plugins: map[string]plugin.Transport{"redis": transport}})
	system, err := driver.Open(t.Context(), provider.Config{
		"plugin":    "redis",
		"endpoints": []any{map[string]any{"name": "eu", "host": eu.address}, map[string]any{"name": "us", "host": us.address}},
		"methods":   []any{"fence", "destroy"},
		"settings":  map[string]any{"prefix": "orders-v"},
	}, provider.Env{})
	if err != nil {
		t.Fatal(err)
	}
	call := func(fence uint64) provider.Call { return provider.Call{Key: name, Fence: fence} }
	var versions []provider.Version
	for number := key.Version(1); number <= 3; number++ {
		material, err := system.Mint(t.Context(), call(1), provider.MintRequest{Number: number})
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, provider.Version{Number: number, Material: material})
	}
	held, gone, unknown := versions[0], versions[1], versions[2]
	for _, v := range versions[:2] {
		if err := system.Accept(t.Context(), call(10), "eu", v); err != nil {
			t.Fatal(err)
		}
	}
	if err := system.(provider.Destroyer).Destroy(t.Context(), call(12), gone, nil); err != nil {
		t.Fatal(err)
	}
	if err := system.Accept(t.Context(), call(11), "eu", gone); !provider.IsPermanent(err) {
		t.Errorf("a version that was destroyed is accepted by what was sent before: %v", err)
	}
	if err := system.(provider.Fencer).Fence(t.Context(), call(20), "eu"); err != nil {
		t.Fatal(err)
	}
	for what, v := range map[string]provider.Version{"held": held, "destroyed": gone, "never heard of": unknown} {
		for does, late := range map[string]func(context.Context, provider.Call, string, provider.Version) error{"accept": system.Accept, "refuse": system.Refuse} {
			if err := late(t.Context(), call(19), "eu", v); !provider.IsPermanent(err) {
				t.Errorf("%s of a version that is %s, with a smaller fence: %v", does, what, err)
			}
		}
	}
	if err := system.(provider.Destroyer).Destroy(t.Context(), call(19), held, nil); !provider.IsPermanent(err) {
		t.Errorf("destroy with a smaller fence: %v", err)
	}
	if verdict, err := system.Probe(t.Context(), call(19), "eu", held); verdict != provider.Accepted || err != nil {
		t.Errorf("what was accepted is now %v, %v", verdict, err)
	}
	other := provider.Version{Number: 9, Material: provider.Material{Attributes: map[string]string{"username": "orders-v9"}, Secrets: unknown.Material.Secrets}}
	for of, err := range map[string]error{
		"the same fence":     system.Accept(t.Context(), call(20), "eu", unknown),
		"the other server":   system.Accept(t.Context(), call(19), "us", unknown),
		"another key's call": system.Accept(t.Context(), provider.Call{Key: "prod/billing/redis", Fence: 1}, "eu", other),
	} {
		if err != nil {
			t.Errorf("%s: %v", of, err)
		}
	}
}
