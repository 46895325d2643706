package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

const defaultWithin = 30 * time.Second

// fixture is an opened target that remembers what must not be seen.
type fixture struct {
	target   Target
	system   provider.System
	topology provider.Topology
	ctx      context.Context //nolint:containedctx // of one test
	cleanups []func()

	mu       sync.Mutex
	next     key.Version
	fence    uint64
	minted   []provider.Version
	secrets  []secret.Value
	seen     strings.Builder // every error there was
	failures []string
	skipped  string
}

// stopped is panicked with where a test cannot go on; only Test.Run recovers it.
type stopped struct{}

// errorf notes a failure; the test goes on. It may be called concurrently.
func (f *fixture) errorf(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.failures) < maxFailures {
		f.failures = append(f.failures, fmt.Sprintf(format, args...))
	}
}

// fatalf notes a failure and ends the test. Only the test's own goroutine calls it.
func (f *fixture) fatalf(format string, args ...any) {
	f.errorf(format, args...)
	panic(stopped{})
}

// skip ends the test: it does not apply to the target.
func (f *fixture) skip(why string) {
	f.skipped = why
	panic(stopped{})
}

// cleanup calls fn at the end of the test, the last one first.
func (f *fixture) cleanup(fn func()) { f.cleanups = append(f.cleanups, fn) }

// attempt calls fn and returns also when it could not go on.
func attempt(fn func()) {
	defer func() {
		if r := recover(); r != nil && r != any(stopped{}) {
			panic(r)
		}
	}()
	fn()
}

func (f *fixture) open() {
	var err error
	if f.topology, err = f.target.Driver.Check(f.target.Config); err != nil {
		f.fatalf("Check: %v", err)
	}
	if f.system, err = f.target.Driver.Open(f.ctx, f.target.Config, f.target.Env); err != nil {
		f.fatalf("Open: %v", err)
	}
	f.cleanup(func() {
		if closer, ok := f.system.(io.Closer); ok {
			if err := closer.Close(); err != nil {
				f.errorf("Close: %v", err)
			}
		}
		f.checkNothingLeaked()
	})
	if f.target.Tidy {
		f.cleanup(f.tidy)
	}
}

// tidy makes every endpoint refuse what the test minted, and forget it where the
// system can, so that nothing is left behind.
func (f *fixture) tidy() {
	for _, v := range f.minted {
		for _, endpoint := range f.endpoints() {
			err := f.eventually(endpoint, func(endpoint string) error { return f.system.Refuse(f.ctx, f.call(), endpoint, v) })
			if err != nil {
				f.errorf("tidy up: Refuse %v at %q: %v; remove it by hand", v.Number, endpoint, err)
			}
		}
		if destroyer, ok := f.system.(provider.Destroyer); ok {
			if err := f.note(destroyer.Destroy(f.ctx, f.call(), v, nil)); err != nil {
				f.errorf("tidy up: Destroy %v: %v; remove it by hand", v.Number, err)
			}
		}
	}
}

// checkNothingLeaked looks for every secret in every error and in the system's logs.
func (f *fixture) checkNothingLeaked() {
	var output []byte
	if f.target.Output != nil {
		output = f.target.Output()
	}
	for _, s := range f.secrets {
		if strings.Contains(f.seen.String(), s.RevealString()) {
			f.errorf("an error contains a secret")
		}
		if strings.Contains(string(output), s.RevealString()) {
			f.errorf("the system's log contains a secret")
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
	v, err := f.tryMint(live...)
	if err != nil {
		f.fatalf("Mint: %v", err)
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
	if errors.Is(err, provider.ErrNoRoom) && f.makeRoom(live) {
		material, err = f.system.Mint(f.ctx, f.call(), request)
	}
	f.mu.Lock()
	f.secrets = append(f.secrets, slices.Collect(maps.Values(material.Secrets))...)
	minted := provider.Version{Number: request.Number, Material: material}
	if err == nil {
		f.minted = append(f.minted, minted)
	}
	f.mu.Unlock()
	return minted, f.note(err)
}

// makeRoom destroys what was minted and is not live, as Keyturn does with versions
// whose time is over before it asks for another. It reports whether there was any.
func (f *fixture) makeRoom(live []provider.Version) (made bool) {
	destroyer, ok := f.system.(provider.Destroyer)
	if !ok {
		return false
	}
	f.mu.Lock()
	minted := slices.Clone(f.minted)
	f.mu.Unlock()
	for _, v := range minted {
		if slices.ContainsFunc(live, func(l provider.Version) bool { return l.Number == v.Number }) {
			continue
		}
		if err := f.note(destroyer.Destroy(f.ctx, f.call(), v, live)); err != nil {
			f.errorf("Destroy %v: %v", v.Number, err)
			continue
		}
		made = true
	}
	return made
}

// everywhere runs fn for every endpoint at the same time, as Keyturn does.
func (f *fixture) everywhere(what string, fn func(endpoint string) error) {
	errs := make([]error, len(f.topology.Endpoints))
	var wg sync.WaitGroup
	for i, endpoint := range f.endpoints() {
		wg.Go(func() { errs[i] = f.eventually(endpoint, fn) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			f.fatalf("%s at %q: %v", what, f.endpoints()[i], err)
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
	f.everywhere("Accept "+v.Number.String(), func(endpoint string) error {
		return f.system.Accept(f.ctx, f.call(), endpoint, v)
	})
}

func (f *fixture) refuse(v provider.Version) {
	f.everywhere("Refuse "+v.Number.String(), func(endpoint string) error {
		return f.system.Refuse(f.ctx, f.call(), endpoint, v)
	})
}

// verdict probes everywhere and wants the same answer at once: what Accept and
// Refuse returned from must hold.
func (f *fixture) verdict(v provider.Version, want provider.Verdict) {
	for _, endpoint := range f.endpoints() {
		got, err := f.system.Probe(f.ctx, f.call(), endpoint, v)
		if f.note(err) != nil {
			f.errorf("Probe %v at %q: %v", v.Number, endpoint, err)
		} else if got != want {
			f.errorf("Probe %v at %q: got %v, want %v", v.Number, endpoint, got, want)
		}
	}
}

// use begins a use at an endpoint; it ends with the test.
func (f *fixture) use(endpoint string, v provider.Version) Use {
	u, err := f.target.Use(f.ctx, endpoint, v)
	if f.note(err) != nil {
		f.fatalf("use %v at %q: %v", v.Number, endpoint, err)
	}
	f.cleanup(func() { _ = u.Close() }) // it may have been ended by then
	return u
}

// usage asks the meter, if there is one.
func (f *fixture) usage(v provider.Version) (provider.Usage, bool) {
	meter, ok := f.system.(provider.Meter)
	if !ok {
		return provider.Usage{}, false
	}
	u, err := meter.Usage(f.ctx, f.call(), v)
	if f.note(err) != nil {
		f.fatalf("Usage %v: %v", v.Number, err)
	}
	return u, true
}

// wantSessions polls until the meter counts n: a system may need a moment to
// notice that a use began or ended.
func (f *fixture) wantSessions(v provider.Version, n int) provider.Usage {
	deadline := time.Now().Add(f.target.Within)
	for {
		u, metered := f.usage(v)
		if !metered || u.Sessions == n {
			return u
		}
		if time.Now().After(deadline) {
			f.fatalf("Usage of %v: got %d sessions %v, want %d", v.Number, u.Sessions, u.Holders, n)
		}
		f.pause()
	}
}

func isConfigError(err error) bool {
	problem := new(provider.ConfigError)
	return errors.As(err, &problem) && problem.Problem != "" && problem.Hint != ""
}
