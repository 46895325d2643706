package forge_test

import (
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/provider/forge"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providertest"
	"github.com/keyturn/keyturn/test/forgetest"
)

const name = "ci/shop-deploy"

func driver() provider.Driver { return forge.New(forge.Config{Now: time.Now}) }

func newForge(t *testing.T, kind string) (*forgetest.Forge, provider.Config) {
	t.Helper()
	f := forgetest.New(t)
	return f, provider.Config{
		"forge": kind, "api": f.API, "repository": forgetest.Repository, "admin": map[string]any{"file": f.TokenFile}, "usageDelay": "0s",
		"ssh": map[string]any{"address": f.SSH, "user": f.User, "hostKeys": []any{f.HostKey}},
	}
}

func TestConformance(t *testing.T) {
	for _, kind := range []string{"gitea", "github"} {
		t.Run(kind, func(t *testing.T) {
			providertest.Run(t, func(t *testing.T) providertest.Target {
				t.Parallel()
				f, config := newForge(t, kind)
				return providertest.Target{Driver: driver(), Config: config, Key: name, Silence: func(*testing.T, string) func() {
					f.Silence()
					return f.Speak
				}}
			})
		})
	}
}
