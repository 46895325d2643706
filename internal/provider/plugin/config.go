package plugin

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/keyturn/keyturn/provider"
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
func optional() []string { return []string{MethodUsage, MethodPreflight, MethodHeld, MethodDestroy} }

// Bounds of a config.
const (
	maxName     = 253
	maxCapacity = 1000
	maxSlots    = 200 // endpoints
)

type reader struct{ problems []error }

func (r *reader) add(path, problem, hint string) {
	r.problems = append(r.problems, &provider.ConfigError{Path: path, Problem: problem, Hint: hint})
}

// only reports every field that is not known.
func (r *reader) only(path string, fields map[string]any, known ...string) {
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		if !slices.Contains(known, field) {
			r.add(join(path, field), "there is no such field", "known are "+strings.Join(known, ", "))
		}
	}
}

func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}

// text reads a text of at most most bytes without control characters.
func (r *reader) text(path string, fields map[string]any, field string, most int) string {
	value, has := fields[field]
	if !has {
		return ""
	}
	text, ok := value.(string)
	if !ok || text == "" || len(text) > most || !utf8.ValidString(text) || strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		r.add(join(path, field), "it is not a short text", fmt.Sprintf("write 1 to %d characters, in quotes if they look like a number", most))
		return ""
	}
	return text
}

// number reads a whole number.
func (r *reader) number(path string, fields map[string]any, field string, least, most, otherwise int) int {
	value, has := fields[field]
	if !has {
		return otherwise
	}
	n, ok := value.(float64)
	if whole, is := value.(int); is {
		n, ok = float64(whole), true
	}
	if !ok || n != math.Trunc(n) || n < float64(least) || n > float64(most) {
		r.add(join(path, field), fmt.Sprintf("it is not a whole number from %d to %d", least, most), fmt.Sprintf("write for example %s: %d", field, max(least, otherwise)))
		return otherwise
	}
	return int(n)
}

func (r *reader) block(path string, fields map[string]any, field string) map[string]any {
	value, has := fields[field]
	if !has {
		return nil
	}
	block, ok := value.(map[string]any)
	if !ok {
		r.add(join(path, field), "it is not a block", "write its fields in braces or indented below it")
	}
	return block
}

// parse checks a config and reports every problem as a *provider.ConfigError.
func parse(config provider.Config) (settings, error) {
	r := &reader{}
	fields := map[string]any(config)
	r.only("", fields, "plugin", "endpoints", "capacity", "gap", "methods", "settings", "mint")
	s := settings{plugin: r.text("", fields, "plugin", maxName), own: r.block("", fields, "settings")}
	if _, has := fields["plugin"]; !has {
		r.add("plugin", "it is missing", "name a plugin of the server's configuration, for example plugin: redis")
	}
	s.parseEndpoints(r, fields)
	s.topology.Capacity = r.number("", fields, "capacity", 0, maxCapacity, 0)
	if value, has := fields["gap"]; has {
		if s.topology.Gap, has = value.(bool); !has {
			r.add("gap", "it is neither true nor false", "write true only if accepting a version makes the system refuse the one before it")
		}
	}
	if s.topology.Capacity == 1 && !s.topology.Gap {
		r.add("capacity", "with room for one version and no gap nothing could ever rotate", "write the number of versions that are accepted at the same time, 0 for any number; or gap: true")
	}
	s.parseMethods(r, fields)
	s.mint = parseRecipe(r, fields, s.topology.Capacity)
	if len(r.problems) > 0 {
		return settings{}, errors.Join(r.problems...)
	}
	return s, nil
}

func (s *settings) parseEndpoints(r *reader, fields map[string]any) {
	const hint = `write for example endpoints: [{name: eu, region: eu, host: "redis-eu:6379"}]`
	list, ok := fields["endpoints"].([]any)
	if !ok || len(list) == 0 {
		r.add("endpoints", "at least one endpoint is required", hint)
		return
	}
	if len(list) > maxSlots {
		r.add("endpoints", fmt.Sprintf("there are %d, at most %d are allowed", len(list), maxSlots), "split the key")
		return
	}
	names := map[string]bool{}
	for i, item := range list {
		path := fmt.Sprintf("endpoints[%d]", i)
		block, ok := item.(map[string]any)
		if name, text := item.(string); text {
			block, ok = map[string]any{"name": name}, true
		}
		if !ok {
			r.add(path, "it is neither a name nor a block", hint)
			continue
		}
		r.only(path, block, "name", "region", "host")
		e := endpoint{Name: r.text(path, block, "name", maxName), Region: r.text(path, block, "region", maxName), Host: r.text(path, block, "host", maxName)}
		if _, has := block["name"]; !has {
			r.add(path, "it has no name", hint)
		} else if names[e.Name] {
			r.add(path, fmt.Sprintf("the name %q is there twice", e.Name), "list every endpoint once")
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

func (s *settings) parseMethods(r *reader, fields map[string]any) {
	value, has := fields["methods"]
	if !has {
		return
	}
	list, ok := value.([]any)
	if !ok {
		r.add("methods", "it is not a list", "write for example methods: [usage, held]")
	}
	for i, item := range list {
		method, _ := item.(string)
		if !slices.Contains(optional(), method) || slices.Contains(s.methods, method) {
			r.add(fmt.Sprintf("methods[%d]", i), "it is no optional method, or there twice", "optional are "+strings.Join(optional(), ", ")+"; the others are always used")
			continue
		}
		s.methods = append(s.methods, method)
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
