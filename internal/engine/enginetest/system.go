package enginetest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// System is a system in memory, and the driver that opens it. It takes three versions
// at a time. Its methods may be called concurrently.
type System struct {
	endpoints []string

	mu      sync.Mutex
	known   map[string][]known // by endpoint
	minted  int
	hook    Hook
	holders []provider.Holder
	until   func() time.Time
}

// known is a password that was accepted or refused.
type known struct {
	password secret.Value
	accepted bool
}

// Hook is called before an operation, "mint", "accept", "refuse", "probe" or "usage",
// and may fail it or hold it up.
type Hook func(ctx context.Context, operation string, name key.Name) error

// NewSystem returns a system with endpoints of these names.
func NewSystem(endpoints ...string) *System {
	return &System{endpoints: endpoints, known: map[string][]known{}}
}

// SetHook sets what is called before every operation; nil: nothing.
func (s *System) SetHook(hook Hook) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

// SetHolders sets who uses whatever version is asked for.
func (s *System) SetHolders(holders ...provider.Holder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holders = holders
}

// SetUntil sets until when uses are told; nil: now.
func (s *System) SetUntil(until func() time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until = until
}

// Check implements provider.Driver.
func (s *System) Check(provider.Config) (provider.Topology, error) {
	topology := provider.Topology{Capacity: 3}
	for _, name := range s.endpoints {
		topology.Endpoints = append(topology.Endpoints, provider.Endpoint{Name: name})
	}
	return topology, nil
}

// Open implements provider.Driver.
func (s *System) Open(context.Context, provider.Config, provider.Env) (provider.System, error) {
	return s, nil
}

func (s *System) do(ctx context.Context, operation string, name key.Name) error {
	s.mu.Lock()
	hook := s.hook
	s.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(ctx, operation, name)
}

// Mint implements provider.System. Every try makes another secret, called password.
func (s *System) Mint(ctx context.Context, call provider.Call, request provider.MintRequest) (provider.Material, error) {
	if err := s.do(ctx, "mint", call.Key); err != nil {
		return provider.Material{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.minted++
	text := fmt.Sprintf("%s %d try %d", call.Key, request.Number, s.minted)
	return provider.Material{Secrets: map[string]secret.Value{"password": secret.NewString(text)}}, nil
}

func (s *System) set(endpoint string, v provider.Version, accepted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	password := v.Material.Secrets["password"]
	others := slices.DeleteFunc(s.known[endpoint], func(k known) bool { return k.password.Equal(password) })
	s.known[endpoint] = append(others, known{password, accepted})
}

// Reset makes the system accept, of all passwords that it has seen, those that accepts
// names.
func (s *System) Reset(accepts func(password secret.Value) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, list := range s.known {
		for i := range list {
			list[i].accepted = accepts(list[i].password)
		}
	}
}

// Accept implements provider.System.
func (s *System) Accept(ctx context.Context, call provider.Call, endpoint string, v provider.Version) error {
	err := s.do(ctx, "accept", call.Key)
	if err == nil {
		s.set(endpoint, v, true)
	}
	return err
}

// Refuse implements provider.System.
func (s *System) Refuse(ctx context.Context, call provider.Call, endpoint string, v provider.Version) error {
	err := s.do(ctx, "refuse", call.Key)
	if err == nil {
		s.set(endpoint, v, false)
	}
	return err
}

// Probe implements provider.System.
func (s *System) Probe(ctx context.Context, call provider.Call, endpoint string, v provider.Version) (provider.Verdict, error) {
	if err := s.do(ctx, "probe", call.Key); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	password := v.Material.Secrets["password"]
	if slices.ContainsFunc(s.known[endpoint], func(k known) bool { return k.accepted && k.password.Equal(password) }) {
		return provider.Accepted, nil
	}
	return provider.Refused, nil
}

// Usage implements provider.Meter.
func (s *System) Usage(ctx context.Context, call provider.Call, _ provider.Version) (provider.Usage, error) {
	s.mu.Lock()
	usage := provider.Usage{Sessions: len(s.holders), Holders: s.holders}
	if s.until != nil {
		usage.Until = s.until()
	}
	s.mu.Unlock()
	return usage, s.do(ctx, "usage", call.Key)
}
