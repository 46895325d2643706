//go:build soak

package forge_test

import (
	"testing"

	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providertest"
	"github.com/keyturn/keyturn/test/forgetest"
)

// TestConformanceWithGitea: the suite against a real Gitea.
func TestConformanceWithGitea(t *testing.T) {
	providertest.Run(t, func(t *testing.T) providertest.Target {
		g := forgetest.NewGitea(t, "../../../bin/parts")
		return providertest.Target{
			Driver: driver(), Key: name, Config: provider.Config{
				"forge": "gitea", "api": g.API, "repository": forgetest.Repository, "admin": map[string]any{"file": g.TokenFile},
				"ssh": map[string]any{"address": g.SSH, "user": g.User, "hostKeys": []any{g.HostKey}},
			},
			Silence: func(*testing.T, string) func() {
				g.Web.Cut()
				g.Secure.Cut()
				return func() {
					g.Web.Restore()
					g.Secure.Restore()
				}
			},
		}
	})
}
