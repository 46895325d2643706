package postgres

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/provider"
)

func example() provider.Config {
	return provider.Config{
		"admin":         "postgres://rotator@127.0.0.1:5433/postgres?sslmode=verify-full&sslrootcert=/ca.pem",
		"adminPassword": map[string]any{"file": "/run/secrets/rotator"},
		"strategy":      "alternating-users",
		"users":         []any{"orders_a", "orders_b"},
	}
}

func with(changes map[string]any) provider.Config {
	c := example()
	for field, value := range changes {
		if value == nil {
			delete(c, field)
			continue
		}
		c[field] = value
	}
	return c
}

func TestParse(t *testing.T) {
	s, err := parse(with(map[string]any{
		"region": "eu", "database": "orders", "replicaWait": "5s", "terminate": false, "memberOf": []any{"pg_read_all_data"},
		"replicas": []any{"db2", map[string]any{"host": "[::1]:6000", "region": "us"}, map[string]any{"url": "postgresql://db3:1?sslmode=require"}},
	}))
	// memberOf may name what PostgreSQL predefines, unlike users and group.
	if err != nil {
		t.Fatal(err)
	}
	if s.group != "orders_owner" || s.database != "orders" || s.adminDatabase != "postgres" || s.adminUser != "rotator" || s.replicaWait != 5*time.Second || s.terminate {
		t.Errorf("got %+v", s)
	}
	var names []string
	for _, n := range s.nodes() {
		names = append(names, n.describe()+" "+n.tls.mode)
	}
	want := []string{"primary 127.0.0.1:5433 (region eu) verify-full", "replica db2:5432 verify-full", "replica [::1]:6000 (region us) verify-full", "replica db3:1 require"}
	if !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
	top := s.topology()
	if top.Capacity != 2 || top.Gap || len(top.Endpoints) != 4 || top.Endpoints[2].Region != "us" || top.Endpoints[2].Host != "postgres [::1]:6000" {
		t.Errorf("topology: %+v", top)
	}
	single, err := parse(with(map[string]any{"strategy": "single-user", "users": nil, "user": "orders"}))
	if top := single.topology(); err != nil || top.Capacity != 1 || !top.Gap {
		t.Errorf("single user: %+v, %v", top, err)
	}
}

func TestDefaultGroup(t *testing.T) {
	for users, want := range map[string]string{
		"orders_a,orders_b": "orders_owner", "app-1,app-2,app-3": "app_owner", "a,b": "", "äa,äb": "ä_owner",
		"é,è": "", strings.Repeat("x", 62) + "a," + strings.Repeat("x", 62) + "b": "",
	} {
		if got := defaultGroup(strings.Split(users, ",")); got != want {
			t.Errorf("defaultGroup(%q) = %q, want %q", users, got, want)
		}
	}
}

// TestProblems changes one thing in a good config and wants to be told where.
func TestProblems(t *testing.T) {
	long := strings.Repeat("x", 64)
	for _, test := range []struct {
		name    string
		changes map[string]any
		path    string
		says    string
	}{
		{"no admin", map[string]any{"admin": nil}, "admin", "missing"},
		{"password in URL", map[string]any{"admin": "postgres://rotator:hunter2@h/db"}, "admin", "carries a password"},
		{"password in parameters", map[string]any{"admin": "postgres://rotator@h/db?password=hunter2"}, "admin", `"password"`},
		{"several hosts", map[string]any{"admin": "postgres://rotator@h1:1,h2:2/db"}, "admin", "more than one host"},
		{"several hosts without ports", map[string]any{"admin": "postgres://rotator@h1,h2/db"}, "admin", "more than one host"},
		{"no host", map[string]any{"admin": "postgres://rotator@/db"}, "admin", "no host"},
		{"no user", map[string]any{"admin": "postgres://h/db"}, "admin", "no user"},
		{"no database", map[string]any{"admin": "postgres://rotator@h"}, "admin", "no database"},
		{"other scheme", map[string]any{"admin": "mysql://rotator@h/db"}, "admin", "not a PostgreSQL URL"},
		{"bad port", map[string]any{"admin": "postgres://rotator@h:70000/db"}, "admin", "port"},
		{"bad sslmode", map[string]any{"admin": "postgres://rotator@h/db?sslmode=yes"}, "admin", "sslmode"},
		{"unknown parameter", map[string]any{"admin": "postgres://rotator@h/db?options=-c"}, "admin", `"options"`},
		{"admin is a number", map[string]any{"admin": 5.0}, "admin", "not a text"},
		{"no adminPassword", map[string]any{"adminPassword": nil}, "adminPassword", "missing"},
		{"plain adminPassword", map[string]any{"adminPassword": "hunter2"}, "adminPassword", "not a block"},
		{"empty adminPassword", map[string]any{"adminPassword": map[string]any{}}, "adminPassword", "no source"},
		{"two fall-backs", map[string]any{"adminPassword": map[string]any{"file": "a", "env": "B"}}, "adminPassword", "both"},
		{"bad key name", map[string]any{"adminPassword": map[string]any{"key": "Not A Key"}}, "adminPassword.key", "invalid key name"},
		{"unknown source", map[string]any{"adminPassword": map[string]any{"vault": "x", "env": "B"}}, "adminPassword.vault", "no such field"},
		{"unknown strategy", map[string]any{"strategy": "rolling"}, "strategy", `"rolling"`},
		{"no strategy at all", map[string]any{"strategy": nil, "users": nil}, "strategy", "missing"},
		{"one user", map[string]any{"users": []any{"orders_a"}}, "users", "at least two"},
		{"users is a text", map[string]any{"users": "orders_a"}, "users", "not a list"},
		{"same user twice", map[string]any{"users": []any{"orders_a", "orders_a"}}, "users[1]", "twice"},
		{"long user", map[string]any{"users": []any{"orders_a", long}}, "users[1]", "64 bytes"},
		{"reserved user", map[string]any{"users": []any{"orders_a", "pg_x"}}, "users[1]", "reserves"},
		{"number as user", map[string]any{"users": []any{"orders_a", 7.0}}, "users[1]", "not the name"},
		{"no common beginning", map[string]any{"users": []any{"a", "b"}}, "group", "no common beginning"},
		{"group is a user", map[string]any{"group": "orders_a"}, "group", "also one of the users"},
		{"user with alternating", map[string]any{"user": "x"}, "user", "does not go"},
		{"administrator is rotated", map[string]any{"users": []any{"orders_a", "rotator"}, "group": "g"}, "admin", "one of the roles"},
		{"single without user", map[string]any{"strategy": "single-user", "users": nil}, "user", "missing"},
		{"single with group", map[string]any{"strategy": "single-user", "users": nil, "user": "o", "group": "g"}, "group", "does not go"},
		{"single with users", map[string]any{"strategy": "single-user"}, "users", "one role"},
		{"single is its own administrator", map[string]any{"strategy": "single-user", "users": nil, "user": "rotator", "adminPassword": map[string]any{"key": "k"}}, "user", "logged in with"},
		{"replica twice", map[string]any{"replicas": []any{"db2", "db2:5432"}}, "replicas[1]", "twice"},
		{"replica is primary", map[string]any{"replicas": []any{"127.0.0.1:5433"}}, "replicas[0]", "twice"},
		{"replica without place", map[string]any{"replicas": []any{map[string]any{"region": "b"}}}, "replicas[0]", "either url or host"},
		{"replica with password", map[string]any{"replicas": []any{map[string]any{"url": "postgres://rotator:hunter2@h"}}}, "replicas[0].url", "carries a password"},
		{"replica with typo", map[string]any{"replicas": []any{map[string]any{"hots": "b"}}}, "replicas[0].hots", "no such field"},
		{"replica is a number", map[string]any{"replicas": []any{1.0}}, "replicas[0]", "neither"},
		{"replica with another user", map[string]any{"replicas": []any{"else@db2"}}, "replicas[0]", "those of admin"},
		{"bad wait", map[string]any{"replicaWait": "soon"}, "replicaWait", "not a time"},
		{"negative wait", map[string]any{"replicaWait": "-1s"}, "replicaWait", "not a time"},
		{"bad terminate", map[string]any{"terminate": "yes"}, "terminate", "true nor false"},
		{"typo", map[string]any{"usres": []any{}}, "usres", "no such field"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := parse(with(test.changes))
			for _, problem := range problems(t, err) {
				if problem.Path == test.path && strings.Contains(problem.Problem, test.says) {
					return
				}
			}
			t.Errorf("got %v, want %q at %s", err, test.says, test.path)
		})
	}
}

// TestEveryProblemIsReported makes several mistakes at once.
func TestEveryProblemIsReported(t *testing.T) {
	_, err := parse(with(map[string]any{"admin": nil, "users": []any{}, "replicaWait": "x", "typo": true}))
	var paths []string
	for _, p := range problems(t, err) {
		paths = append(paths, p.Path)
	}
	for _, want := range []string{"admin", "users", "replicaWait", "typo"} {
		if !slices.Contains(paths, want) {
			t.Errorf("nothing about %s in %q", want, paths)
		}
	}
}

// problems returns the ConfigErrors in err and fails when one has no hint or
// shows a password.
func problems(t *testing.T, err error) []*provider.ConfigError {
	t.Helper()
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("%v is not a list of errors", err)
	}
	var all []*provider.ConfigError
	for _, err := range joined.Unwrap() {
		problem := new(provider.ConfigError)
		if !errors.As(err, &problem) || problem.Problem == "" || problem.Hint == "" {
			t.Errorf("%v is no ConfigError with a problem and a hint", err)
			continue
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v shows the password", err)
		}
		all = append(all, problem)
	}
	return all
}

// FuzzParse feeds any JSON. Either every problem has a place, a hint and no
// password, or the config can be used: its topology is sound and its connection
// settings mean what they say.
func FuzzParse(f *testing.F) {
	good, err := json.Marshal(example())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(good))
	f.Add(`{"admin":"postgres://rotator:hunter2@h/db","user":"x","replicas":[{"host":"a"},"b",3]}`)
	f.Add(`{"admin":"postgres://r@h/d'\\b","adminPassword":{"env":"A"},"user":"o'neil \\ x"}`)
	f.Fuzz(func(t *testing.T, text string) {
		var config provider.Config
		if json.Unmarshal([]byte(text), &config) != nil {
			return
		}
		before := maps.Clone(config)
		s, err := parse(config)
		if err != nil {
			problems(t, err)
			return
		}
		if len(before) != len(config) {
			t.Fatal("parse changed the config")
		}
		top := s.topology()
		names := map[string]bool{}
		for _, e := range top.Endpoints {
			if names[e.Name] {
				t.Fatalf("endpoint %q is there twice", e.Name)
			}
			names[e.Name] = true
		}
		if len(s.users) == 0 || s.owner() == "" || s.replicaWait <= 0 {
			t.Fatalf("unusable settings: %+v", s)
		}
		for _, n := range s.nodes() {
			n.tls.rootCert, n.tls.cert, n.tls.key = "", "", "" // files that are not there
			if strings.HasPrefix(n.tls.mode, "verify") {
				n.tls.mode = "require"
			}
			c, err := connConfig(n, s.adminDatabase, s.adminUser)
			if err != nil {
				t.Fatalf("%+v: %v", n, err)
			}
			if c.Host != n.host || c.Port != n.port || c.Database != s.adminDatabase || c.User != s.adminUser || c.RequireAuth != "scram-sha-256" {
				t.Fatalf("%+v became %s:%d %q %q", n, c.Host, c.Port, c.Database, c.User)
			}
		}
	})
}
