package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keyturn/keyturn/internal/provider/postgres"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
	"github.com/keyturn/keyturn/test/pgtest"
)

// TestAdministratorIsAKey rotates the administrator itself, as a key whose
// versions alternate between two rotator roles, and a key that depends on it.
// The administrator's key logs in with its own current version.
func TestAdministratorIsAKey(t *testing.T) {
	t.Parallel()
	p := sharedPair(t)
	root := newTarget(t, p, "alternating-users")
	bootstrap := root.config["adminPassword"].(map[string]any)["file"].(string)
	root.users = []string{root.rotator + "_a", root.rotator + "_b"}
	root.group = root.rotator + "_owner"
	root.config["users"] = []any{root.users[0], root.users[1]}
	root.config["adminPassword"] = map[string]any{"key": string(root.name), "file": bootstrap}

	var current atomic.Pointer[provider.Material]
	var asked atomic.Int64
	env := provider.Env{Resolve: func(_ context.Context, name key.Name) (provider.Material, error) {
		asked.Add(1)
		if name != root.name {
			return provider.Material{}, fmt.Errorf("asked for %q", name)
		}
		if m := current.Load(); m != nil {
			return *m, nil
		}
		return provider.Material{}, fmt.Errorf("key %s: %w", name, provider.ErrNoVersion)
	}}
	root.env = env
	admin := root.open()
	first := admin.mint()
	admin.accept(first) // by the bootstrap password: the key has no version yet
	// The group gets the administrator's rights once; its members become it.
	pgtest.Exec(t, p.primary, database, "ALTER ROLE "+quote(root.group)+" CREATEROLE", "GRANT pg_signal_backend, pg_read_all_stats TO "+quote(root.group))
	current.Store(&first.Material)
	// The bootstrap role has done its duty.
	pgtest.Exec(t, p.primary, database, "ALTER ROLE "+root.rotator+" NOLOGIN PASSWORD NULL")

	dependent := newTarget(t, p, "alternating-users")
	dependent.config["adminPassword"] = map[string]any{"key": string(root.name)}
	dependent.env = env
	app := dependent.open()
	live := []provider.Version{first}
	pgtest.Eventually(t, "the group's rights are on the standby", func() bool {
		_, err := admin.preflight(live...)
		return err == nil
	})
	for range 3 {
		next := admin.mint(live...)
		admin.accept(next)
		appVersion := app.mint()
		app.accept(appVersion)
		current.Store(&next.Material)
		admin.refuse(live[0])
		live = []provider.Version{next}
		app.refuse(appVersion)
		for _, endpoint := range app.endpoints() {
			app.wantVerdict(appVersion, endpoint, provider.Refused)
		}
		if u, err := admin.usage(next); err != nil || u.Sessions != 0 {
			t.Errorf("the administrator's own connections stay: %+v, %v", u, err)
		}
	}
	if asked.Load() == 0 {
		t.Error("the key was never asked for")
	}
}

// TestAdministratorPasswordIsReadAgain changes the password file between calls,
// and the key's answer between the two tries of one call.
func TestAdministratorPasswordIsReadAgain(t *testing.T) {
	t.Parallel()
	tg := newTarget(t, sharedPair(t), "alternating-users")
	file := tg.config["adminPassword"].(map[string]any)["file"].(string)
	s := tg.open()
	v := s.mint()
	s.accept(v)
	pgtest.Exec(t, s.primary, database, "ALTER ROLE "+s.rotator+" PASSWORD 'another'")
	if err := s.Accept(t.Context(), s.call(), primaryEndpoint, v); err == nil || !strings.Contains(err.Error(), "adminPassword") {
		t.Errorf("with a wrong password: %v", err)
	}
	if err := os.WriteFile(file, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Accept(t.Context(), s.call(), primaryEndpoint, v); err != nil {
		t.Errorf("after the file was mended: %v", err)
	}

	var asked atomic.Int64
	tg.config["adminPassword"] = map[string]any{"key": "prod/rotator"}
	tg.env.Resolve = func(context.Context, key.Name) (provider.Material, error) {
		password := "another"
		if asked.Add(1) == 1 {
			password = "stale"
		}
		return provider.Material{Secrets: map[string]secret.Value{"password": secret.NewString(password)}}, nil
	}
	s = tg.open()
	s.fence, s.next = 100, 1
	if err := s.Accept(t.Context(), s.call(), primaryEndpoint, v); err != nil || asked.Load() != 2 {
		t.Errorf("with a stale answer first: %v after %d questions", err, asked.Load())
	}
}

// TestAdministratorSources covers what goes wrong before any connection.
func TestAdministratorSources(t *testing.T) {
	config := func(source map[string]any) provider.Config {
		return provider.Config{"admin": "postgres://rotator@127.0.0.1:1/x", "adminPassword": source, "user": "app"}
	}
	t.Setenv("KEYTURN_TEST_EMPTY", "")
	for _, test := range []struct {
		name   string
		source map[string]any
		env    provider.Env
		says   string
	}{
		{"no file", map[string]any{"file": "/no/such/file"}, provider.Env{}, "/no/such/file"},
		{"empty variable", map[string]any{"env": "KEYTURN_TEST_EMPTY"}, provider.Env{}, "KEYTURN_TEST_EMPTY is empty"},
		{"no resolver", map[string]any{"key": "k"}, provider.Env{}, "lends none"},
		{"no version and no fall-back", map[string]any{"key": "k"}, provider.Env{Resolve: func(context.Context, key.Name) (provider.Material, error) {
			return provider.Material{}, provider.ErrNoVersion
		}}, "has no current version"},
		{"an outage is no reason to fall back", map[string]any{"key": "k", "env": "HOME"}, provider.Env{Resolve: func(context.Context, key.Name) (provider.Material, error) {
			return provider.Material{}, errors.New("store is down")
		}}, "store is down"},
		{"key without password", map[string]any{"key": "k"}, provider.Env{Resolve: func(context.Context, key.Name) (provider.Material, error) {
			return provider.Material{}, nil
		}}, `no field "password"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			system, err := postgres.New().Open(t.Context(), config(test.source), test.env)
			if err != nil {
				t.Fatal(err)
			}
			_, err = system.(provider.Preflighter).Preflight(t.Context(), provider.Call{Key: "k2"}, nil)
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %q", err, test.says)
			}
		})
	}
}

// TestKeysMayShareAGroup lets two keys, whose administrators sit in different
// databases and so do not see each other's locks, create one group at once.
func TestKeysMayShareAGroup(t *testing.T) {
	t.Parallel()
	p := sharedPair(t)
	group := fmt.Sprintf("shared group %d", targets.Add(1))
	var systems []*opened
	for _, admin := range []string{database, "postgres", database, "postgres"} {
		tg := newTarget(t, p, "alternating-users")
		tg.config["admin"] = strings.Replace(tg.config["admin"].(string), "/"+database+"?", "/"+admin+"?", 1)
		tg.config["database"] = database
		tg.config["group"], tg.group = group, group
		systems = append(systems, tg.open())
	}
	var wg sync.WaitGroup
	for _, s := range systems {
		v, call := s.mint(), s.call()
		wg.Go(func() {
			if err := s.Accept(t.Context(), call, primaryEndpoint, v); err != nil {
				t.Errorf("%s: %v", s.name, err)
			}
		})
	}
	wg.Wait()
	if got := systems[0].scan("SELECT count(*)::text FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid WHERE g.rolname = " + literal(group)); got != "4" {
		t.Errorf("the group has %s members, want 4", got)
	}
}
