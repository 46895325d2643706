// Package httpkeys is an example of a provider: it rotates the API keys of an
// HTTP service that runs in one or more regions and has an admin API.
//
// Guarantees: a key is known to the service as a SHA-256 hash only, under an ID
// of its own for each version, so that a late call for one version cannot touch
// another; no request follows a redirect, so that no token goes astray; the
// service's own answer decides what a probe says, and silence is an error.
package httpkeys

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"

	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providerconf"
)

// Driver implements provider.Driver. The zero value is ready for use.
type Driver struct{}

// settings is the config block of one key:
//
//	config:
//	  adminTokenFile: /run/secrets/gateway-admin
//	  regions: {eu: "https://eu.gateway.example", us: "https://us.gateway.example"}
type settings struct {
	adminTokenFile string
	// regions maps the name of a region to the URL of the service there.
	regions map[string]*url.URL
}

// Check implements provider.Driver.
func (Driver) Check(config provider.Config) (provider.Topology, error) {
	s, err := parse(config)
	if err != nil {
		return provider.Topology{}, err
	}
	var topology provider.Topology // Capacity 0: the service takes any number of keys
	for _, region := range slices.Sorted(maps.Keys(s.regions)) {
		topology.Endpoints = append(topology.Endpoints, provider.Endpoint{
			Name: region, Region: region, Host: s.regions[region].Host,
		})
	}
	return topology, nil
}

// Open implements provider.Driver.
func (Driver) Open(_ context.Context, config provider.Config, _ provider.Env) (provider.System, error) {
	s, err := parse(config)
	if err != nil {
		return nil, err
	}
	return &system{settings: s, http: &http.Client{
		Transport:     http.DefaultTransport.(*http.Transport).Clone(),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// parse reports every problem at once, each with its place and its mend.
func parse(config provider.Config) (settings, error) {
	b := providerconf.Read(config, "adminTokenFile", "regions")
	s := settings{adminTokenFile: b.Text("adminTokenFile", 4096, ""), regions: map[string]*url.URL{}}
	if !b.Has("adminTokenFile") {
		b.Missing("adminTokenFile", "name a file that holds the token of the admin API")
	}
	regions := b.Map("regions", "")
	if len(regions.Names()) == 0 {
		b.Report("regions", "at least one region is required", `write for example regions: {eu: "https://eu.gateway.example"}`)
	}
	for _, name := range regions.Names() {
		u, err := url.Parse(regions.Text(name, 2048, ""))
		if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
			regions.Report(name, "this is no URL of a service", "write for example https://eu.gateway.example")
			continue
		}
		s.regions[name] = u
	}
	return s, b.Err()
}

// endpoint returns the URL of a path at an endpoint.
func (s settings) endpoint(name string, path ...string) (*url.URL, error) {
	base, ok := s.regions[name]
	if !ok {
		return nil, provider.Permanent(fmt.Errorf("there is no region %q", name), "apply the key again")
	}
	return base.JoinPath(path...), nil
}
