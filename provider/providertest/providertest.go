// Package providertest is the conformance suite of the interface in package
// provider: every provider runs it against the real system it is for.
//
//	func TestConformance(t *testing.T) {
//		providertest.Run(t, func(t *testing.T) providertest.Target { … })
//	}
//
// FuzzConfig fuzzes what a driver makes of configs.
//
// The tests, and what they prove, are those of package conformance; this package
// runs them in a Go test. It imports packages key, secret, provider and
// conformance only, so that providers outside this repository can use it.
package providertest

import (
	"context"
	"testing"
	"time"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/conformance"
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
type Use = conformance.Use

// Run runs the suite. fresh is called once per test, first thing, and cleans up
// by t.Cleanup; it may call t.Parallel.
func Run(t *testing.T, fresh func(t *testing.T) Target) {
	t.Helper()
	for _, test := range conformance.Tests() {
		t.Run(test.Name, func(t *testing.T) {
			target := fresh(t)
			result := test.Run(t.Context(), target.of(t))
			for _, failure := range result.Failures {
				t.Error(failure)
			}
			if result.Skipped != "" {
				t.Skip(result.Skipped)
			}
		})
	}
}

// of returns the target for the suite, within a test.
func (target *Target) of(t *testing.T) conformance.Target {
	same := conformance.Target{
		Driver: target.Driver, Config: target.Config, Env: target.Env, Key: target.Key, Use: target.Use, Within: target.Within,
	}
	if target.Silence != nil {
		same.Silence = func(endpoint string) func() { return target.Silence(t, endpoint) }
	}
	if target.Output != nil {
		same.Output = func() []byte { return target.Output(t) }
	}
	return same
}
