package awsiam

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/provider"
)

// Config is what a driver needs. Now may be nil where documents are checked only.
type Config struct {
	Now func() time.Time
}

// New returns the driver. Where a key's config names no other credential, that of
// this process is used: its environment, the shared files of AWS, or its machine's role.
func New(config Config) provider.Driver { return driver{config} }

type driver struct{ config Config }

// endpoint is the one verifier: the regions of the config together. IAM is global,
// and refuses nowhere what it accepts elsewhere, but for a while.
const endpoint = "aws"

// Check implements provider.Driver.
func (driver) Check(config provider.Config) (provider.Topology, error) {
	s, err := parse(config)
	if err != nil {
		return provider.Topology{}, err
	}
	host := s.endpoint
	if host == "" {
		host = "aws " + s.regions[0]
	}
	return provider.Topology{Endpoints: []provider.Endpoint{{Name: endpoint, Host: host}}, Capacity: capacity}, nil
}

// Open implements provider.Driver. It reads no file and makes no connection.
func (d driver) Open(_ context.Context, config provider.Config, env provider.Env) (provider.System, error) {
	s, err := parse(config)
	if err != nil {
		return nil, fmt.Errorf("awsiam: %w", err)
	}
	if d.config.Now == nil {
		return nil, provider.Permanent(errors.New("awsiam: there is no server"), "use a running server")
	}
	return &system{settings: s, now: d.config.Now, resolve: env.Resolve}, nil
}

// system is one opened key. What it keeps are connections and the administrator's
// temporary credentials.
type system struct {
	settings settings
	now      func() time.Time
	resolve  resolver
	clients  clients
}

var (
	_ provider.System      = (*system)(nil)
	_ provider.Meter       = (*system)(nil)
	_ provider.Preflighter = (*system)(nil)
	_ provider.Lister      = (*system)(nil)
	_ provider.Destroyer   = (*system)(nil)
)
