package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/provider/postgres"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
	"github.com/keyturn/keyturn/test/pgtest"
)

// database is where the applications of these tests are.
const database = "app"

// pair is a primary and a hot standby that every statement and login of is logged.
type pair struct{ primary, replica *pgserver.Server }

// shared is the pair that tests use which disturb nobody but themselves. It is
// started by the first one that needs it and closed by TestMain.
var shared = struct {
	sync.Once
	pair
	err error
}{}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.primary != nil {
		if err := shared.primary.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "close PostgreSQL:", err)
			code = 1
		}
	}
	os.Exit(code)
}

func startPair(ctx context.Context) (p pair, err error) {
	if p.primary, err = pgserver.Start(ctx, pgserver.Config{LogStatements: true, Region: "a"}); err != nil {
		return pair{}, err
	}
	if err := p.createDatabase(ctx); err != nil {
		return pair{}, errors.Join(err, p.primary.Close())
	}
	if p.replica, err = p.primary.StartReplica(ctx, "b"); err != nil {
		return pair{}, errors.Join(err, p.primary.Close())
	}
	return p, nil
}

func (p pair) createDatabase(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, p.primary.SuperuserURL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "CREATE DATABASE "+database)
	return err
}

func sharedPair(t *testing.T) pair {
	t.Helper()
	pgtest.Require(t)
	shared.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		shared.pair, shared.err = startPair(ctx)
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.pair
}

// ownPair starts a pair that the test may stop, pause and break.
func ownPair(t *testing.T) pair {
	t.Helper()
	pgtest.Require(t)
	p, err := startPair(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.primary.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// logs returns what both servers logged.
func (p pair) logs(t *testing.T) []byte {
	t.Helper()
	var all []byte
	for _, s := range []*pgserver.Server{p.primary, p.replica} {
		log, err := os.ReadFile(s.LogFile())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, log...)
	}
	return all
}

// targets numbers the targets, so that each has roles of its own.
var targets atomic.Int64

// target is one key on a pair, rotated by an administrator that has exactly the
// rights that docs/reference/provider-postgres.md lists.
type target struct {
	pair
	t             *testing.T
	name          key.Name
	rotator       string
	rotatorSecret string
	users         []string
	group         string
	config        provider.Config
	env           provider.Env
	proxies       map[string]*pgtest.Proxy
}

const (
	primaryEndpoint = "primary"
	userSQL         = `CREATE ROLE %s LOGIN CREATEROLE PASSWORD '%s'`
)

func newTarget(t *testing.T, p pair, strategy string) *target {
	t.Helper()
	id := targets.Add(1)
	// Upper case, quotes, spaces and letters beyond ASCII are names like others.
	users := []string{fmt.Sprintf(`Ördérs "%d" o'neil a`, id), fmt.Sprintf(`Ördérs "%d" o'neil b`, id)}
	tg := &target{
		pair: p, t: t, name: key.Name(fmt.Sprintf("test/db%d", id)), users: users, group: fmt.Sprintf(`Ördérs "%d" o'neil_owner`, id),
		rotator: fmt.Sprintf("rotator%d", id), rotatorSecret: "Rotator-" + strconv.FormatInt(id, 10) + "-password",
		proxies: map[string]*pgtest.Proxy{},
	}
	pgtest.Exec(t, p.primary, database,
		fmt.Sprintf(userSQL, tg.rotator, tg.rotatorSecret),
		"GRANT pg_signal_backend, pg_read_all_stats TO "+tg.rotator)
	pgtest.Eventually(t, "the administrator is on the standby", func() bool {
		conn, err := pgx.Connect(t.Context(), p.replica.URL(tg.rotator, tg.rotatorSecret, database))
		if err == nil {
			err = conn.Close(t.Context())
		}
		return err == nil
	})
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(tg.rotatorSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	primary, replica := pgtest.NewProxy(t, p.primary.Addr()), pgtest.NewProxy(t, p.replica.Addr())
	tg.proxies[primaryEndpoint], tg.proxies["replica "+replica.Addr()] = primary, replica
	tg.config = provider.Config{
		"admin":         fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", tg.rotator, primary.Addr(), database),
		"adminPassword": map[string]any{"file": file},
		"strategy":      strategy,
		"region":        "a",
		"replicas":      []any{map[string]any{"host": replica.Addr(), "region": "b"}},
	}
	switch strategy {
	case "alternating-users":
		tg.config["users"] = []any{users[0], users[1]}
	case "single-user":
		tg.config["user"] = users[0]
		tg.users, tg.group = users[:1], ""
	}
	return tg
}

func (tg *target) endpoints() []string {
	var names []string
	for name := range tg.proxies {
		names = append(names, name)
	}
	slices.Sort(names) // primary before replica
	return names
}

func (tg *target) server(endpoint string) *pgserver.Server {
	if endpoint == primaryEndpoint {
		return tg.primary
	}
	return tg.replica
}

// opened is a target's system with short ways to use it.
type opened struct {
	*target
	provider.System
	next  key.Version
	fence uint64
}

func (tg *target) open() *opened {
	tg.t.Helper()
	driver := postgres.New()
	if _, err := driver.Check(tg.config); err != nil {
		tg.t.Fatal(err)
	}
	system, err := driver.Open(tg.t.Context(), tg.config, tg.env)
	if err != nil {
		tg.t.Fatal(err)
	}
	return &opened{target: tg, System: system}
}

func (o *opened) call() provider.Call {
	o.fence++
	return provider.Call{Key: o.name, Fence: o.fence}
}

func (o *opened) mint(live ...provider.Version) provider.Version {
	o.t.Helper()
	o.next++
	m, err := o.Mint(o.t.Context(), o.call(), provider.MintRequest{Number: o.next, Live: live})
	if err != nil {
		o.t.Fatal(err)
	}
	return provider.Version{Number: o.next, Material: m}
}

func (o *opened) accept(v provider.Version) {
	o.t.Helper()
	for _, endpoint := range o.endpoints() {
		if err := o.Accept(o.t.Context(), o.call(), endpoint, v); err != nil {
			o.t.Fatalf("accept %v at %s: %v", v.Number, endpoint, err)
		}
	}
}

func (o *opened) refuse(v provider.Version) {
	o.t.Helper()
	for _, endpoint := range o.endpoints() {
		if err := o.Refuse(o.t.Context(), o.call(), endpoint, v); err != nil {
			o.t.Fatalf("refuse %v at %s: %v", v.Number, endpoint, err)
		}
	}
}

func (o *opened) wantVerdict(v provider.Version, endpoint string, want provider.Verdict) {
	o.t.Helper()
	got, err := o.Probe(o.t.Context(), o.call(), endpoint, v)
	if err != nil || got != want {
		o.t.Errorf("probe %v at %s: got %v, %v; want %v", v.Number, endpoint, got, err, want)
	}
}

// session is a login of an application.
func (tg *target) session(endpoint string, v provider.Version, application string) *pgx.Conn {
	tg.t.Helper()
	conn, err := connect(tg.t.Context(), tg.server(endpoint), v, application)
	if err != nil {
		tg.t.Fatal(err)
	}
	tg.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // Refuse may have ended it
	})
	return conn
}

func connect(ctx context.Context, s *pgserver.Server, v provider.Version, application string) (*pgx.Conn, error) {
	return pgx.Connect(ctx, s.URL(v.Material.Attributes["username"], v.Material.Secrets["password"].RevealString(), database)+"&application_name="+application)
}

func connectAs(ctx context.Context, s *pgserver.Server, user, password string) (*pgx.Conn, error) {
	return pgx.Connect(ctx, s.URL(user, password, database))
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

func contains(log []byte, s secret.Value) bool {
	return strings.Contains(string(log), s.RevealString())
}
