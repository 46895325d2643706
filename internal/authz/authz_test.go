package authz_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/key"
)

// TestRoles states every allowed pair, so that a new one needs a new row here.
func TestRoles(t *testing.T) {
	all := []authz.Action{authz.Read, authz.Reveal, authz.Present, authz.Apply, authz.Operate, authz.Approve, authz.Administer, authz.Redeem, authz.Backup, authz.Verify, authz.Scan, authz.Forward}
	allowed := map[authz.Role][]authz.Action{
		0:              nil,
		authz.Admin:    {authz.Read, authz.Reveal, authz.Present, authz.Apply, authz.Operate, authz.Approve, authz.Administer, authz.Backup, authz.Verify, authz.Scan, authz.Forward},
		authz.Operator: {authz.Read, authz.Apply, authz.Operate},
		authz.Approver: {authz.Read, authz.Approve},
		authz.Viewer:   {authz.Read},
		authz.Agent:    {authz.Present, authz.Reveal},
		authz.Join:     {authz.Redeem},
		authz.Verifier: {authz.Verify},
		authz.Scanner:  {authz.Scan},
		authz.Gateway:  {authz.Present, authz.Verify, authz.Forward},
	}
	for role, actions := range allowed {
		for _, action := range append([]authz.Action{0}, all...) {
			err := authz.Allow(authz.Principal{Name: "p", Role: role, Keys: []string{"**"}}, action, "a/b")
			if want := slices.Contains(actions, action); (err == nil) != want {
				t.Errorf("%v may %v: got %v, want allowed %v", role, action, err, want)
			}
			if err != nil && !errors.Is(err, authz.ErrDenied) {
				t.Errorf("%v %v: %v does not wrap ErrDenied", role, action, err)
			}
		}
	}
}

func TestKeysLimitEveryRole(t *testing.T) {
	p := authz.Principal{Name: "p", Role: authz.Admin, Keys: []string{"prod/*"}}
	if err := authz.Allow(p, authz.Reveal, "prod/db"); err != nil {
		t.Error(err)
	}
	for _, name := range []key.Name{"prod/a/b", "stage/db", "prod"} {
		if authz.Allow(p, authz.Reveal, name) == nil {
			t.Errorf("%s is covered", name)
		}
	}
	if authz.Allow(authz.Principal{Role: authz.Admin}, authz.Read, "a") == nil {
		t.Error("a principal without patterns reaches a key")
	}
}

func TestMatch(t *testing.T) {
	tests := []struct {
		pattern string
		name    key.Name
		want    bool
	}{
		{"**", "a", true},
		{"**", "a/b/c", true},
		{"*", "a", true},
		{"*", "a/b", false},
		{"a/**", "a", true},
		{"a/**", "a/b/c", true},
		{"a/**", "ab/c", false},
		{"**/db", "db", true},
		{"**/db", "a/b/db", true},
		{"**/db", "a/b/dbx", false},
		{"a/*/c", "a/b/c", true},
		{"a/*/c", "a/b/b/c", false},
		{"a/**/c", "a/b/b/c", true},
		{"pro*/db", "prod/db", true},
		{"prod-*", "prod-1", true},
		{"a", "A", false},
		{"[a]", "a", false},
		{"", "a", false},
	}
	for _, test := range tests {
		if got := authz.Match(test.pattern, test.name); got != test.want {
			t.Errorf("Match(%q, %q) = %v", test.pattern, test.name, got)
		}
	}
}

func TestMaySpeakFor(t *testing.T) {
	bound := authz.Principal{Name: "agent web1", Role: authz.Agent, Party: "web1"}
	free := authz.Principal{Name: "orders", Role: authz.Agent}
	for party, want := range map[string]bool{"web1": true, "web2": false, "web1/x": false, "": false} {
		if (authz.MaySpeakFor(bound, party) == nil) != want {
			t.Errorf("bound token for %q: want %v", party, want)
		}
	}
	for party, want := range map[string]bool{"orders": true, "orders/1": true, "ordersx": false, "web1": false} {
		if (authz.MaySpeakFor(free, party) == nil) != want {
			t.Errorf("free token for %q: want %v", party, want)
		}
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("a/**/b*", "a/x/by")
	f.Add("**", "a")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		matched := authz.Match(pattern, key.Name(name))
		if matched && (authz.CheckPattern(pattern) != nil || !key.Name(name).Valid()) {
			t.Errorf("an invalid pattern or name matched: %q %q", pattern, name)
		}
		if !strings.Contains(pattern, "*") && matched != (pattern == name && key.Name(name).Valid()) {
			t.Errorf("a pattern without * is not compared literally: %q %q", pattern, name)
		}
	})
}
