// Package conformance is the conformance suite of the interface in package
// provider, for programs: it needs no go test. Package providertest runs the same
// suite in a Go test, "keyturn provider test" against a plugin.
//
// It checks what Keyturn relies on: that minting has no effect, that accepting
// and refusing can be repeated, that two versions are accepted at the same time
// (or that the gap is admitted), that a probe never guesses, that use is counted
// and named and ends with Refuse, that a refused version can be restored, that a
// late call harms no newer version, that deadlines are kept, that calls for
// different versions and endpoints may run together, and that no secret shows in
// an error or in what the system logs.
//
// The suite imports packages key, secret and provider only. It needs no sleeping:
// where it waits it polls, for at most Target.Within. A test ends within three
// times that, if the provider keeps the deadlines it is given.
package conformance

import (
	"context"
	"io"
	"time"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// Target is one real system, fresh for one test: no version of Key was ever
// accepted there. Driver, Config and Key are required.
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
	// Nil leaves the tests of deadlines out.
	Silence func(endpoint string) (restore func())

	// Output returns everything the system wrote to its logs so far. Nil if it has none.
	Output func() []byte

	// Within bounds every wait of the suite; 0 means 30 seconds.
	Within time.Duration

	// First is where the numbers of versions and the fences begin; 0 means 1. A system
	// that goes on to exist is tried with numbers beyond those in use.
	First uint64

	// Tidy refuses and destroys at the end what was minted, where the system goes on
	// to exist.
	Tidy bool
}

// Use is one lasting use of a version.
type Use interface {
	// Alive really uses it once more.
	Alive(ctx context.Context) bool
	io.Closer
}

// Result is the outcome of one test.
type Result struct {
	// Failures say what is wrong; none, and an empty Skipped, mean that it passed.
	Failures []string
	// Skipped says why the test does not apply to the target.
	Skipped string
}

// maxFailures bounds Result.Failures.
const maxFailures = 100

// Test is one test of the suite.
type Test struct {
	// Name is unique and stable; Proves says what holds where it passes.
	Name, Proves string

	run func(*fixture)
}

// Tests returns the suite.
func Tests() []Test {
	return []Test{
		{"Topology", "the endpoints have names, and Check answers the same twice", testTopology},
		{"UnknownFieldIsRefused", "a typing error in the config is no default", testUnknownField},
		{"MintHasNoEffect", "versions differ, and a minted one is not accepted yet", testMint},
		{"NoRoom", "a full system says that it has no room", testNoRoom},
		{"AcceptAndRefuseRepeat", "a repeated call ends in the same state", testRepeat},
		{"TwoVersions", "old and new are accepted at the same time", testTwoVersions},
		{"WrongSecretIsRefused", "a probe really shows the secret", testWrongSecret},
		{"UseSurvivesUntilRefuse", "use is counted and named, and ends with Refuse", testUse},
		{"UseOfOneVersionOnly", "refusing one version ends no use of another", testUseOfOneVersion},
		{"RestoreAfterRefuse", "a refused version can come back", testRestore},
		{"HeldTellsWhatIsAccepted", "the system tells what it holds", testHeld},
		{"FenceTurnsAwayWhatIsLate", "a fence changes nothing but that smaller ones are refused", testFence},
		{"LateRefuseHarmsNoNewerVersion", "a late call harms no newer version", testLateRefuse},
		{"RefuseOfWhatWasNeverAccepted", "refusing what was never accepted succeeds", testNeverAccepted},
		{"Concurrency", "calls for several versions and endpoints run together", testConcurrency},
		{"UnknownEndpoint", "an endpoint that is not there is an error", testUnknownEndpoint},
		{"DeadlineIsKept", "a silent endpoint gets no verdict, and deadlines are kept", testDeadline},
		{"PreflightChangesNothing", "preflight passes and changes nothing", testPreflight},
	}
}

// Run runs the test on the calling goroutine; ctx bounds it.
func (t Test) Run(ctx context.Context, target Target) Result {
	if target.Within == 0 {
		target.Within = defaultWithin
	}
	ctx, cancel := context.WithTimeout(ctx, 2*target.Within)
	defer cancel()
	f := &fixture{target: target, ctx: ctx, next: key.Version(max(target.First, 1) - 1), fence: max(target.First, 1) - 1}
	// What the target's own functions panic with passes through, and cleans up too.
	defer func() {
		for len(f.cleanups) > 0 {
			f.cleanLast()
		}
	}()
	attempt(func() {
		f.open()
		t.run(f)
	})
	for len(f.cleanups) > 0 {
		f.cleanLast()
	}
	return Result{Failures: f.failures, Skipped: f.skipped}
}

// cleanLast takes the last cleanup off the list and calls it.
func (f *fixture) cleanLast() {
	last := len(f.cleanups) - 1
	fn := f.cleanups[last]
	f.cleanups = f.cleanups[:last]
	attempt(fn)
}
