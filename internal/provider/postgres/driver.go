package postgres

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/keyturn/keyturn/provider"
)

// New returns the driver for PostgreSQL. Administrator passwords come from the
// files and environment variables of this process that a key's config names.
func New() provider.Driver {
	return driver{sources: sources{lookupEnv: os.LookupEnv}}
}

type driver struct{ sources sources }

// Check implements provider.Driver.
func (driver) Check(config provider.Config) (provider.Topology, error) {
	s, err := parse(config)
	if err != nil {
		return provider.Topology{}, err
	}
	return s.topology(), nil
}

// Open implements provider.Driver. It makes no connection.
func (d driver) Open(_ context.Context, config provider.Config, env provider.Env) (provider.System, error) {
	s, err := parse(config)
	if err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	sys := &system{settings: s, sources: d.sources, resolve: env.Resolve, slots: map[slot]chan struct{}{}}
	for _, n := range s.nodes() {
		sys.slots[slot{n.name, adminApplication}] = make(chan struct{}, maxConns)
		sys.slots[slot{n.name, probeApplication}] = make(chan struct{}, maxConns)
	}
	return sys, nil
}

// system is one opened key. It holds no connection and no state of its own.
type system struct {
	settings settings
	sources  sources
	resolve  resolver
	// slots bound the connections per server and purpose, so that a server that
	// hangs delays nobody else.
	slots map[slot]chan struct{}
}

type slot struct{ node, application string }

var (
	_ provider.System      = (*system)(nil)
	_ provider.Meter       = (*system)(nil)
	_ provider.Preflighter = (*system)(nil)
	_ provider.Fencer      = (*system)(nil)
)

func (s settings) topology() provider.Topology {
	t := provider.Topology{Endpoints: make([]provider.Endpoint, 0, 1+len(s.replicas))}
	for _, n := range s.nodes() {
		t.Endpoints = append(t.Endpoints, provider.Endpoint{
			Name: n.name, Region: n.region, Host: "postgres " + net.JoinHostPort(n.host, strconv.Itoa(int(n.port))),
		})
	}
	switch s.strategy {
	case alternatingUsers:
		t.Capacity = len(s.users)
	case singleUser:
		t.Capacity, t.Gap = 1, true
	}
	return t
}

// node finds an endpoint by its name.
func (s settings) node(endpoint string) (node, error) {
	for _, n := range s.nodes() {
		if n.name == endpoint {
			return n, nil
		}
	}
	return node{}, provider.Permanent(fmt.Errorf("postgres: there is no endpoint %q", endpoint), "it was removed from the key's config; put it back until the rotation is over")
}

func (s settings) nodes() []node { return append([]node{s.primary}, s.replicas...) }
