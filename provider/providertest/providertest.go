// Package providertest is the conformance suite of the interface in package
// provider: every provider runs it against the real system it is for.
//
//	func TestConformance(t *testing.T) {
//		providertest.Run(t, func(t *testing.T) providertest.Target { … })
//	}
//
// It checks what Keyturn relies on: that minting has no effect, that accepting
// and refusing can be repeated, that two versions are accepted at the same time
// (or that the gap is admitted), that a probe never guesses, that use is counted
// and named and ends with Refuse, that a refused version can be restored, that a
// late call harms no newer version, that deadlines are kept, that calls for
// different versions and endpoints may run together, and that no secret shows in
// an error or in what the system logs.
//
// The suite imports packages key, secret and provider only, so that providers
// outside this repository can run it. It needs no sleeping: where it waits it
// polls, for at most Target.Within.
package providertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// Target is one real system, fresh for one test: no version was ever accepted
// there. Driver, Config and Key are required.
type Target struct {
	Driver provider.Driver
	Config provider.Config
	Env    provider.Env
	Key    key.Name

	// Use begins a use of version at endpoint that lasts, such as a session, as an
	// application would. Nil says that the system knows no lasting use; then the
	// tests of Usage only call it.
	Use func(ctx context.Context, endpoint string, version provider.Version) (Use, error)

	// Silence makes an endpoint stop answering, in the worst way it can: connections
	// are taken and nothing comes back. restore undoes it and may be called twice.
	// Nil leaves the tests of deadlines out, which a real provider should not.
	Silence func(t *testing.T, endpoint string) (restore func())

	// Output returns everything the system wrote to its logs so far. Nil if it has none.
	Output func(t *testing.T) []byte

	// Within bounds every wait of the suite; 0 means 30 seconds.
	Within time.Duration
}

// Use is one lasting use of a version.
type Use interface {
	// Alive really uses it once more.
	Alive(ctx context.Context) bool
	io.Closer
}

// Run runs the suite. fresh is called once per test, first thing, and cleans up
// by t.Cleanup; it may call t.Parallel.
func Run(t *testing.T, fresh func(t *testing.T) Target) {
	t.Helper()
	for _, test := range []struct {
		name string
		run  func(*testing.T, *fixture)
	}{
		{"Topology", testTopology},
		{"UnknownFieldIsRefused", testUnknownField},
		{"MintHasNoEffect", testMint},
		{"NoRoom", testNoRoom},
		{"AcceptAndRefuseRepeat", testRepeat},
		{"TwoVersions", testTwoVersions},
		{"WrongSecretIsRefused", testWrongSecret},
		{"UseSurvivesUntilRefuse", testUse},
		{"UseOfOneVersionOnly", testUseOfOneVersion},
		{"RestoreAfterRefuse", testRestore},
		{"HeldTellsWhatIsAccepted", testHeld},
		{"LateRefuseHarmsNoNewerVersion", testLateRefuse},
		{"RefuseOfWhatWasNeverAccepted", testNeverAccepted},
		{"Concurrency", testConcurrency},
		{"UnknownEndpoint", testUnknownEndpoint},
		{"DeadlineIsKept", testDeadline},
		{"PreflightChangesNothing", testPreflight},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t, fresh(t))) })
	}
}

const defaultWithin = 30 * time.Second

// fixture is an opened target that remembers what must not be seen.
type fixture struct {
	t        *testing.T
	target   Target
	system   provider.System
	topology provider.Topology
	ctx      context.Context //nolint:containedctx // of one test

	mu      sync.Mutex
	next    key.Version
	fence   uint64
	secrets []secret.Value
	seen    strings.Builder // every error there was
}

func open(t *testing.T, target Target) *fixture {
	t.Helper()
	if target.Within == 0 {
		target.Within = defaultWithin
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*target.Within)
	t.Cleanup(cancel)
	topology, err := target.Driver.Check(target.Config)
	if err != nil {
		t.Fatalf("Check: %v", err)
	}
	system, err := target.Driver.Open(ctx, target.Config, target.Env)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	f := &fixture{t: t, target: target, system: system, topology: topology, ctx: ctx}
	t.Cleanup(func() {
		if closer, ok := system.(io.Closer); ok {
			if err := closer.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		f.checkNothingLeaked()
	})
	return f
}

// checkNothingLeaked looks for every secret in every error and in the system's logs.
func (f *fixture) checkNothingLeaked() {
	var output []byte
	if f.target.Output != nil {
		output = f.target.Output(f.t)
	}
	for _, s := range f.secrets {
		if strings.Contains(f.seen.String(), s.RevealString()) {
			f.t.Error("an error contains a secret")
		}
		if strings.Contains(string(output), s.RevealString()) {
			f.t.Error("the system's log contains a secret")
		}
	}
}

// note remembers an error and passes it on.
func (f *fixture) note(err error) error {
	if err != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		fmt.Fprintf(&f.seen, "%v\n%+v\n%#v\n", err, err, err)
	}
	return err
}

// call is a new call, with a larger fence than any before.
func (f *fixture) call() provider.Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fence++
	return provider.Call{Key: f.target.Key, Rotation: key.NewRotationID(time.Now(), [10]byte{1, 2, 3}), Fence: f.fence}
}

func (f *fixture) endpoints() []string {
	var names []string
	for _, e := range f.topology.Endpoints {
		names = append(names, e.Name)
	}
	return names
}

func (f *fixture) mint(live ...provider.Version) provider.Version {
	f.t.Helper()
	v, err := f.tryMint(live...)
	if err != nil {
		f.t.Fatalf("Mint: %v", err)
	}
	return v
}

func (f *fixture) tryMint(live ...provider.Version) (provider.Version, error) {
	f.mu.Lock()
	f.next++
	request := provider.MintRequest{Number: f.next}
	f.mu.Unlock()
	for _, v := range live {
		v.Material.Secrets = nil
		request.Live = append(request.Live, v)
	}
	material, err := f.system.Mint(f.ctx, f.call(), request)
	f.mu.Lock()
	f.secrets = append(f.secrets, slices.Collect(maps.Values(material.Secrets))...)
	f.mu.Unlock()
	return provider.Version{Number: request.Number, Material: material}, f.note(err)
}

// everywhere runs fn for every endpoint at the same time, as Keyturn does.
func (f *fixture) everywhere(what string, fn func(endpoint string) error) {
	f.t.Helper()
	errs := make([]error, len(f.topology.Endpoints))
	var wg sync.WaitGroup
	for i, endpoint := range f.endpoints() {
		wg.Go(func() { errs[i] = f.eventually(endpoint, fn) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			f.t.Fatalf("%s at %q: %v", what, f.endpoints()[i], err)
		}
	}
}

// eventually repeats fn as Keyturn repeats an effect: until it succeeds, or time
// is up, or the error is permanent.
func (f *fixture) eventually(endpoint string, fn func(endpoint string) error) error {
	deadline := time.Now().Add(f.target.Within)
	for {
		err := f.note(fn(endpoint))
		if err == nil || provider.IsPermanent(err) || time.Now().After(deadline) {
			return err
		}
		f.pause()
	}
}

func (f *fixture) pause() {
	select {
	case <-time.After(20 * time.Millisecond):
	case <-f.ctx.Done():
	}
}

func (f *fixture) accept(v provider.Version) {
	f.t.Helper()
	f.everywhere("Accept "+v.Number.String(), func(endpoint string) error {
		return f.system.Accept(f.ctx, f.call(), endpoint, v)
	})
}

func (f *fixture) refuse(v provider.Version) {
	f.t.Helper()
	f.everywhere("Refuse "+v.Number.String(), func(endpoint string) error {
		return f.system.Refuse(f.ctx, f.call(), endpoint, v)
	})
}

// verdict probes everywhere and wants the same answer at once: what Accept and
// Refuse returned from must hold.
func (f *fixture) verdict(v provider.Version, want provider.Verdict) {
	f.t.Helper()
	for _, endpoint := range f.endpoints() {
		got, err := f.system.Probe(f.ctx, f.call(), endpoint, v)
		if f.note(err) != nil {
			f.t.Errorf("Probe %v at %q: %v", v.Number, endpoint, err)
		} else if got != want {
			f.t.Errorf("Probe %v at %q: got %v, want %v", v.Number, endpoint, got, want)
		}
	}
}

// use begins a use at an endpoint; it ends with the test.
func (f *fixture) use(endpoint string, v provider.Version) Use {
	f.t.Helper()
	u, err := f.target.Use(f.ctx, endpoint, v)
	if f.note(err) != nil {
		f.t.Fatalf("use %v at %q: %v", v.Number, endpoint, err)
	}
	f.t.Cleanup(func() { _ = u.Close() }) // it may have been ended by then
	return u
}

// usage asks the meter, if there is one.
func (f *fixture) usage(v provider.Version) (provider.Usage, bool) {
	f.t.Helper()
	meter, ok := f.system.(provider.Meter)
	if !ok {
		return provider.Usage{}, false
	}
	u, err := meter.Usage(f.ctx, f.call(), v)
	if f.note(err) != nil {
		f.t.Fatalf("Usage %v: %v", v.Number, err)
	}
	return u, true
}

// wantSessions polls until the meter counts n: a system may need a moment to
// notice that a use began or ended.
func (f *fixture) wantSessions(v provider.Version, n int) provider.Usage {
	f.t.Helper()
	deadline := time.Now().Add(f.target.Within)
	for {
		u, metered := f.usage(v)
		if !metered || u.Sessions == n {
			return u
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("Usage of %v: got %d sessions %v, want %d", v.Number, u.Sessions, u.Holders, n)
		}
		f.pause()
	}
}

func isConfigError(err error) bool {
	problem := new(provider.ConfigError)
	return errors.As(err, &problem) && problem.Problem != "" && problem.Hint != ""
}
