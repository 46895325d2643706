package conformance_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/conformance"
	"github.com/keyturn/keyturn/secret"
)

// flaw is what a vault does wrong. The zero value is nothing.
type flaw struct {
	sameSecret, mintAccepts, noRoomIgnored, refusesOnce, replaces, secretIgnored, neverBack, listsNothing, lateHarms, unknownIsError,
	anyEndpoint, hangs, guesses, preflightClears, leaks,
	fenceClears, fenceLowers, fenceOfRefuse, fenceOfAccept, fenceOfOne bool
}

// vault is a system in memory, with a flaw.
type vault struct {
	flaw

	mu       sync.Mutex
	accepted map[string]secret.Value // by endpoint and number
	refused  map[string]bool
	silent   map[string]bool
	floor    map[string]uint64 // the fence of each endpoint
	hung     bool              // once is enough
}

func (*vault) Check(config provider.Config) (provider.Topology, error) {
	for field := range config {
		if field != "kind" {
			return provider.Topology{}, &provider.ConfigError{Path: field, Problem: "unknown", Hint: "remove it"}
		}
	}
	return provider.Topology{Endpoints: []provider.Endpoint{{Name: "a"}, {Name: "b"}}, Capacity: 3}, nil
}

func (v *vault) Open(_ context.Context, config provider.Config, _ provider.Env) (provider.System, error) {
	_, err := v.Check(config)
	return v, err
}

func at(endpoint string, v key.Version) string { return fmt.Sprint(endpoint, " ", v) }

func (v *vault) Mint(_ context.Context, _ provider.Call, request provider.MintRequest) (provider.Material, error) {
	if len(request.Live) >= 3 && !v.noRoomIgnored {
		return provider.Material{}, provider.ErrNoRoom
	}
	text := rand.Text()
	if v.sameSecret {
		text = "the same for all"
	}
	value := secret.NewString(text)
	if v.mintAccepts {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.accepted[at("a", request.Number)] = value
	}
	return provider.Material{Secrets: map[string]secret.Value{"password": value}}, nil
}

// reach says whether an endpoint can be spoken to.
func (v *vault) reach(ctx context.Context, endpoint string) error {
	if endpoint != "a" && endpoint != "b" && !v.anyEndpoint {
		return errors.New("no such endpoint")
	}
	v.mu.Lock()
	silent := v.silent[endpoint]
	hangs := silent && v.hangs && !v.hung
	v.hung = v.hung || hangs
	v.mu.Unlock()
	if hangs {
		<-time.After(4 * time.Second)
	}
	if silent {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

// Fence notes the fence of an endpoint.
func (v *vault) Fence(ctx context.Context, call provider.Call, endpoint string) error {
	if err := v.reach(ctx, endpoint); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fenceClears {
		clear(v.accepted)
	}
	if !v.fenceOfOne || endpoint == "a" {
		v.floor[endpoint] = max(v.floor[endpoint], call.Fence)
	}
	if v.fenceLowers {
		v.floor[endpoint] = call.Fence
	}
	return nil
}

// late reports whether a call comes after one that has raised the fence.
func (v *vault) late(call provider.Call, endpoint string, ignored bool) error {
	if call.Fence < v.floor[endpoint] && !ignored {
		return errors.New("a later call was here already")
	}
	return nil
}

func (v *vault) Accept(ctx context.Context, call provider.Call, endpoint string, version provider.Version) error {
	if err := v.reach(ctx, endpoint); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.late(call, endpoint, v.fenceOfRefuse); err != nil {
		return err
	}
	if v.neverBack && v.refused[at(endpoint, version.Number)] {
		return nil
	}
	if v.replaces {
		for other := range v.accepted {
			if strings.HasPrefix(other, endpoint) {
				delete(v.accepted, other)
			}
		}
	}
	v.accepted[at(endpoint, version.Number)] = version.Material.Secrets["password"]
	return nil
}

func (v *vault) Refuse(ctx context.Context, call provider.Call, endpoint string, version provider.Version) error {
	if err := v.reach(ctx, endpoint); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.late(call, endpoint, v.fenceOfAccept); err != nil {
		return err
	}
	this := at(endpoint, version.Number)
	_, known := v.accepted[this]
	switch {
	case v.refusesOnce && v.refused[this]:
		return provider.Permanent(errors.New("refused already"), "")
	case v.unknownIsError && !known && !v.refused[this]:
		return provider.Permanent(errors.New("never heard of"), "")
	case v.lateHarms && v.refused[this]:
		clear(v.accepted)
	}
	if v.leaks {
		return provider.Permanent(fmt.Errorf("cannot refuse %s", version.Material.Secrets["password"].RevealString()), "")
	}
	delete(v.accepted, this)
	v.refused[this] = known || v.refused[this]
	return nil
}

func (v *vault) Probe(ctx context.Context, _ provider.Call, endpoint string, version provider.Version) (provider.Verdict, error) {
	if err := v.reach(ctx, endpoint); err != nil {
		if v.guesses {
			return provider.Refused, nil
		}
		return 0, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	value, known := v.accepted[at(endpoint, version.Number)]
	if known && (v.secretIgnored || value.Equal(version.Material.Secrets["password"])) {
		return provider.Accepted, nil
	}
	return provider.Refused, nil
}

func (v *vault) Held(context.Context, provider.Call) ([]provider.Held, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var held []provider.Held
	for this := range v.accepted {
		var endpoint string
		var number uint64
		if _, err := fmt.Sscanf(this, "%s v%d", &endpoint, &number); err != nil {
			return nil, err
		}
		held = append(held, provider.Held{Endpoint: endpoint, Version: key.Version(number), Accepted: true})
	}
	if v.listsNothing {
		return nil, nil
	}
	return held, nil
}

func (v *vault) Preflight(ctx context.Context, _ provider.Call, _ []provider.Version) ([]provider.Finding, error) {
	for _, endpoint := range []string{"a", "b"} {
		if err := v.reach(ctx, endpoint); err != nil {
			return nil, err
		}
	}
	if v.preflightClears {
		v.mu.Lock()
		defer v.mu.Unlock()
		clear(v.accepted)
	}
	return nil, nil
}

func newVault(f flaw) *vault {
	return &vault{flaw: f, accepted: map[string]secret.Value{}, refused: map[string]bool{}, silent: map[string]bool{}, floor: map[string]uint64{}}
}

// run runs the whole suite against vaults with a flaw and returns the names of the
// tests that failed.
func run(t *testing.T, f flaw) (failed []string) {
	t.Helper()
	for _, test := range conformance.Tests() {
		v := newVault(f)
		result := test.Run(t.Context(), conformance.Target{
			Driver: v, Config: provider.Config{"kind": "vault"}, Key: "k", Within: 300 * time.Millisecond, First: 1000,
			Silence: func(endpoint string) func() {
				v.mu.Lock()
				defer v.mu.Unlock()
				v.silent[endpoint] = true
				return func() {
					v.mu.Lock()
					defer v.mu.Unlock()
					delete(v.silent, endpoint)
				}
			},
		})
		if len(result.Failures) > 0 {
			failed = append(failed, test.Name)
		}
		for this := range v.accepted {
			if !strings.Contains(this, "v1") {
				t.Errorf("%s began its numbers elsewhere: %s", test.Name, this)
			}
		}
	}
	return failed
}

// TestSuiteCatches: each test fails for a system that breaks what it proves, and
// none for one that breaks nothing.
func TestSuiteCatches(t *testing.T) {
	t.Parallel()
	if failed := run(t, flaw{}); len(failed) > 0 {
		t.Errorf("nothing is wrong, and %v failed", failed)
	}
	for caught, flaws := range map[string][]flaw{
		"MintHasNoEffect":               {{sameSecret: true}, {mintAccepts: true}},
		"NoRoom":                        {{noRoomIgnored: true}},
		"AcceptAndRefuseRepeat":         {{refusesOnce: true}, {leaks: true}},
		"TwoVersions":                   {{replaces: true}},
		"WrongSecretIsRefused":          {{secretIgnored: true}},
		"RestoreAfterRefuse":            {{neverBack: true}},
		"HeldTellsWhatIsAccepted":       {{listsNothing: true}},
		"FenceTurnsAwayWhatIsLate":      {{fenceClears: true}, {fenceLowers: true}, {fenceOfRefuse: true}, {fenceOfAccept: true}, {fenceOfOne: true}},
		"LateRefuseHarmsNoNewerVersion": {{lateHarms: true}},
		"RefuseOfWhatWasNeverAccepted":  {{unknownIsError: true}},
		"UnknownEndpoint":               {{anyEndpoint: true}},
		"DeadlineIsKept":                {{guesses: true}, {hangs: true}},
		"PreflightChangesNothing":       {{preflightClears: true}},
	} {
		for _, f := range flaws {
			t.Run(caught, func(t *testing.T) {
				t.Parallel()
				if failed := run(t, f); !slices.Contains(failed, caught) {
					t.Errorf("a system with %+v: %s did not catch it; failed: %v", f, caught, failed)
				}
			})
		}
	}
}

// TestTidy: what a test minted is refused at its end.
func TestTidy(t *testing.T) {
	v := newVault(flaw{})
	for _, test := range conformance.Tests() {
		test.Run(t.Context(), conformance.Target{Driver: v, Config: provider.Config{"kind": "vault"}, Key: "k", Within: time.Second, Tidy: true})
		if len(v.accepted) > 0 {
			t.Errorf("%s leaves %d versions that are accepted", test.Name, len(v.accepted))
		}
	}
}
