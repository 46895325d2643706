package plugin

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providerconf"
)

// settings is a checked config of a key:
//
//	config:
//	  plugin: redis
//	  endpoints: [{name: eu, region: eu, host: "redis-eu:6379"}]
//	  capacity: 0
//	  gap: false
//	  methods: [usage, held, destroy]
//	  settings: {…}
//	  mint: {secrets: {password: {length: 32}}, attributes: {username: "orders-v{version}"}}
type settings struct {
	plugin   string
	topology provider.Topology
	// endpoints is the topology's for the plugin.
	endpoints []endpoint
	// methods are the optional ones that are used.
	methods []string
	// own is what the plugin is given as it stands.
	own  map[string]any
	mint *recipe
}

// optional are the methods that a key's config may name.
func optional() []string {
	return []string{MethodUsage, MethodPreflight, MethodHeld, MethodFence, MethodDestroy}
}

// Bounds of a config.
const (
	maxName     = 253
	maxCapacity = 1000
	maxSlots    = 200 // endpoints
)

// parse checks a config and reports every problem as a *provider.ConfigError.
func parse(config provider.Config) (settings, error) {
	b := providerconf.Read(config, "plugin", "endpoints", "capacity", "gap", "methods", "settings", "mint")
	s := settings{plugin: b.Text("plugin", maxName, "")}
	if !b.Has("plugin") {
		b.Missing("plugin", "name a plugin of the server's configuration, for example plugin: redis")
	}
	b.Map("settings", "")
	s.own, _ = b.Value("settings").(map[string]any)
	s.parseEndpoints(b)
	s.topology.Capacity = b.Int("capacity", 0, maxCapacity, 0, "")
	s.topology.Gap = b.Bool("gap", false, "write true only if accepting a version makes the system refuse the one before it")
	if s.topology.Capacity == 1 && !s.topology.Gap {
		b.Report("capacity", "with room for one version and no gap nothing could ever rotate", "write the number of versions that are accepted at the same time, 0 for any number; or gap: true")
	}
	const hint = "write for example methods: [usage, held]"
	for i, item := range b.List("methods", 0, len(optional()), hint) {
		method, _ := item.(string)
		if !slices.Contains(optional(), method) || slices.Contains(s.methods, method) {
			b.Report(providerconf.Index("methods", i), "it is no optional method, or there twice", "optional are "+strings.Join(optional(), ", ")+"; the others are always used")
			continue
		}
		s.methods = append(s.methods, method)
	}
	s.mint = parseRecipe(b, s.topology.Capacity)
	if err := b.Err(); err != nil {
		return settings{}, err
	}
	return s, nil
}

func (s *settings) parseEndpoints(b *providerconf.Block) {
	const hint = `write for example endpoints: [{name: eu, region: eu, host: "redis-eu:6379"}]`
	list := b.List("endpoints", 0, maxSlots, hint)
	if !b.Has("endpoints") || list != nil && len(list) == 0 {
		b.Report("endpoints", "at least one endpoint is required", hint)
	}
	names := map[string]bool{}
	for i, item := range list {
		place := providerconf.Index("endpoints", i)
		if name, text := item.(string); text {
			if name == "" || len(name) > maxName || strings.ContainsFunc(name, unicode.IsControl) {
				b.Report(place, "it is no name", hint)
				continue
			}
			item = map[string]any{"name": name}
		}
		if _, is := item.(map[string]any); !is {
			b.Report(place, "it is neither a name nor a block", hint)
			continue
		}
		block := b.Element(place, item, hint, "name", "region", "host")
		e := endpoint{Name: block.Text("name", maxName, ""), Region: block.Text("region", maxName, ""), Host: block.Text("host", maxName, "")}
		if !block.Has("name") {
			block.Report("", "it has no name", hint)
		} else if names[e.Name] {
			block.Report("", fmt.Sprintf("the name %q is there twice", e.Name), "list every endpoint once")
		}
		names[e.Name] = true
		s.endpoints = append(s.endpoints, e)
		shared := provider.Endpoint{Name: e.Name, Region: e.Region}
		if e.Host != "" {
			shared.Host = "plugin " + s.plugin + " " + e.Host
		}
		s.topology.Endpoints = append(s.topology.Endpoints, shared)
	}
}

// endpoint finds an endpoint by its name.
func (s *settings) endpoint(name string) error {
	for _, e := range s.endpoints {
		if e.Name == name {
			return nil
		}
	}
	return provider.Permanent(fmt.Errorf("there is no endpoint %q", name), "it was removed from the key's config; put it back until the rotation is over")
}
