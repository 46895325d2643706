package jwks

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/provider"
)

const (
	// askSoonest and askLatest bound how long Keyturn waits before it asks again.
	askSoonest = 100 * time.Millisecond
	askLatest  = time.Second
)

// Accept implements provider.Verifier: the endpoint's set holds the public key, and
// no reader that obeys Cache-Control holds one without it.
func (s *system) Accept(ctx context.Context, call provider.Call, endpoint string, version provider.Version) error {
	return s.change(ctx, call, endpoint, &version, true)
}

// Refuse implements provider.Verifier: the endpoint's set holds the public key no
// more, and no reader that obeys Cache-Control holds one with it.
func (s *system) Refuse(ctx context.Context, call provider.Call, endpoint string, version provider.Version) error {
	return s.change(ctx, call, endpoint, &version, false)
}

func (s *system) change(ctx context.Context, call provider.Call, endpoint string, version *provider.Version, listed bool) error {
	v, err := s.settings.verifier(endpoint)
	if err != nil {
		return err
	}
	change := Change{
		Key: call.Key, Endpoint: endpoint, Version: version.Number, Listed: listed, Fence: call.Fence, Attributes: version.Material.Attributes,
		Issuer: s.settings.issuer, TokenLife: s.settings.tokenLife, CacheLife: s.settings.cacheLife, External: s.settings.external,
		Endpoints: s.settings.endpoints(),
	}
	if v != nil {
		change.Shared, change.From = v.shared, v.from
	}
	standing, err := s.Board.Change(ctx, change)
	if errors.Is(err, ErrTaken) {
		return provider.Permanent(err, "give each key an issuer of its own, for example with the name of the key as path")
	}
	if err != nil {
		return fmt.Errorf("publish at %s: %w", endpoint, err)
	}
	if standing.Arrived {
		return nil
	}
	if v != nil && v.probe != nil && !v.shared {
		// One reader that answers as wanted needs no waiting for its cache.
		s.provoke(ctx, v)
		if verdict, err := s.present(ctx, v, version); err == nil && (verdict == provider.Accepted) == listed {
			return nil
		}
	}
	return s.later(standing)
}

// provoke makes a verifier fetch its set, where its library does so for a key that
// it does not know. Some libraries keep a set for ever otherwise, whatever
// Cache-Control says (go-oidc). What comes of it the next try tells.
func (s *system) provoke(ctx context.Context, v *verifier) {
	stranger, err := s.newStranger()
	if err != nil {
		return
	}
	_, _ = s.present(ctx, v, stranger) // only the next try counts
}

// later says what a change waits for.
func (s *system) later(standing Standing) error {
	after := askLatest
	if !standing.Until.IsZero() {
		after = min(max(standing.Until.Sub(s.Now()), askSoonest), askLatest)
	}
	return provider.Later(after, errors.New("waiting for "+standing.Waiting))
}

// Usage implements provider.Meter: it counts the tokens that have not expired.
func (s *system) Usage(ctx context.Context, call provider.Call, version provider.Version) (provider.Usage, error) {
	if s.settings.external {
		return provider.Usage{}, provider.Hint(
			fmt.Errorf("%w: applications sign with the key themselves, and a token of it may be valid for %v after the last of them has moved on", provider.ErrNoData, s.settings.tokenLife),
			fmt.Sprintf("go on by hand when %v have passed since every application uses the next version; or let the policy do so, with drain.max longer than that and onMax: revoke", s.settings.tokenLife))
	}
	usage, err := s.Board.Tokens(ctx, call.Key, version.Number)
	if err != nil {
		return provider.Usage{}, fmt.Errorf("%w: %w", provider.ErrNoData, err)
	}
	return usage, nil
}

// Held implements provider.Lister.
func (s *system) Held(ctx context.Context, call provider.Call) ([]provider.Held, error) {
	keeper, ok := s.Board.(Keeper)
	if !ok {
		return nil, errors.New("the board does not tell what it holds")
	}
	return keeper.Held(ctx, call.Key)
}

// Destroy implements provider.Destroyer.
func (s *system) Destroy(ctx context.Context, call provider.Call, version provider.Version, _ []provider.Version) error {
	keeper, ok := s.Board.(Keeper)
	if !ok {
		return nil
	}
	return keeper.Drop(ctx, call.Key, version.Number)
}
