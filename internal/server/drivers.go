package server

import (
	"maps"
	"time"

	apikeydriver "github.com/keyturn/keyturn/internal/provider/apikey"
	"github.com/keyturn/keyturn/internal/provider/forge"
	"github.com/keyturn/keyturn/internal/provider/postgres"
	"github.com/keyturn/keyturn/provider"
)

// services are what providers need of a server: what its configuration says, and
// the data-plane services that some of them speak to. The zero value serves to
// check documents where there is no server.
type services struct {
	// apiKeys verifies API keys; nil where there is no server.
	apiKeys apikeydriver.Service
	// tokens publishes signing keys; nil where there is no server.
	tokens *tokens
	now    func() time.Time
	// config is that of the server.
	config *Config
}

// drivers are the providers of a server, by the name that keys use.
func drivers(s services) map[string]provider.Driver {
	all := map[string]provider.Driver{
		"apikey":     apikeydriver.New(apikeydriver.Config{Service: s.apiKeys, Now: s.now}),
		"deploy-key": forge.New(forge.Config{Now: s.now}),
		"jwks":       s.tokens.driver(),
		"postgres":   postgres.New(),
		kindExec:     pluginDriver(kindExec, s.config),
		kindWebhook:  pluginDriver(kindWebhook, s.config),
	}
	maps.Copy(all, awsDrivers(s.now))
	return all
}

// Drivers are the providers as far as they can be known without a server: they
// check the config of keys. What they open lacks all that a server lends.
func Drivers() map[string]provider.Driver { return drivers(services{}) }

// drivers are the providers of this server; those of the options go before.
func (s *Server) drivers(options Options) map[string]provider.Driver {
	all := drivers(services{config: &s.config, apiKeys: s.apiKeys, tokens: s.tokens, now: options.Now})
	maps.Copy(all, options.Drivers)
	return all
}
