package forge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// Config is what a driver needs. Now may be nil where documents are checked only.
type Config struct {
	Now func() time.Time
}

// New returns the driver. Tokens are read from the files that a key's config names,
// each time they are needed.
func New(config Config) provider.Driver { return driver{config} }

type driver struct{ config Config }

// endpoint is the one verifier of a repository.
const endpoint = "forge"

const maxConns = 4

// Check implements provider.Driver.
func (driver) Check(config provider.Config) (provider.Topology, error) {
	s, err := parse(config)
	if err != nil {
		return provider.Topology{}, err
	}
	return provider.Topology{Endpoints: []provider.Endpoint{{Name: endpoint, Host: "forge " + s.api.Host}}}, nil
}

// Open implements provider.Driver. It makes no connection.
func (d driver) Open(_ context.Context, config provider.Config, env provider.Env) (provider.System, error) {
	s, err := parse(config)
	if err != nil {
		return nil, fmt.Errorf("forge: %w", err)
	}
	if d.config.Now == nil {
		return nil, provider.Permanent(errors.New("forge: there is no server"), "use a running server")
	}
	transport, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return nil, errors.New("forge: the transport of package http was replaced")
	}
	transport = transport.Clone()
	transport.MaxConnsPerHost = maxConns
	opened := &system{settings: s, now: d.config.Now, resolve: env.Resolve, readFile: os.ReadFile, transport: transport, http: &http.Client{
		Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if s.forge == github {
		return metered{opened}, nil
	}
	return opened, nil
}

// system is one opened key. What it keeps are idle connections.
type system struct {
	settings  settings
	now       func() time.Time
	resolve   func(context.Context, key.Name) (provider.Material, error)
	readFile  func(string) ([]byte, error)
	transport *http.Transport
	http      *http.Client
}

var (
	_ provider.System      = (*system)(nil)
	_ provider.Meter       = metered{}
	_ provider.Preflighter = (*system)(nil)
	_ provider.Lister      = (*system)(nil)
)

// Close ends idle connections.
func (s *system) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}
