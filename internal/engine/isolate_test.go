package engine_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// sites is a driver of systems on named hosts: config is {hosts: [a, b]}. on, if
// set, runs before every operation at a host and may fail it or hold it up.
type sites struct {
	mu sync.Mutex
	on func(ctx context.Context, call atHost) error
	// calls counts the operations at each host.
	calls map[string]int
}

// atHost is one operation.
type atHost struct {
	key             key.Name
	host, operation string
}

func (s *sites) set(on func(context.Context, atHost) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.on = on
}

func (s *sites) called(host string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[host]
}

func (s *sites) Check(config provider.Config) (provider.Topology, error) {
	topology := provider.Topology{Capacity: 3}
	hosts, _ := config["hosts"].([]any)
	for i, host := range hosts {
		topology.Endpoints = append(topology.Endpoints, provider.Endpoint{Name: fmt.Sprint(host, " ", i), Host: fmt.Sprint(host)})
	}
	return topology, nil
}

func (s *sites) Open(context.Context, provider.Config, provider.Env) (provider.System, error) {
	return &site{system: newSystem(), all: s, places: map[string]*system{}}, nil
}

// site is one opened system; each endpoint remembers for itself.
type site struct {
	*system
	all    *sites
	places map[string]*system
}

func (s *site) place(endpoint string) *system {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	if s.places[endpoint] == nil {
		s.places[endpoint] = newSystem()
	}
	return s.places[endpoint]
}

func (s *site) at(ctx context.Context, call provider.Call, endpoint, operation string) error {
	at := atHost{key: call.Key, operation: operation}
	at.host, _, _ = strings.Cut(endpoint, " ")
	s.all.mu.Lock()
	on := s.all.on
	if s.all.calls == nil {
		s.all.calls = map[string]int{}
	}
	s.all.calls[at.host]++
	s.all.mu.Unlock()
	if on == nil {
		return nil
	}
	return on(ctx, at)
}

func (s *site) Accept(ctx context.Context, call provider.Call, endpoint string, v provider.Version) error {
	if err := s.at(ctx, call, endpoint, "accept"); err != nil {
		return err
	}
	return s.place(endpoint).Accept(ctx, call, endpoint, v)
}

func (s *site) Refuse(ctx context.Context, call provider.Call, endpoint string, v provider.Version) error {
	if err := s.at(ctx, call, endpoint, "refuse"); errors.Is(err, errNothing) {
		return nil // it says so, and does nothing
	} else if err != nil {
		return err
	}
	return s.place(endpoint).Refuse(ctx, call, endpoint, v)
}

func (s *site) Probe(ctx context.Context, call provider.Call, endpoint string, v provider.Version) (provider.Verdict, error) {
	if err := s.at(ctx, call, endpoint, "probe"); err != nil {
		return 0, err
	}
	return s.place(endpoint).Probe(ctx, call, endpoint, v)
}

// errNothing makes a refusal a lie.
var errNothing = errors.New("nothing is done")

func siteDoc(name, policy string, hosts ...string) string {
	return header + "kind: Key\nmetadata: {name: " + name + "}\nspec: {provider: sites, policy: " + policy + ", config: {hosts: [" + strings.Join(hosts, ", ") + "]}}\n"
}

// newSites is a world with systems on named hosts, and times as in production.
func newSites(t *testing.T) (*world, *sites) {
	t.Helper()
	w, all := newWorld(t), &sites{}
	w.config.Drivers = map[string]provider.Driver{"sites": all}
	w.config.Poll, w.config.Lease, w.config.EffectTime = 10*time.Second, 6*time.Second, 20*time.Second
	w.config.Now = time.Now
	w.Engine = w.another(t)
	w.apply(t, policyDoc("p", "  quarantine: 1h\n"))
	return w, all
}

// rotateMany begins rotations of new keys at a host.
func (w *world) rotateMany(t *testing.T, folder string, n int, host string) []key.RotationID {
	t.Helper()
	var names, documents []string
	for i := range n {
		names = append(names, fmt.Sprintf("%s/%04d", folder, i))
		documents = append(documents, siteDoc(names[i], "p", host))
	}
	w.apply(t, strings.Join(documents, ""))
	ids := make([]key.RotationID, n)
	for i, name := range names {
		ids[i] = w.rotate(t, key.Name(name))
	}
	return ids
}

// within waits, in simulated time, until every rotation has cut over, and returns
// how long it took.
func (w *world) within(t *testing.T, limit time.Duration, ids ...key.RotationID) time.Duration {
	t.Helper()
	began := time.Now()
	for _, id := range ids {
		for {
			view, err := w.Rotation(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if view.Phase == rotation.Quarantine || view.Phase == rotation.Done {
				break
			}
			if time.Since(began) > limit || view.Ended() {
				t.Fatalf("after %v %s is %v, hold %+v, waits for %+v", time.Since(began), view.Key, view.Phase, view.Hold, view.Waiting)
			}
			rest(100 * time.Millisecond)
		}
	}
	return time.Since(began)
}

// rest lets simulated time pass.
func rest(d time.Duration) { <-time.After(d) }

func hang(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// However many hosts hang, the rotations at others take no longer than a moment
// more; and the hosts that hang are left alone, but for one call from time to time.
func TestHangingHostsDelayOnlyThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := newSites(t)
		all.set(func(ctx context.Context, call atHost) error {
			if strings.HasPrefix(call.host, "hung") {
				return hang(ctx)
			}
			return nil
		})
		var stuck []key.RotationID
		for host := range 6 {
			name := fmt.Sprint("hung", host)
			stuck = append(stuck, w.rotateMany(t, name, 10, name)...)
		}
		w.Start(t.Context())
		rest(500 * time.Millisecond) // every worker is with a host that hangs
		good := w.rotateMany(t, "good", 20, "good")
		if took := w.within(t, 10*time.Second, good...); took > 2*time.Second {
			t.Errorf("the rotations at the host that answers took %v", took)
		}
		rest(2 * time.Minute)
		if silent := w.Silent(); len(silent) != 6 || silent[0].Name != "hung0" || !strings.Contains(silent[0].Cause, "deadline") {
			t.Errorf("silent targets: %+v", silent)
		}
		before := all.called("hung0")
		rest(10 * time.Minute)
		// Each try takes 20 s and is followed by a pause of 15 to 30 s.
		if n := all.called("hung0") - before; n < 8 || n > 20 {
			t.Errorf("a silent host was asked %d times in 10 minutes", n)
		}
		view, err := w.Rotation(t.Context(), stuck[0])
		if err != nil || view.Hold.Human {
			t.Fatalf("%+v %v", view.Hold, err)
		}
		told := false
		for _, waiting := range view.Waiting {
			told = told || waiting.Reason == "target" && strings.Contains(waiting.Message, "hung0 does not answer since") && !waiting.Until.IsZero()
		}
		if !told {
			t.Errorf("nobody is told what it waits for: %+v", view.Waiting)
		}
		// They are there again, and everything goes on without a human, at the latest
		// when a call that had just begun to hang has ended, and the longest pause.
		all.set(nil)
		if took := w.within(t, 2*time.Minute, stuck...); took > 55*time.Second {
			t.Errorf("it took %v to go on", took)
		}
		if silent := w.Silent(); len(silent) != 0 {
			t.Errorf("still silent: %+v", silent)
		}
	})
}

// Calls that heed no context occupy no worker, are bounded for each host, and
// what they return later is dropped.
func TestCallsThatHeedNoContextAreAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := newSites(t)
		release := make(chan struct{})
		var inside atomic.Int64
		all.set(func(_ context.Context, call atHost) error {
			if call.host == "deaf" {
				inside.Add(1)
				<-release
				inside.Add(-1)
			}
			return nil
		})
		stuck := w.rotateMany(t, "deaf", 40, "deaf")
		w.apply(t, siteDoc("good", "p", "good"))
		w.Start(t.Context())
		rest(time.Minute)
		w.within(t, 10*time.Second, w.rotate(t, "good"))
		rest(time.Hour)
		// Eight were under way when the first was abandoned.
		if n := inside.Load(); n > 8 {
			t.Errorf("%d calls are left to themselves", n)
		}
		if silent := w.Silent(); len(silent) != 1 || silent[0].Abandoned == 0 {
			t.Errorf("silent: %+v", silent)
		}
		all.set(nil)
		close(release)
		w.within(t, 2*time.Minute, stuck...)
		w.Stop()
		if n := inside.Load(); n != 0 {
			t.Errorf("%d calls have not ended", n)
		}
	})
}

// An emergency goes before a thousand rotations that wait for the same host, also
// when all its places are taken by calls that hang.
func TestEmergencyOvertakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := newSites(t)
		w.Start(t.Context())
		w.apply(t, siteDoc("leaked", "p", "db"))
		w.within(t, time.Minute, w.rotate(t, "leaked"))
		w.Stop()
		var slow atomic.Bool
		slow.Store(true)
		all.set(func(ctx context.Context, call atHost) error {
			if call.key != "leaked" && slow.Load() {
				return hang(ctx)
			}
			rest(100 * time.Millisecond)
			return nil
		})
		const many = 1000
		w.rotateMany(t, "scheduled", many, "db")
		w.Engine = w.another(t)
		w.Start(t.Context())
		rest(5 * time.Second)
		id, err := w.Rotate(t.Context(), alice, engine.RotateRequest{Key: "leaked", Emergency: true, Strategy: rotation.ContainFirst})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for {
			state, err := w.Key(t.Context(), "leaked")
			if err != nil {
				t.Fatal(err)
			}
			if slot, ok := state.State.Verifiers[0].Slot(1); !ok || slot.Acceptance == rotation.Refused {
				break
			}
			if time.Since(began) > time.Minute {
				t.Fatal("the compromised version is still accepted")
			}
			rest(10 * time.Millisecond)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v until the compromised version was refused", took)
		}
		for {
			view, err := w.Rotation(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if view.Ended() || view.Phase == rotation.Destroying {
				break
			}
			if time.Since(began) > time.Minute {
				t.Fatalf("the emergency is %v, hold %+v, waits for %+v", view.Phase, view.Hold, view.Waiting)
			}
			rest(10 * time.Millisecond)
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("the emergency took %v", took)
		}
		slow.Store(false)
	})
}

// A rotation whose effects are queued becomes an emergency: they go first from
// then on.
func TestTakenOverRotationOvertakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := newSites(t)
		w.Start(t.Context())
		w.apply(t, siteDoc("leaked", "p", "db"))
		w.within(t, time.Minute, w.rotate(t, "leaked"))
		all.set(func(context.Context, atHost) error { rest(time.Second); return nil })
		w.rotateMany(t, "scheduled", 200, "db")
		id := w.rotate(t, "leaked")
		rest(3 * time.Second)
		// How soon its preflight comes among the others' is chance.
		for began := time.Now(); ; rest(10 * time.Millisecond) {
			view, err := w.Rotation(t.Context(), id)
			if err == nil && view.Phase == rotation.Accepting {
				break
			}
			if err != nil || time.Since(began) > time.Minute {
				t.Fatalf("%v %v", view.Phase, err)
			}
		}
		id, err := w.Rotate(t.Context(), alice, engine.RotateRequest{Key: "leaked", Emergency: true, Compromised: []key.Version{1}})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for {
			view, err := w.Rotation(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if view.Ended() || view.Phase == rotation.Destroying {
				break
			}
			if took := time.Since(began); took > 15*time.Second {
				t.Fatalf("after %v the emergency is %v, waits for %+v", took, view.Phase, view.Waiting)
			}
			rest(10 * time.Millisecond)
		}
		w.Stop()
		rest(time.Second) // its calls have ended
	})
}

// One key's storm of failing effects does not starve the other keys of its host.
func TestStormOfOneKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := newSites(t)
		all.set(func(_ context.Context, call atHost) error {
			rest(10 * time.Millisecond)
			if call.key == "storm" {
				return errors.New("out of memory")
			}
			return nil
		})
		w.apply(t, siteDoc("storm", "p", strings.Split(strings.Repeat("db,", 199)+"db", ",")...))
		w.rotate(t, "storm")
		ids := w.rotateMany(t, "calm", 100, "db")
		w.Start(t.Context())
		// 200 effects at the host for the 100 keys, 8 at once, 10 ms each: a quarter of a
		// second and what is between them, and about as much for the storm.
		if took := w.within(t, time.Minute, ids...); took > 5*time.Second {
			t.Errorf("the other keys took %v", took)
		}
		if all.called("db") < 600 {
			t.Errorf("there was no storm: %d calls", all.called("db"))
		}
	})
}
