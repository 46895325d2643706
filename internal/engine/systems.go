package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// maxOpenSystems bounds the connections that opened systems hold.
const maxOpenSystems = 512

// systemCache holds opened systems by key, as long as the key's resource stays the
// same.
type systemCache struct {
	mu      sync.Mutex
	systems map[key.Name]openSystem
}

type openSystem struct {
	resource []byte
	system   provider.System
}

// system returns the opened system of a key, as its document says now.
func (e *Engine) system(ctx context.Context, name key.Name) (provider.System, error) {
	record, k, err := e.keyResource(ctx, name)
	if err != nil {
		return nil, err
	}
	e.systems.mu.Lock()
	defer e.systems.mu.Unlock()
	if open, ok := e.systems.systems[name]; ok && bytes.Equal(open.resource, record.Resource) {
		return open.system, nil
	}
	driver, ok := e.config.Drivers[k.Spec.Provider]
	if !ok {
		return nil, provider.Permanent(fmt.Errorf("unknown provider %q", k.Spec.Provider), fmt.Sprintf("known ones are %v", e.providers()))
	}
	system, err := driver.Open(ctx, k.Spec.Config, provider.Env{Resolve: e.resolve})
	if err != nil {
		return nil, err
	}
	if e.systems.systems == nil {
		e.systems.systems = map[key.Name]openSystem{}
	}
	if old, ok := e.systems.systems[name]; ok {
		closeSystem(old.system)
	} else if len(e.systems.systems) >= maxOpenSystems {
		for other, open := range e.systems.systems {
			closeSystem(open.system)
			delete(e.systems.systems, other)
			break
		}
	}
	e.systems.systems[name] = openSystem{resource: record.Resource, system: system}
	return system, nil
}

func closeSystem(system provider.System) {
	if closer, ok := system.(io.Closer); ok {
		_ = closer.Close() // nothing depends on it any more
	}
}

func (c *systemCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, open := range c.systems {
		closeSystem(open.system)
	}
	c.systems = nil
}

// keyResource reads a key's record and resource.
func (e *Engine) keyResource(ctx context.Context, name key.Name) (record KeyRecord, k policy.Key, err error) {
	err = e.store.View(ctx, func(tx store.Tx) error {
		record, k, _, err = e.readKey(ctx, tx, name)
		return err
	})
	return record, k, err
}

// resolve gives providers the current version of another key.
func (e *Engine) resolve(ctx context.Context, name key.Name) (provider.Material, error) {
	var current key.Version
	err := e.store.View(ctx, func(tx store.Tx) error {
		state, _, err := e.loadState(ctx, tx, name)
		current = state.Labelled(key.Current)
		return err
	})
	if err != nil {
		return provider.Material{}, err
	}
	if current == 0 {
		return provider.Material{}, fmt.Errorf("%w: %s", provider.ErrNoVersion, name)
	}
	return e.material(ctx, name, current)
}

// material reads and opens what a version consists of.
func (e *Engine) material(ctx context.Context, name key.Name, v key.Version) (provider.Material, error) {
	var sealed []byte
	var record VersionRecord
	err := e.store.View(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindVersion, versionName(name, v))
		if errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("%w: %s has no version %v", ErrNotFound, name, v)
		}
		if err != nil {
			return err
		}
		if err := decodeInto(doc.Body, &record); err != nil {
			return err
		}
		if record.Foreign || !record.Forgotten.IsZero() {
			return &lostMaterial{version: v, attributes: record.Attributes, shown: !record.Foreign}
		}
		sealed, err = tx.Materials.Get(ctx, name, v)
		if errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("%w: %v of %s is destroyed", ErrNotFound, v, name)
		}
		return err
	})
	if err != nil {
		return provider.Material{}, err
	}
	secrets, err := keeper.OpenMaterial(ctx, e.config.Keeper, keeper.Place{Key: name, Version: v}, sealed)
	if err != nil {
		err = fmt.Errorf("open %v of %s: %w", v, name, err)
		if errors.Is(err, keeper.ErrCorrupt) || errors.Is(err, keeper.ErrUnknownKEK) {
			return provider.Material{}, provider.Permanent(err, "the stored material is damaged, or its key-encryption key is missing; restore the keeper or the database")
		}
		return provider.Material{}, err
	}
	return provider.Material{Attributes: record.Attributes, Secrets: secrets}, nil
}

func (e *Engine) seal(ctx context.Context, name key.Name, v key.Version, material provider.Material) ([]byte, error) {
	sealed, err := keeper.SealMaterial(ctx, e.config.Keeper, keeper.Place{Key: name, Version: v}, material.Secrets)
	if err != nil {
		return nil, fmt.Errorf("seal %v of %s: %w", v, name, err)
	}
	return sealed, nil
}

// open returns the system of a key and one version with its material.
func (e *Engine) open(ctx context.Context, name key.Name, v key.Version) (provider.System, provider.Version, error) {
	system, err := e.system(ctx, name)
	if err != nil {
		return nil, provider.Version{}, err
	}
	material, err := e.material(ctx, name, v)
	if lost := new(lostMaterial); errors.As(err, &lost) {
		material, err = provider.Material{Attributes: lost.attributes}, nil
	}
	return system, provider.Version{Number: v, Material: material}, err
}

// lostMaterial says that the material of a version is with others only: it was
// brought in during a time that is missing after a restore, or shown once.
type lostMaterial struct {
	version    key.Version
	attributes map[string]string
	// shown: it was shown once, and is with its user.
	shown bool
}

func (l *lostMaterial) Error() string {
	if l.shown {
		return fmt.Sprintf("the secret of %v was shown once, and is with its user alone; rotate the key for another one", l.version)
	}
	return fmt.Sprintf("the material of %v was lost with a restore; only those who use it have it", l.version)
}

func (l *lostMaterial) Unwrap() error { return ErrNotFound }

// live returns the versions that occupy a place in the system, with their
// secrets only if asked for.
func (e *Engine) live(ctx context.Context, name key.Name, secrets bool) ([]provider.Version, error) {
	var live []provider.Version
	err := e.store.View(ctx, func(tx store.Tx) error {
		live = nil
		state, _, err := e.loadState(ctx, tx, name)
		if err != nil {
			return err
		}
		for _, number := range state.Live() {
			doc, err := tx.Docs.Get(ctx, kindVersion, versionName(name, number))
			if err != nil {
				return fmt.Errorf("%v of %s: %w", number, name, err)
			}
			var record VersionRecord
			if err := decodeInto(doc.Body, &record); err != nil {
				return err
			}
			live = append(live, provider.Version{Number: number, Material: provider.Material{Attributes: record.Attributes}})
		}
		return nil
	})
	if err != nil || !secrets {
		return live, err
	}
	for i := range live {
		if _, live[i], err = e.open(ctx, name, live[i].Number); err != nil {
			return nil, err
		}
	}
	return live, nil
}

func (e *Engine) hostsOf(ctx context.Context, tx store.Tx, name key.Name) (hostsOf, error) {
	record, k, _, err := e.readKey(ctx, tx, name)
	if err != nil {
		return hostsOf{}, err
	}
	return e.hosts.get(string(name), record.Resource, func() (hostsOf, error) {
		own := "key " + string(name)
		hosts := hostsOf{own: own, mint: "minting by " + k.Spec.Provider, system: own, endpoints: map[string]string{}}
		driver, ok := e.config.Drivers[k.Spec.Provider]
		if !ok {
			return hosts, nil
		}
		topology, err := driver.Check(k.Spec.Config)
		if err != nil {
			return hosts, nil //nolint:nilerr // the effect will say so
		}
		var all []string
		for _, endpoint := range topology.Endpoints {
			if endpoint.Host != "" {
				hosts.endpoints[endpoint.Name] = endpoint.Host
				all = append(all, endpoint.Host)
			}
		}
		hosts.takeEndpoints(all)
		return hosts, nil
	})
}
