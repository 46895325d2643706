package apikey_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/provider/apikey"
	"github.com/keyturn/keyturn/provider"
)

func TestConfigProblemsAreAllNamed(t *testing.T) {
	driver := apikey.New(apikey.Config{})
	_, err := driver.Check(provider.Config{
		"clients": "x", "prefix": "KT", "scopes": []any{"a b", "x", "x"}, "rate": map[string]any{"perSecond": -1.0, "burst": 1.5, "x": 1.0},
		"expires": "soon", "keep": "for ever",
		"notify": map[string]any{"email": []any{"nobody"}, "webhook": []any{"http://acme.example/"}, "remind": "5s", "fax": 1.0},
	})
	for _, place := range []string{"client", "clients", "prefix", "scopes[0]", "scopes[2]", "rate.perSecond", "rate.burst", "rate.x", "expires", "keep", "notify.email[0]", "notify.webhook[0]", "notify.remind", "notify.fax"} {
		if err == nil || !strings.Contains("\n"+err.Error(), "\n"+place+": ") {
			t.Errorf("%s is not named in: %v", place, err)
		}
	}
	if problem := new(provider.ConfigError); !errors.As(err, &problem) || problem.Hint == "" {
		t.Errorf("got %T, want *provider.ConfigError with a hint", err)
	}
}

// TestColonWithoutQuotes: between braces orders:read is read as a field and its value; the
// hint says how to write it.
func TestColonWithoutQuotes(t *testing.T) {
	_, err := apikey.New(apikey.Config{}).Check(provider.Config{"client": "ACME", "prefix": "kt_live", "scopes": []any{map[string]any{"orders": "read"}}})
	bad := new(provider.ConfigError)
	if !errors.As(err, &bad) || bad.Path != "scopes[0]" || !strings.Contains(bad.Hint, `"orders:read", in quotes`) {
		t.Errorf("%v: %+v", err, bad)
	}
}

// TestExpiredClientIsNotRotated: a key that nobody would let in is not minted.
func TestExpiredClientIsNotRotated(t *testing.T) {
	driver := apikey.New(apikey.Config{Service: struct{ apikey.Service }{}, Now: func() time.Time { return time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC) }})
	for expires, ok := range map[string]bool{"2026-11-27": true, "2026-11-26": false, "2026-11-26T00:00:01Z": true} {
		system, err := driver.Open(t.Context(), provider.Config{"client": "ACME", "prefix": "kt_live", "expires": expires}, provider.Env{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = system.(provider.Preflighter).Preflight(t.Context(), provider.Call{}, nil)
		if (err == nil) != ok || err != nil && !provider.IsPermanent(err) {
			t.Errorf("expires %s: %v", expires, err)
		}
	}
}
