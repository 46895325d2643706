package jwks

import (
	"net/netip"
	"time"

	"github.com/keyturn/keyturn/provider"
)

// Settings are what of a key's config counts for what is published already, when it
// is applied and not only with the next version.
type Settings struct {
	Issuer    string
	TokenLife time.Duration
	CacheLife time.Duration
	External  bool
	// Readers are those of all endpoints, by name.
	Readers map[string]Reader
}

// Reader is who fetches the set of an endpoint; see Change.
type Reader struct {
	Shared bool
	From   []netip.Prefix
}

// SettingsOf reads a key's config.
func SettingsOf(config provider.Config) (Settings, error) {
	s, err := parse(config)
	if err != nil {
		return Settings{}, err
	}
	settings := Settings{Issuer: s.issuer, TokenLife: s.tokenLife, CacheLife: s.cacheLife, External: s.external, Readers: map[string]Reader{published: {}}}
	for i := range s.verifiers {
		settings.Readers[s.verifiers[i].name] = Reader{Shared: s.verifiers[i].shared, From: s.verifiers[i].from}
	}
	return settings, nil
}
