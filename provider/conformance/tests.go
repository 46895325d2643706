package conformance

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

func testTopology(f *fixture) {
	if len(f.topology.Endpoints) == 0 {
		f.fatalf("there is no endpoint")
	}
	names := map[string]bool{}
	for _, e := range f.topology.Endpoints {
		if e.Name == "" || names[e.Name] {
			f.errorf("the name %q is empty or there twice", e.Name)
		}
		names[e.Name] = true
	}
	if f.topology.Capacity < 0 || f.topology.Capacity == 1 && !f.topology.Gap {
		f.errorf("capacity is %d without a gap: nothing could ever rotate", f.topology.Capacity)
	}
	again, err := f.target.Driver.Check(f.target.Config)
	if err != nil || !reflect.DeepEqual(again, f.topology) {
		f.errorf("a second Check answers otherwise: %+v, %v", again, err)
	}
}

func testUnknownField(f *fixture) {
	config := maps.Clone(f.target.Config)
	config["noSuchField"] = true
	if _, err := f.target.Driver.Check(config); !isConfigError(f.note(err)) {
		f.errorf("Check: got %v, want a *provider.ConfigError with a problem and a hint", err)
	}
	if _, err := f.target.Driver.Open(f.ctx, config, f.target.Env); f.note(err) == nil {
		f.errorf("Open took a config that Check refuses")
	}
}

func testMint(f *fixture) {
	a, b := f.mint(), f.mint()
	if len(a.Material.Secrets) == 0 {
		f.fatalf("the material has no secret")
	}
	for name, value := range a.Material.Secrets {
		if value.Len() == 0 || value.Equal(b.Material.Secrets[name]) {
			f.errorf("secret %q is empty or the same twice", name)
		}
		for attribute, text := range a.Material.Attributes {
			if text == value.RevealString() {
				f.errorf("attribute %q shows secret %q", attribute, name)
			}
		}
	}
	f.verdict(a, provider.Refused)
}

func testNoRoom(f *fixture) {
	if f.topology.Gap || f.topology.Capacity == 0 {
		f.skip("there is always room")
	}
	var live []provider.Version
	for range f.topology.Capacity {
		live = append(live, f.mint(live...))
	}
	if _, err := f.tryMint(live...); !errors.Is(err, provider.ErrNoRoom) {
		f.errorf("Mint with %d live versions: got %v, want ErrNoRoom", len(live), err)
	}
	if _, err := f.tryMint(live[1:]...); err != nil {
		f.errorf("Mint after one version has gone: %v", err)
	}
}

func testRepeat(f *fixture) {
	v := f.mint()
	for range 2 {
		f.accept(v)
		f.verdict(v, provider.Accepted)
	}
	for range 2 {
		f.refuse(v)
		f.verdict(v, provider.Refused)
	}
}

func testTwoVersions(f *fixture) {
	o := f.mint()
	f.accept(o)
	n := f.mint(o)
	f.accept(n)
	f.verdict(n, provider.Accepted)
	if f.topology.Gap {
		f.verdict(o, provider.Refused)
	} else {
		f.verdict(o, provider.Accepted)
	}
	f.refuse(o)
	f.verdict(o, provider.Refused)
	f.verdict(n, provider.Accepted)
}

// testWrongSecret gives every accepted version a secret of somebody else.
func testWrongSecret(f *fixture) {
	v := f.mint()
	f.accept(v)
	forged := v
	forged.Material.Secrets = map[string]secret.Value{}
	for name := range v.Material.Secrets {
		forged.Material.Secrets[name] = f.mint().Material.Secrets[name]
	}
	f.verdict(forged, provider.Refused)
	f.verdict(v, provider.Accepted)
}

func testUse(f *fixture) {
	o := f.mint()
	f.accept(o)
	if f.target.Use == nil {
		f.usage(o)
		return
	}
	f.wantSessions(o, 0)
	var uses []Use
	for _, endpoint := range f.endpoints() {
		uses = append(uses, f.use(endpoint, o))
	}
	u := f.wantSessions(o, len(uses))
	var at []string
	sum := 0
	for _, h := range u.Holders {
		sum += h.Sessions
		at = append(at, h.Endpoint)
		if h.Address == "" && h.Application == "" {
			f.errorf("nobody is named: %+v", h)
		}
	}
	for _, endpoint := range f.endpoints() {
		if len(u.Holders) > 0 && !slices.Contains(at, endpoint) {
			f.errorf("no holder at %q among %+v", endpoint, u.Holders)
		}
	}
	if sum != u.Sessions {
		f.errorf("the holders have %d sessions, the whole says %d", sum, u.Sessions)
	}

	n := f.mint(o)
	f.accept(n)
	for i, use := range uses {
		if !use.Alive(f.ctx) {
			f.errorf("the use at %q ended when another version was accepted", f.endpoints()[i])
		}
	}
	f.wantSessions(o, len(uses))
	f.refuse(o)
	for i, use := range uses {
		if use.Alive(f.ctx) {
			f.errorf("the use at %q survived Refuse", f.endpoints()[i])
		}
	}
	f.wantSessions(o, 0)
	f.verdict(n, provider.Accepted)
}

func testUseOfOneVersion(f *fixture) {
	if f.target.Use == nil {
		f.skip("the system knows no lasting use")
	}
	o := f.mint()
	f.accept(o)
	n := f.mint(o)
	f.accept(n)
	endpoint := f.endpoints()[0]
	use := f.use(endpoint, n)
	f.wantSessions(n, 1)
	f.wantSessions(o, 0)
	f.refuse(o)
	if !use.Alive(f.ctx) {
		f.errorf("refusing one version ended the use of another")
	}
	if err := use.Close(); err != nil {
		f.errorf("close the use: %v", err)
	}
	f.wantSessions(n, 0)
}

func testRestore(f *fixture) {
	o := f.mint()
	f.accept(o)
	n := f.mint(o)
	f.accept(n)
	f.refuse(o)
	f.accept(o)
	f.verdict(o, provider.Accepted)
	if !f.topology.Gap {
		f.verdict(n, provider.Accepted)
	}
	f.refuse(n)
	f.verdict(n, provider.Refused)
	f.verdict(o, provider.Accepted)
}

// testHeld: a system that lists what it holds tells of every version that is
// accepted at any endpoint, with attributes by which it can be counted and refused
// without its secret, and of none that is refused.
func testHeld(f *fixture) {
	lister, ok := f.system.(provider.Lister)
	if !ok {
		f.skip("the system keeps no note of what it holds")
	}
	accepted := func(v provider.Version) (endpoints int, attributes map[string]string) {
		held, err := lister.Held(f.ctx, f.call())
		if f.note(err) != nil {
			f.fatalf("Held: %v", err)
		}
		for _, h := range held {
			if h.Version == v.Number && h.Accepted {
				endpoints++
				attributes = h.Attributes
			}
		}
		return endpoints, attributes
	}
	v := f.mint()
	f.accept(v)
	n, attributes := accepted(v)
	if n != len(f.endpoints()) {
		f.errorf("%v is accepted at %d endpoints and told of at %d", v.Number, len(f.endpoints()), n)
	}
	f.refuse(provider.Version{Number: v.Number, Material: provider.Material{Attributes: attributes}})
	f.verdict(v, provider.Refused)
	if n, _ := accepted(v); n != 0 {
		f.errorf("%v is refused, and told of at %d endpoints", v.Number, n)
	}
}

// testFence: calls that were made before the fence was raised, and come after, are
// turned away at every endpoint, although nothing was changed meanwhile, for all
// versions that it holds; later ones are not.
func testFence(f *fixture) {
	fencer, ok := f.system.(provider.Fencer)
	if !ok {
		f.skip("the system notes no fence")
	}
	v := f.mint()
	f.accept(v)
	var former *provider.Version // refused already
	if !f.topology.Gap {
		w := f.mint(v)
		f.accept(w)
		f.refuse(w)
		former = &w
	}
	before, late := f.call(), f.call()
	raised := f.call()
	for _, endpoint := range f.endpoints() {
		for _, call := range []provider.Call{raised, raised, before} { // repeated, and one that lowers nothing
			if err := f.note(fencer.Fence(f.ctx, call, endpoint)); err != nil {
				f.fatalf("Fence at %q: %v", endpoint, err)
			}
		}
	}
	f.verdict(v, provider.Accepted)
	f.turnsAway("Refuse "+v.Number.String(), func(ctx context.Context, endpoint string) error { return f.system.Refuse(ctx, late, endpoint, v) })
	f.verdict(v, provider.Accepted)
	if former != nil {
		f.turnsAway("Accept "+former.Number.String(), func(ctx context.Context, endpoint string) error { return f.system.Accept(ctx, late, endpoint, *former) })
		f.verdict(*former, provider.Refused)
	}
	f.refuse(v)
	f.verdict(v, provider.Refused)
	if err := f.note(fencer.Fence(f.ctx, f.call(), "no such endpoint")); err == nil {
		f.errorf("Fence took an unknown endpoint")
	}
}

// turnsAway wants a late call to fail at the first endpoint. One that follows another
// may have nothing to refuse: what counts there is that nothing changes.
func (f *fixture) turnsAway(what string, late func(ctx context.Context, endpoint string) error) {
	for i, endpoint := range f.endpoints() {
		ctx, cancel := context.WithTimeout(f.ctx, min(f.target.Within, time.Second))
		err := f.note(late(ctx, endpoint))
		cancel()
		if i == 0 && err == nil {
			f.errorf("%s at %q succeeded with a smaller fence than was noted", what, endpoint)
		}
	}
}

// testLateRefuse goes round all slots once, so that the last version takes the
// place of the first, and then repeats the refusal of the first.
func testLateRefuse(f *fixture) {
	rounds := max(2, f.topology.Capacity+1)
	if f.topology.Capacity == 0 {
		rounds = 3
	}
	var versions []provider.Version
	var live []provider.Version
	for range rounds {
		v := f.mint(live...)
		f.accept(v)
		if len(live) > 0 {
			f.refuse(live[0])
		}
		live = []provider.Version{v}
		versions = append(versions, v)
	}
	last := live[0]
	var use Use
	if f.target.Use != nil {
		use = f.use(f.endpoints()[0], last)
	}
	for _, v := range versions[:len(versions)-1] {
		f.refuse(v)
		f.verdict(v, provider.Refused)
	}
	f.verdict(last, provider.Accepted)
	if use != nil && !use.Alive(f.ctx) {
		f.errorf("a late Refuse of an old version ended the use of the newest")
	}
}

func testNeverAccepted(f *fixture) {
	o := f.mint()
	f.accept(o)
	n := f.mint(o)
	f.refuse(n)
	f.verdict(n, provider.Refused)
	f.verdict(o, provider.Accepted)
}

// testConcurrency works on two versions at all endpoints at once, as a roll-back
// beside a retirement does.
func testConcurrency(f *fixture) {
	if f.topology.Gap {
		f.skip("there is one version at a time")
	}
	o := f.mint()
	n := f.mint(o)
	both := func(a, b func(provider.Version), v, w provider.Version) {
		var wg sync.WaitGroup
		wg.Go(func() { a(v) })
		wg.Go(func() { b(w) })
		wg.Wait()
	}
	// The helpers call Fatal only on this goroutine's behalf: errors are collected.
	try := func(fn func(ctx context.Context, call provider.Call, endpoint string, v provider.Version) error) func(provider.Version) {
		return func(v provider.Version) {
			var wg sync.WaitGroup
			for _, endpoint := range f.endpoints() {
				wg.Go(func() {
					err := f.eventually(endpoint, func(endpoint string) error { return fn(f.ctx, f.call(), endpoint, v) })
					if err != nil {
						f.errorf("%v at %q: %v", v.Number, endpoint, err)
					}
				})
			}
			wg.Wait()
		}
	}
	accept, refuse := try(f.system.Accept), try(f.system.Refuse)
	both(accept, accept, o, n)
	f.verdict(o, provider.Accepted)
	f.verdict(n, provider.Accepted)
	both(refuse, accept, o, n)
	f.verdict(o, provider.Refused)
	f.verdict(n, provider.Accepted)
	both(accept, refuse, o, n)
	f.verdict(o, provider.Accepted)
	f.verdict(n, provider.Refused)
}

func testUnknownEndpoint(f *fixture) {
	v := f.mint()
	const nowhere = "no such endpoint"
	if err := f.note(f.system.Accept(f.ctx, f.call(), nowhere, v)); err == nil {
		f.errorf("Accept took an unknown endpoint")
	}
	if err := f.note(f.system.Refuse(f.ctx, f.call(), nowhere, v)); err == nil {
		f.errorf("Refuse took an unknown endpoint")
	}
	if verdict, err := f.system.Probe(f.ctx, f.call(), nowhere, v); f.note(err) == nil {
		f.errorf("Probe of an unknown endpoint answers %v", verdict)
	}
}

const (
	deadline = 300 * time.Millisecond
	// slack is what a loaded machine may add to a deadline.
	slack = 3 * time.Second
)

// testDeadline silences one endpoint after the other. Nothing may be said about
// it, and nothing may take longer than the context allows.
func testDeadline(f *fixture) {
	if f.target.Silence == nil {
		f.skip("the target cannot be silenced")
	}
	v := f.mint()
	f.accept(v)
	for _, endpoint := range f.endpoints() {
		restore := f.target.Silence(endpoint)
		operations := map[string]func(context.Context) error{
			"Accept": func(ctx context.Context) error { return f.system.Accept(ctx, f.call(), endpoint, v) },
			"Refuse": func(ctx context.Context) error { return f.system.Refuse(ctx, f.call(), endpoint, v) },
			"Probe": func(ctx context.Context) error {
				verdict, err := f.system.Probe(ctx, f.call(), endpoint, v)
				if err == nil || verdict != 0 {
					f.errorf("Probe of the silent endpoint %q answers %v, %v", endpoint, verdict, err)
				}
				return err
			},
		}
		if meter, ok := f.system.(provider.Meter); ok {
			operations["Usage"] = func(ctx context.Context) error {
				u, err := meter.Usage(ctx, f.call(), v)
				if !errors.Is(err, provider.ErrNoData) {
					f.errorf("Usage with a silent endpoint: got %+v, %v, want ErrNoData", u, err)
				}
				return err
			}
		}
		if preflighter, ok := f.system.(provider.Preflighter); ok {
			operations["Preflight"] = func(ctx context.Context) error {
				_, err := preflighter.Preflight(ctx, f.call(), []provider.Version{v})
				return err
			}
		}
		for name, operation := range operations {
			ctx, cancel := context.WithTimeout(f.ctx, deadline)
			began := time.Now()
			err := f.note(operation(ctx))
			took := time.Since(began)
			cancel()
			if err == nil {
				f.errorf("%s at the silent endpoint %q succeeded", name, endpoint)
			}
			if took > deadline+slack {
				f.errorf("%s at the silent endpoint %q took %v with a deadline of %v", name, endpoint, took, deadline)
			}
		}
		restore()
	}
	// An interrupted call leaves nothing that a repetition does not mend.
	f.accept(v)
	f.verdict(v, provider.Accepted)
}

func testPreflight(f *fixture) {
	preflighter, ok := f.system.(provider.Preflighter)
	if !ok {
		f.skip("the system has no preflight")
	}
	check := func(live ...provider.Version) {
		findings, err := preflighter.Preflight(f.ctx, f.call(), live)
		if f.note(err) != nil {
			f.errorf("Preflight: %v", err)
		}
		for _, finding := range findings {
			if finding.Code == "" || finding.Message == "" {
				f.errorf("a finding says nothing: %+v", finding)
			}
		}
	}
	check()
	v := f.mint()
	f.verdict(v, provider.Refused)
	f.accept(v)
	check(v)
	f.verdict(v, provider.Accepted)
	f.refuse(v)
	check(v)
	f.verdict(v, provider.Refused)
}
