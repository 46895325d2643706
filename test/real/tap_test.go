package real

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keyturn/keyturn/internal/provider/postgres"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// point is a moment in the life of an effect: just before it is carried out, or
// just after, when nothing about it is recorded yet.
type point struct {
	op       string // "preflight", "mint", "accept", "probe", "refuse", "usage" or "destroy"
	endpoint string
	version  key.Version
	after    bool
}

// gate is asked at every point; its error takes the place of the effect's.
type gate func(context.Context, point) error

// tap is the driver for PostgreSQL, and remembers what it minted. A test can
// stand at its gate.
type tap struct {
	provider.Driver

	mu     sync.Mutex
	gate   gate
	minted []provider.Version
	count  map[point]int
	// lying is what the system only says that it does.
	lying string
	// deaf is the call that the system carries out although it was given up.
	deaf atomic.Pointer[point]
}

func newTap() *tap { return &tap{Driver: postgres.New(), count: map[point]int{}} }

// Open implements provider.Driver.
func (d *tap) Open(ctx context.Context, config provider.Config, env provider.Env) (provider.System, error) {
	system, err := d.Driver.Open(ctx, config, env)
	if err != nil {
		return nil, err
	}
	return &tapped{System: system, tap: d}, nil
}

// stand puts somebody at the gate, until the next call; nil takes it away.
func (d *tap) stand(g gate) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gate = g
}

// calls is how often something was begun.
func (d *tap) calls(p point) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.count[p]
}

// material is what a version consists of. It fails the test for one that was
// never minted.
func (d *tap) material(t *testing.T, v key.Version) provider.Material {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	// The last counts: minting may have been repeated before it was stored.
	for i := len(d.minted) - 1; i >= 0; i-- {
		if d.minted[i].Number == v {
			return d.minted[i].Material
		}
	}
	t.Fatalf("%v was never minted", v)
	return provider.Material{}
}

// passwords are all that were ever minted.
func (d *tap) passwords() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []string
	for _, v := range d.minted {
		all = append(all, v.Material.Secrets["password"].RevealString())
	}
	return all
}

func (d *tap) pass(ctx context.Context, p point, do func() error) error {
	d.mu.Lock()
	d.count[p]++
	d.mu.Unlock()
	if err := d.ask(ctx, p); err != nil {
		return err
	}
	d.mu.Lock()
	lies := d.lying == p.op
	d.mu.Unlock()
	if lies {
		return nil
	}
	if err := do(); err != nil {
		return err
	}
	p.after = true
	return d.ask(ctx, p)
}

// heard is the context that the system heeds at a point. How a call ended that did not heed
// it goes to standard error: the server waits for it no more.
func (d *tap) heard(ctx context.Context, p point) (_ context.Context, late func(error) error) {
	if deaf := d.deaf.Load(); deaf == nil || *deaf != p || !d.deaf.CompareAndSwap(deaf, nil) {
		return ctx, func(err error) error { return err }
	}
	return context.WithoutCancel(ctx), func(err error) error {
		fmt.Fprintln(os.Stderr, "the late call ended:", err)
		return err
	}
}

func (d *tap) ask(ctx context.Context, p point) error {
	d.mu.Lock()
	g := d.gate
	d.mu.Unlock()
	if g == nil {
		return nil
	}
	return g(ctx, p)
}

// tapped is a system of the tap.
type tapped struct {
	provider.System
	tap *tap
}

var (
	_ provider.Meter       = (*tapped)(nil)
	_ provider.Preflighter = (*tapped)(nil)
	_ provider.Destroyer   = (*tapped)(nil)
	_ provider.Lister      = (*tapped)(nil)
	_ provider.Fencer      = (*tapped)(nil)
)

// Fence implements provider.Fencer.
func (s *tapped) Fence(ctx context.Context, call provider.Call, endpoint string) error {
	return s.System.(provider.Fencer).Fence(ctx, call, endpoint)
}

// Held implements provider.Lister.
func (s *tapped) Held(ctx context.Context, call provider.Call) ([]provider.Held, error) {
	return s.System.(provider.Lister).Held(ctx, call)
}

// Mint implements provider.Issuer.
func (s *tapped) Mint(ctx context.Context, call provider.Call, request provider.MintRequest) (material provider.Material, err error) {
	err = s.tap.pass(ctx, point{op: "mint", version: request.Number}, func() error {
		if material, err = s.System.Mint(ctx, call, request); err != nil {
			return err
		}
		s.tap.mu.Lock()
		defer s.tap.mu.Unlock()
		s.tap.minted = append(s.tap.minted, provider.Version{Number: request.Number, Material: material})
		return nil
	})
	return material, err
}

// Accept implements provider.Verifier.
func (s *tapped) Accept(ctx context.Context, call provider.Call, endpoint string, version provider.Version) error {
	here := point{op: "accept", endpoint: endpoint, version: version.Number}
	return s.tap.pass(ctx, here, func() error {
		ctx, late := s.tap.heard(ctx, here)
		return late(s.System.Accept(ctx, call, endpoint, version))
	})
}

// Refuse implements provider.Verifier.
func (s *tapped) Refuse(ctx context.Context, call provider.Call, endpoint string, version provider.Version) error {
	here := point{op: "refuse", endpoint: endpoint, version: version.Number}
	return s.tap.pass(ctx, here, func() error {
		ctx, late := s.tap.heard(ctx, here)
		return late(s.System.Refuse(ctx, call, endpoint, version))
	})
}

// Probe implements provider.Verifier.
func (s *tapped) Probe(ctx context.Context, call provider.Call, endpoint string, version provider.Version) (verdict provider.Verdict, err error) {
	err = s.tap.pass(ctx, point{op: "probe", endpoint: endpoint, version: version.Number}, func() error {
		verdict, err = s.System.Probe(ctx, call, endpoint, version)
		return err
	})
	return verdict, err
}

// Usage implements provider.Meter.
func (s *tapped) Usage(ctx context.Context, call provider.Call, version provider.Version) (usage provider.Usage, err error) {
	err = s.tap.pass(ctx, point{op: "usage", version: version.Number}, func() error {
		usage, err = s.System.(provider.Meter).Usage(ctx, call, version)
		return err
	})
	return usage, err
}

// Preflight implements provider.Preflighter.
func (s *tapped) Preflight(ctx context.Context, call provider.Call, live []provider.Version) (findings []provider.Finding, err error) {
	err = s.tap.pass(ctx, point{op: "preflight"}, func() error {
		findings, err = s.System.(provider.Preflighter).Preflight(ctx, call, live)
		return err
	})
	return findings, err
}

// Destroy implements provider.Destroyer. PostgreSQL holds nothing of its own
// that would have to be destroyed; it is a moment at the gate.
func (s *tapped) Destroy(ctx context.Context, _ provider.Call, version provider.Version, _ []provider.Version) error {
	return s.tap.pass(ctx, point{op: "destroy", version: version.Number}, func() error { return nil })
}

// at returns a gate that stops the first effect at p until release is called, or
// the effect is given up. reached is closed when it has come.
func at(p point) (g gate, reached <-chan struct{}, release func()) {
	come, gone := make(chan struct{}), make(chan struct{})
	var once, free sync.Once
	g = func(ctx context.Context, here point) error {
		if here != p {
			return nil
		}
		once.Do(func() { close(come) })
		select {
		case <-gone:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return g, come, func() { free.Do(func() { close(gone) }) }
}

// await waits for a channel to be closed.
func await(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case <-c:
	case <-ctx.Done():
		t.Fatalf("it did not happen: %s", what)
	}
}
