package plugin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/provider"
)

// Config is what a driver is made of.
type Config struct {
	// Kind names the provider in messages: exec or webhook. Required.
	Kind string
	// Plugins are those that keys may name. Nil means that they are not known here,
	// as where documents are checked without a server: every name passes Check, and
	// no call succeeds.
	Plugins map[string]Transport
	// Random is a cryptographic source; default: crypto/rand. Now is the clock by
	// which deadlines are told; default: time.Now.
	Random io.Reader
	Now    func() time.Time
}

// New returns the driver for the plugins of one kind.
func New(config Config) provider.Driver {
	if config.Random == nil {
		config.Random = rand.Reader
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	return driver{config}
}

type driver struct{ config Config }

// Check implements provider.Driver.
func (d driver) Check(config provider.Config) (provider.Topology, error) {
	s, err := parse(config)
	if name, _ := config["plugin"].(string); name != "" && d.config.Plugins != nil && d.config.Plugins[name] == nil {
		known := strings.Join(slices.Sorted(maps.Keys(d.config.Plugins)), ", ")
		if known == "" {
			known = "there are none"
		}
		err = errors.Join(err, &provider.ConfigError{
			Path: "plugin", Problem: fmt.Sprintf("the server has no plugin %q of kind %s", name, d.config.Kind),
			Hint: "add it to plugins in the server's configuration; known here: " + known,
		})
	}
	return s.topology, err
}

// Open implements provider.Driver. It calls nothing.
func (d driver) Open(_ context.Context, config provider.Config, env provider.Env) (provider.System, error) {
	if _, err := d.Check(config); err != nil {
		return nil, fmt.Errorf("%s: %w", d.config.Kind, err)
	}
	s, err := parse(config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.config.Kind, err)
	}
	sys := &system{settings: s, transport: d.config.Plugins[s.plugin], env: env, random: d.config.Random, now: d.config.Now, name: d.config.Kind + " " + s.plugin}
	if sys.transport == nil {
		return nil, fmt.Errorf("%s: there is no server here that could call the plugin %q", d.config.Kind, s.plugin)
	}
	return sys.withMethods(), nil
}

// withMethods returns the system as its methods make it: Keyturn asks by interfaces
// what a system can do.
func (s *system) withMethods() provider.System {
	uses := func(method string) bool { return slices.Contains(s.settings.methods, method) }
	usage, held, fence := uses(MethodUsage), uses(MethodHeld), uses(MethodFence)
	switch {
	case usage && held && fence:
		return struct {
			*system
			meter
			lister
			fencer
		}{s, meter{s}, lister{s}, fencer{s}}
	case usage && held:
		return struct {
			*system
			meter
			lister
		}{s, meter{s}, lister{s}}
	case usage && fence:
		return struct {
			*system
			meter
			fencer
		}{s, meter{s}, fencer{s}}
	case held && fence:
		return struct {
			*system
			lister
			fencer
		}{s, lister{s}, fencer{s}}
	case usage:
		return struct {
			*system
			meter
		}{s, meter{s}}
	case held:
		return struct {
			*system
			lister
		}{s, lister{s}}
	case fence:
		return struct {
			*system
			fencer
		}{s, fencer{s}}
	}
	return s
}
