package forge_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/keyturn/keyturn/internal/provider/forge"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
	"github.com/keyturn/keyturn/test/forgetest"
)

const endpoint = "forge"

func open(t *testing.T, config provider.Config, env provider.Env) provider.System {
	t.Helper()
	system, err := driver().Open(t.Context(), config, env)
	if err != nil {
		t.Fatal(err)
	}
	return system
}

func begun(ago time.Duration) provider.Call {
	return provider.Call{Key: name, Rotation: key.NewRotationID(time.Now().Add(-ago), [10]byte{1}), Fence: 1}
}

func mint(t *testing.T, s provider.System, v key.Version) provider.Version {
	t.Helper()
	m, err := s.Mint(t.Context(), begun(0), provider.MintRequest{Number: v})
	if err != nil {
		t.Fatal(err)
	}
	return provider.Version{Number: v, Material: m}
}

// TestLostAnswers: a call whose answer is lost is made good by its repetition, and
// the keys of others are left alone.
func TestLostAnswers(t *testing.T) {
	f, config := newForge(t, "gitea")
	other := forgetest.Key{ID: 1000, Title: "keyturn " + name + " v1", Key: publicKey(t), ReadOnly: true}
	f.Edit(t, func([]forgetest.Key) []forgetest.Key {
		return []forgetest.Key{other, {ID: 1001, Title: "ci", Key: publicKey(t)}}
	})
	s := open(t, config, provider.Env{})
	v := mint(t, s, 1)
	for _, step := range []struct {
		method string
		do     func(context.Context, provider.Call, string, provider.Version) error
		keys   int
	}{{http.MethodPost, s.Accept, 3}, {http.MethodDelete, s.Refuse, 2}, {http.MethodPost, s.Accept, 3}} {
		f.Fail(forgetest.Fault{Method: step.method})
		if err := step.do(t.Context(), begun(0), endpoint, v); err == nil || provider.IsPermanent(err) {
			t.Errorf("a lost answer to %s: %v", step.method, err)
		}
		for range 2 {
			if err := step.do(t.Context(), begun(0), endpoint, v); err != nil {
				t.Errorf("%s again: %v", step.method, err)
			}
		}
		if keys := f.Keys(); len(keys) != step.keys || keys[0] != other {
			t.Errorf("after %s: %+v", step.method, keys)
		}
	}
}

func publicKey(t *testing.T) string {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	shown, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(shown)))
}

// TestHostKeyIsPinned: whoever has another host key is no forge: no verdict, and
// preflight stops the rotation.
func TestHostKeyIsPinned(t *testing.T) {
	_, config := newForge(t, "gitea")
	block, _ := config["ssh"].(map[string]any)
	block["hostKeys"] = []any{publicKey(t)}
	s := open(t, config, provider.Env{})
	v := mint(t, s, 1)
	if verdict, err := s.Probe(t.Context(), begun(0), endpoint, v); verdict != 0 || !provider.IsPermanent(err) || !strings.Contains(err.Error(), "SHA256:") {
		t.Errorf("probe: %v, %v", verdict, err)
	}
	if _, err := s.(provider.Preflighter).Preflight(t.Context(), begun(0), nil); !provider.IsPermanent(err) {
		t.Errorf("preflight: %v", err)
	}
}

// TestErrors: what a human must mend is told apart from what passes.
func TestErrors(t *testing.T) {
	f, config := newForge(t, "github")
	s := open(t, config, provider.Env{})
	v := mint(t, s, 1)
	limit := http.Header{"X-Ratelimit-Remaining": {"0"}}
	for _, test := range []struct {
		status            int
		header            http.Header
		denied, permanent bool
	}{
		{401, nil, true, false},
		{403, nil, true, false},
		{403, limit, false, false},
		{404, nil, false, true},
		{429, nil, false, false},
		{500, nil, false, false},
		{301, nil, false, true},
	} {
		f.Fail(forgetest.Fault{Method: http.MethodGet, Status: test.status, Header: test.header})
		err := s.Accept(t.Context(), begun(0), endpoint, v)
		if err == nil || errors.Is(err, provider.ErrDenied) != test.denied || provider.IsPermanent(err) != test.permanent {
			t.Errorf("status %d: %v", test.status, err)
		}
	}
	// A key that the forge says is taken, and that this repository has not.
	f.Fail(forgetest.Fault{Method: http.MethodPost, Status: 422})
	if err := s.Accept(t.Context(), begun(0), endpoint, v); !provider.IsPermanent(err) {
		t.Errorf("a key that is in use elsewhere: %v", err)
	}
}

// TestTokenOfManagedKey: the access token is another key's present version, each
// time it is needed.
func TestTokenOfManagedKey(t *testing.T) {
	f, config := newForge(t, "gitea")
	config["admin"] = map[string]any{"key": "ops/forge", "field": "value"}
	token := "wrong"
	s := open(t, config, provider.Env{Resolve: func(context.Context, key.Name) (provider.Material, error) {
		return provider.Material{Secrets: map[string]secret.Value{"value": secret.NewString(token)}}, nil
	}})
	v := mint(t, s, 1)
	if err := s.Accept(t.Context(), begun(0), endpoint, v); !errors.Is(err, provider.ErrDenied) {
		t.Errorf("a wrong token: %v", err)
	}
	token = f.Token
	if err := s.Accept(t.Context(), begun(0), endpoint, v); err != nil {
		t.Error(err)
	}
}

// TestRightsFollowTheConfig: a deploy key that may write where it should only read
// is replaced.
func TestRightsFollowTheConfig(t *testing.T) {
	f, config := newForge(t, "gitea")
	s := open(t, config, provider.Env{})
	v := mint(t, s, 1)
	public := v.Material.Attributes["publicKey"]
	f.Edit(t, func([]forgetest.Key) []forgetest.Key {
		return []forgetest.Key{{ID: 1000, Title: "ci", Key: public + " somebody@host"}}
	})
	findings, err := s.(provider.Preflighter).Preflight(t.Context(), begun(0), []provider.Version{v})
	if err != nil || len(findings) != 1 || findings[0].Code != "rights-differ" {
		t.Errorf("preflight: %v, %v", findings, err)
	}
	if err := s.Accept(t.Context(), begun(0), endpoint, v); err != nil {
		t.Fatal(err)
	}
	if keys := f.Keys(); len(keys) != 1 || !keys[0].ReadOnly {
		t.Errorf("got %+v", keys)
	}
}

// TestUseIsNeverAFalseZero: see the provider aws-iam, whose rule it is.
func TestUseIsNeverAFalseZero(t *testing.T) {
	_, config := newForge(t, "gitea")
	if _, tells := open(t, config, provider.Env{}).(provider.Meter); tells {
		t.Error("Gitea does not tell of use")
	}
	f, config := newForge(t, "github")
	config["usageDelay"] = "1h"
	s := open(t, config, provider.Env{})
	v := mint(t, s, 1)
	if err := s.Accept(t.Context(), begun(0), endpoint, v); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		began, ago time.Duration
		sessions   int
		noData     bool
	}{{time.Minute, 0, 0, true}, {time.Minute, time.Second, 1, false}, {3 * time.Hour, 150 * time.Minute, 0, false}, {3 * time.Hour, 90 * time.Minute, 1, false}} {
		f.Edit(t, func(keys []forgetest.Key) []forgetest.Key {
			if keys[0].LastUsed = nil; test.ago > 0 {
				at := time.Now().Add(-test.ago)
				keys[0].LastUsed = &at
			}
			return keys
		})
		u, err := s.(provider.Meter).Usage(t.Context(), begun(test.began), v)
		if errors.Is(err, provider.ErrNoData) != test.noData || (err != nil) != test.noData || u.Sessions != test.sessions {
			t.Errorf("began %v ago, used %v ago: %+v, %v", test.began, test.ago, u, err)
		}
		if err == nil && u.Sessions == 0 && time.Since(u.Until) < time.Hour {
			t.Errorf("no use is told until %v, and the forge may be an hour late", u.Until)
		}
	}
}

func TestConfigProblemsAreAllNamed(t *testing.T) {
	_, err := forge.New(forge.Config{}).Check(provider.Config{
		"forge": "gitlab", "api": "http://git.example.com", "repository": "../shop", "readOnly": "no", "usageDelay": "soon", "x": 1.0,
		"admin": map[string]any{"file": "token", "key": "ops/forge"}, "ssh": map[string]any{"address": "git", "user": "-x y", "hostKeys": []any{"ssh-ed25519 A"}},
	})
	for _, place := range []string{"forge", "api", "repository", "readOnly", "usageDelay", "x", "admin", "admin.file", "ssh.address", "ssh.user", "ssh.hostKeys[0]"} {
		if err == nil || !strings.Contains("\n"+err.Error(), "\n"+place+": ") {
			t.Errorf("%s is not named in: %v", place, err)
		}
	}
}
