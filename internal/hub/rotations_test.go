package hub_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/engine/enginetest"
	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// system is a system in memory with two endpoints. It is what a real system is
// to the engine: it accepts, refuses, can be tried, and counts use.
type system struct {
	mu       sync.Mutex
	accepted map[string]map[string]bool // endpoint, password
	using    map[string]int             // password → sessions
	fail     func(operation string) error
	probes   int
}

func newSystem() *system {
	return &system{accepted: map[string]map[string]bool{"primary": {}, "replica": {}}, using: map[string]int{}}
}

func (s *system) Check(provider.Config) (provider.Topology, error) {
	return provider.Topology{Endpoints: []provider.Endpoint{{Name: "primary"}, {Name: "replica", Region: "west"}}, Capacity: 2}, nil
}

func (s *system) Open(context.Context, provider.Config, provider.Env) (provider.System, error) {
	return s, nil
}

func (s *system) do(operation string) error {
	if s.fail != nil {
		return s.fail(operation)
	}
	return nil
}

func (s *system) Mint(_ context.Context, _ provider.Call, request provider.MintRequest) (provider.Material, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	password := fmt.Sprintf("plaintext-of-%d", request.Number)
	return provider.Material{
		Attributes: map[string]string{"username": fmt.Sprintf("u%d", request.Number%2)},
		Secrets:    map[string]secret.Value{"password": secret.NewString(password)},
	}, s.do("mint")
}

func (s *system) Accept(_ context.Context, _ provider.Call, endpoint string, v provider.Version) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.do("accept"); err != nil {
		return err
	}
	s.accepted[endpoint][v.Material.Secrets["password"].RevealString()] = true
	return nil
}

func (s *system) Refuse(_ context.Context, _ provider.Call, endpoint string, v provider.Version) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.do("refuse"); err != nil {
		return err
	}
	s.accepted[endpoint][v.Material.Secrets["password"].RevealString()] = false
	return nil
}

func (s *system) Probe(_ context.Context, _ provider.Call, endpoint string, v provider.Version) (provider.Verdict, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probes++
	if err := s.do("probe"); err != nil {
		return 0, err
	}
	if s.accepted[endpoint][v.Material.Secrets["password"].RevealString()] {
		return provider.Accepted, nil
	}
	return provider.Refused, nil
}

func (s *system) Usage(_ context.Context, _ provider.Call, v provider.Version) (provider.Usage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return provider.Usage{Sessions: s.using[v.Material.Secrets["password"].RevealString()]}, s.do("usage")
}

// accepts says whether every endpoint accepts the version.
func (s *system) accepts(v key.Version) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	password := fmt.Sprintf("plaintext-of-%d", v)
	return s.accepted["primary"][password] && s.accepted["replica"][password]
}

type world struct {
	engine *engine.Engine
	hub    *hub.Hub
	system *system
	store  *sqlite.Store
	config engine.Config
}

var operator = audit.Actor{ID: "test", Kind: "user"}

const documents = `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: quick}
spec:
  stages:
    - {name: canary, match: 'party.labels.cohort == "canary"', bake: 10ms, ackTimeout: 500ms}
    - {name: rest, bake: 0s, ackTimeout: 500ms}
  drain: {min: 0s, quiet: 0s, max: 1m, every: 100ms}
  quarantine: 200ms
  endQuarantineEarly: true
  emergency: {strategy: replace-first, grace: 500ms}
---
apiVersion: keyturn/v1
kind: Key
metadata: {name: prod/db}
spec: {provider: memory, policy: quick}
`

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{system: newSystem()}
	w.config, w.store = enginetest.Config(t, t.TempDir(), w.system)
	w.node(t)
	t.Cleanup(func() {
		w.hub.Stop()
		w.engine.Stop()
		if err := w.store.Stop(); err != nil {
			t.Error(err)
		}
	})
	result, err := w.engine.Apply(t.Context(), operator, engine.ApplyRequest{Documents: []engine.Document{{Name: "keys.yaml", Content: []byte(documents)}}})
	if err != nil || result.Problems.Err() != nil {
		t.Fatal(err, result.Problems)
	}
	return w
}

// node starts the parts of one server on the store.
func (w *world) node(t *testing.T) {
	t.Helper()
	var err error
	w.hub = hub.New(hub.Config{Logger: w.config.Logger, Now: w.config.Now, Store: w.store})
	w.config.Fleet = w.hub
	if w.engine, err = engine.New(w.config); err != nil {
		t.Fatal(err)
	}
	w.hub.Use(w.engine)
	w.engine.Start(t.Context())
	w.hub.Start(t.Context())
}

// party is a client that applies what it is told and acknowledges it.
func (w *world) party(t *testing.T, id, cohort string, healthy func(key.Version) bool) {
	t.Helper()
	party := engine.PartyRecord{ID: id, Kind: hub.KindAgent, Labels: map[string]string{"cohort": cohort}}
	session, err := w.hub.Connect(t.Context(), operator, party, []engine.Holding{{Key: "prod/db"}})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { cancel(); running.Wait() })
	running.Go(func() {
		using := key.Version(0)
		for {
			deliveries, err := session.Next(ctx, time.Minute)
			if err != nil {
				return
			}
			for _, d := range deliveries {
				outcome := hub.Outcome{Key: d.Key, Epoch: d.Epoch, OK: healthy == nil || healthy(d.Version)}
				if !w.system.accepts(d.Version) {
					t.Errorf("%s was told %v, which is not accepted everywhere", id, d.Version)
				}
				if outcome.OK {
					using = d.Version
				} else {
					outcome.Detail = "health check failed"
				}
				outcome.Using = using
				if err := w.hub.Acknowledge(ctx, id, []hub.Outcome{outcome}); err != nil && ctx.Err() == nil {
					t.Errorf("acknowledge: %v", err)
				}
			}
		}
	})
}

func (w *world) rotate(t *testing.T, request engine.RotateRequest) key.RotationID {
	t.Helper()
	request.Key = "prod/db"
	id, err := w.engine.Rotate(t.Context(), operator, request)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// wait waits until the rotation satisfies until, or has ended.
func (w *world) wait(t *testing.T, id key.RotationID, until func(engine.RotationView) bool) engine.RotationView {
	t.Helper()
	var last engine.RotationView
	enough := errors.New("enough")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := w.engine.WatchRotation(ctx, id, func(view engine.RotationView) error {
		last = view
		if until(view) {
			return enough
		}
		return nil
	})
	if err != nil && !errors.Is(err, enough) {
		t.Fatalf("%v; the rotation is %v, hold %+v, waiting for %+v", err, last.Phase, last.Hold, last.Waiting)
	}
	return last
}

// another is one more server on the same store.
func (w *world) another(t *testing.T) *world {
	t.Helper()
	other := *w
	other.node(t)
	t.Cleanup(func() {
		other.hub.Stop()
		other.engine.Stop()
	})
	return &other
}

func ended(view engine.RotationView) bool { return view.Ended() }

func TestRotationsRunThrough(t *testing.T) {
	w := newWorld(t)
	w.party(t, "a", "canary", nil)
	w.party(t, "b", "rest", nil)
	for n := key.Version(1); n <= 4; n++ {
		view := w.wait(t, w.rotate(t, engine.RotateRequest{Reason: "test"}), ended)
		if view.Phase != rotation.Done || view.To != n {
			t.Fatalf("rotation %d: %v to %v", n, view.Phase, view.To)
		}
		if !w.system.accepts(n) || n > 1 && w.system.accepts(n-1) {
			t.Fatalf("after rotation %d: %v", n, w.system.accepted)
		}
	}
	if _, material, err := w.engine.Reveal(t.Context(), operator, "", "prod/db", 0, key.Current); err != nil || material.Secrets["password"].RevealString() != "plaintext-of-4" {
		t.Errorf("reveal: %v %v", material, err)
	}
	if _, _, err := w.engine.Reveal(t.Context(), operator, "", "prod/db", 1, 0); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("a destroyed version was revealed: %v", err)
	}
}

func TestCanaryFailureRollsBack(t *testing.T) {
	w := newWorld(t)
	w.party(t, "a", "canary", func(v key.Version) bool { return v != 2 })
	w.party(t, "b", "rest", func(v key.Version) bool {
		if v == 2 {
			t.Error("a presenter outside the canary was told")
		}
		return true
	})
	w.wait(t, w.rotate(t, engine.RotateRequest{}), ended)
	view := w.wait(t, w.rotate(t, engine.RotateRequest{}), ended)
	if view.Phase != rotation.RolledBack {
		t.Fatalf("ended as %v", view.Phase)
	}
	if !w.system.accepts(1) || w.system.accepts(2) {
		t.Errorf("accepted: %v", w.system.accepted)
	}
	if view := w.wait(t, w.rotate(t, engine.RotateRequest{}), ended); view.Phase != rotation.Done || view.To != 3 {
		t.Errorf("the next rotation ended as %v to %v", view.Phase, view.To)
	}
}

func TestEmergency(t *testing.T) {
	for _, strategy := range []rotation.Strategy{rotation.ReplaceFirst, rotation.ContainFirst} {
		t.Run(strategy.String(), func(t *testing.T) {
			w := newWorld(t)
			w.wait(t, w.rotate(t, engine.RotateRequest{}), ended)
			view := w.wait(t, w.rotate(t, engine.RotateRequest{Emergency: true, Strategy: strategy, Reason: "leak"}), ended)
			if view.Phase != rotation.Done || view.Kind != rotation.Emergency || w.system.accepts(1) || !w.system.accepts(2) {
				t.Errorf("%v %v, accepted: %v", view.Kind, view.Phase, w.system.accepted)
			}
		})
	}
}

func TestRollbackFromQuarantine(t *testing.T) {
	w := newWorld(t)
	w.party(t, "a", "canary", nil)
	w.party(t, "b", "rest", nil)
	w.wait(t, w.rotate(t, engine.RotateRequest{}), ended)
	id := w.rotate(t, engine.RotateRequest{})
	w.wait(t, id, func(view engine.RotationView) bool { return view.Phase == rotation.Quarantine })
	back, err := w.engine.Rollback(t.Context(), operator, id, "the new one is bad")
	if err != nil {
		t.Fatal(err)
	}
	if view := w.wait(t, back, ended); view.Phase != rotation.Done || view.To != 1 || !w.system.accepts(1) || w.system.accepts(2) {
		t.Errorf("%v to %v, accepted: %v", view.Phase, view.To, w.system.accepted)
	}
}

func TestMintingFails(t *testing.T) {
	w := newWorld(t)
	w.system.fail = func(operation string) error {
		if operation == "mint" {
			return provider.Permanent(errors.New("the key store is out of order"), "call its owner")
		}
		return nil
	}
	view := w.wait(t, w.rotate(t, engine.RotateRequest{}), ended)
	if view.Phase != rotation.Failed {
		t.Fatalf("ended as %v", view.Phase)
	}
	if len(w.system.accepted["primary"]) != 0 {
		t.Errorf("something was accepted: %v", w.system.accepted)
	}
}

func TestLogIsComplete(t *testing.T) {
	w := newWorld(t)
	w.party(t, "a", "canary", nil)
	w.wait(t, w.rotate(t, engine.RotateRequest{}), ended)
	id := w.rotate(t, engine.RotateRequest{})
	w.wait(t, id, ended)
	page, err := w.engine.ReadLog(t.Context(), 0, 1000, engine.LogFilter{Rotation: id})
	if err != nil {
		t.Fatal(err)
	}
	phases := map[string]bool{}
	for _, line := range page.Entries {
		entry, err := audit.Decode([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		if entry.Action == audit.ActionPhase {
			phases[entry.To] = true
		}
	}
	for _, phase := range []string{"planned", "minting", "accepting", "presenting", "draining", "revoking", "quarantine", "destroying", "done"} {
		if !phases[phase] {
			t.Errorf("the log has no entry for phase %s: %v", phase, page.Entries)
		}
	}
}
