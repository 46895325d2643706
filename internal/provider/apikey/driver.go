package apikey

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// Service verifies API keys.
type Service interface {
	// Hashes returns the keyed hashes of a key, for the table and for snapshots.
	Hashes(ctx context.Context, text secret.Value) (hash, snapshot keytable.Hash, err error)
	// Set makes a version accepted or refused, and returns once every node serves the
	// change. A smaller fence than one that was there is refused.
	Set(ctx context.Context, fence uint64, e keytable.Entry) error
	// Try reports whether the version is let in: by the key itself, or by its hash
	// when text is empty. It fails when it cannot tell for every node.
	Try(ctx context.Context, e keytable.Entry, text secret.Value) (accepted bool, err error)
}

// Counter is a Service that counts uses.
type Counter interface {
	// Uses returns the uses of a version since the last call; see provider.Meter.
	Uses(ctx context.Context, name key.Name, v key.Version) (provider.Usage, error)
}

// Remover is a Service that forgets versions.
type Remover interface {
	// Remove forgets a version that is refused for good.
	Remove(ctx context.Context, fence uint64, e keytable.Entry) error
}

// Readier is a Service that can say whether changes would be complete.
type Readier interface {
	// Ready fails when a node does not follow.
	Ready(ctx context.Context) error
}

// Holder is a Service that can say what it holds.
type Holder interface {
	// Held returns the versions of a key, accepted or refused.
	Held(ctx context.Context, name key.Name) ([]keytable.Entry, error)
}

// Config is what a driver needs. Service may be nil where documents are checked
// only.
type Config struct {
	Service Service
	Now     func() time.Time
	// Random is cryptographically secure. Default: crypto/rand.
	Random io.Reader
}

// New returns the driver.
func New(config Config) provider.Driver {
	if config.Random == nil {
		config.Random = rand.Reader
	}
	return driver{config}
}

type driver struct{ config Config }

// Check implements provider.Driver.
func (driver) Check(config provider.Config) (provider.Topology, error) {
	if _, err := parse(config); err != nil {
		return provider.Topology{}, err
	}
	return provider.Topology{Endpoints: []provider.Endpoint{{Name: endpoint}}}, nil
}

// endpoint is the one verifier: all server nodes together.
const endpoint = "keyturn"

// Open implements provider.Driver.
func (d driver) Open(_ context.Context, config provider.Config, _ provider.Env) (provider.System, error) {
	s, err := parse(config)
	if err != nil {
		return nil, fmt.Errorf("apikey: %w", err)
	}
	if d.config.Service == nil || d.config.Now == nil {
		return nil, provider.Permanent(errors.New("apikey: there is no server that verifies keys"), "use a running server")
	}
	return &system{Config: d.config, settings: s}, nil
}

// system is one opened key.
type system struct {
	Config
	settings settings
}

var (
	_ provider.System      = (*system)(nil)
	_ provider.Meter       = (*system)(nil)
	_ provider.Preflighter = (*system)(nil)
	_ provider.Destroyer   = (*system)(nil)
	_ provider.Lister      = (*system)(nil)
	_ provider.Forgetter   = (*system)(nil)
)

// The attributes and the secret of a version.
const (
	attributeClient   = "client"
	attributePrefix   = "prefix"
	attributeHash     = "hash"
	attributeSnapshot = "snapshot"
	secretKey         = "key"
)

// Mint implements provider.Issuer. Nobody hears of the key.
func (s *system) Mint(ctx context.Context, _ provider.Call, _ provider.MintRequest) (provider.Material, error) {
	text, err := keytable.Draw(s.settings.prefix, s.Random)
	if err != nil {
		return provider.Material{}, err
	}
	value := secret.New(text)
	hash, snapshot, err := s.Service.Hashes(ctx, value)
	if err != nil {
		return provider.Material{}, err
	}
	return provider.Material{
		Attributes: map[string]string{
			attributeClient: s.settings.rules.Client, attributePrefix: s.settings.prefix,
			attributeHash: hash.String(), attributeSnapshot: snapshot.String(),
		},
		Secrets: map[string]secret.Value{secretKey: value},
	}, nil
}

// entry is a version as the table has it.
func (s *system) entry(call provider.Call, at string, v provider.Version, accepted bool) (keytable.Entry, error) {
	e := keytable.Entry{Key: call.Key, Version: v.Number, Accepted: accepted, Rules: s.settings.rules}
	if at != endpoint {
		return e, provider.Permanent(fmt.Errorf("there is no endpoint %q", at), "apply the key again")
	}
	var err, other error
	e.Hash, err = keytable.ParseHash(v.Material.Attributes[attributeHash])
	e.Other, other = keytable.ParseHash(v.Material.Attributes[attributeSnapshot])
	if err = errors.Join(err, other); err != nil {
		return e, provider.Permanent(fmt.Errorf("the attributes of %v: %w", v.Number, err), "the stored version is damaged; restore the database, or rotate")
	}
	return e, nil
}

// Accept implements provider.Verifier.
func (s *system) Accept(ctx context.Context, call provider.Call, at string, v provider.Version) error {
	return s.set(ctx, call, at, v, true)
}

// Refuse implements provider.Verifier.
func (s *system) Refuse(ctx context.Context, call provider.Call, at string, v provider.Version) error {
	return s.set(ctx, call, at, v, false)
}

func (s *system) set(ctx context.Context, call provider.Call, at string, v provider.Version, accepted bool) error {
	e, err := s.entry(call, at, v, accepted)
	if err != nil {
		return err
	}
	err = s.Service.Set(ctx, call.Fence, e)
	if errors.Is(err, keytable.ErrTaken) {
		return provider.Permanent(err, "cancel the rotation and begin another one")
	}
	return err
}

// Probe implements provider.Verifier: the key goes the way that every key goes.
// When the client alone has it, its hash goes the rest of that way.
func (s *system) Probe(ctx context.Context, call provider.Call, at string, v provider.Version) (provider.Verdict, error) {
	e, err := s.entry(call, at, v, false)
	if err != nil {
		return 0, err
	}
	accepted, err := s.Service.Try(ctx, e, v.Material.Secrets[secretKey])
	switch {
	case err != nil:
		return 0, err
	case accepted:
		return provider.Accepted, nil
	}
	return provider.Refused, nil
}

// Usage implements provider.Meter.
func (s *system) Usage(ctx context.Context, call provider.Call, v provider.Version) (provider.Usage, error) {
	counter, ok := s.Service.(Counter)
	if !ok {
		return provider.Usage{}, fmt.Errorf("%w: the service counts no uses", provider.ErrNoData)
	}
	usage, err := counter.Uses(ctx, call.Key, v.Number)
	return usage, provider.At(endpoint, err)
}

// Destroy implements provider.Destroyer.
func (s *system) Destroy(ctx context.Context, call provider.Call, v provider.Version, _ []provider.Version) error {
	remover, ok := s.Service.(Remover)
	if !ok {
		return nil
	}
	e, err := s.entry(call, endpoint, v, false)
	if err != nil {
		return err
	}
	return remover.Remove(ctx, call.Fence, e)
}

// Preflight implements provider.Preflighter.
func (s *system) Preflight(ctx context.Context, _ provider.Call, _ []provider.Version) ([]provider.Finding, error) {
	expires := s.settings.rules.Expires
	if !expires.IsZero() && !s.Now().Before(expires) {
		return nil, provider.Permanent(fmt.Errorf("the keys of %s have expired on %s", s.settings.rules.Client, expires.Format(time.DateOnly)), "set a later expires in the key's config, and apply it")
	}
	if readier, ok := s.Service.(Readier); ok {
		return nil, provider.At(endpoint, readier.Ready(ctx))
	}
	return nil, nil
}

// Held implements provider.Lister.
func (s *system) Held(ctx context.Context, call provider.Call) ([]provider.Held, error) {
	holder, ok := s.Service.(Holder)
	if !ok {
		return nil, provider.At(endpoint, errors.New("the service does not say what it holds"))
	}
	entries, err := holder.Held(ctx, call.Key)
	if err != nil {
		return nil, provider.At(endpoint, err)
	}
	var list []provider.Held
	for i := range entries {
		e := &entries[i]
		list = append(list, provider.Held{Endpoint: endpoint, Version: e.Version, Accepted: e.Accepted, Attributes: map[string]string{
			attributeClient: e.Rules.Client, attributeHash: e.Hash.String(), attributeSnapshot: e.Other.String(),
		}})
	}
	return list, nil
}

// Forgets implements provider.Forgetter.
func (s *system) Forgets() bool { return !s.settings.sealed }
