package engine_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/keeper/file"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// system is a system in memory with one endpoint. hook runs before every
// operation and may fail it or hold it up.
type system struct {
	mu       sync.Mutex
	accepted map[string]bool
	minted   int
	hook     func(ctx context.Context, operation string) error
	// holders use whatever version is asked for.
	holders []provider.Holder
	// until returns until when uses are told; nil: now.
	until func() time.Time
}

func newSystem() *system { return &system{accepted: map[string]bool{}} }

func (s *system) Check(provider.Config) (provider.Topology, error) {
	return provider.Topology{Endpoints: []provider.Endpoint{{Name: "one"}}, Capacity: 3}, nil
}

func (s *system) Open(context.Context, provider.Config, provider.Env) (provider.System, error) {
	return s, nil
}

func (s *system) setHook(hook func(context.Context, string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

func (s *system) setHolders(holders ...provider.Holder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holders = holders
}

func (s *system) do(ctx context.Context, operation string) error {
	s.mu.Lock()
	hook := s.hook
	s.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(ctx, operation)
}

func (s *system) Mint(ctx context.Context, call provider.Call, request provider.MintRequest) (provider.Material, error) {
	if err := s.do(ctx, "mint"); err != nil {
		return provider.Material{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.minted++
	text := fmt.Sprintf("%s %d try %d", call.Key, request.Number, s.minted)
	return provider.Material{Secrets: map[string]secret.Value{"password": secret.NewString(text)}}, nil
}

func (s *system) set(ctx context.Context, operation string, v provider.Version, accepted bool) error {
	if err := s.do(ctx, operation); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepted[v.Material.Secrets["password"].RevealString()] = accepted
	return nil
}

func (s *system) Accept(ctx context.Context, _ provider.Call, _ string, v provider.Version) error {
	return s.set(ctx, "accept", v, true)
}

func (s *system) Refuse(ctx context.Context, _ provider.Call, _ string, v provider.Version) error {
	return s.set(ctx, "refuse", v, false)
}

func (s *system) Probe(ctx context.Context, _ provider.Call, _ string, v provider.Version) (provider.Verdict, error) {
	if err := s.do(ctx, "probe"); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.accepted[v.Material.Secrets["password"].RevealString()] {
		return provider.Accepted, nil
	}
	return provider.Refused, nil
}

func (s *system) Usage(ctx context.Context, _ provider.Call, _ provider.Version) (provider.Usage, error) {
	s.mu.Lock()
	usage := provider.Usage{Sessions: len(s.holders), Holders: s.holders}
	if s.until != nil {
		usage.Until = s.until()
	}
	s.mu.Unlock()
	return usage, s.do(ctx, "usage")
}

type nobody struct{}

func (nobody) Tell(key.Name, []engine.Tell) {}
func (nobody) Present(key.Name) bool        { return false }
func (nobody) Samples(context.Context, key.Name, key.Version, time.Time) ([]engine.Sample, error) {
	return nil, nil
}
func (nobody) Moved(engine.Moved)         {}
func (nobody) Attempted(engine.Attempted) {}

var alice, bob = audit.Actor{ID: "alice", Kind: "user"}, audit.Actor{ID: "bob", Kind: "user"}

type world struct {
	*engine.Engine
	store  *sqlite.Store
	system *system
	config engine.Config
	// ahead is how far the engine's clock is ahead of the machine's.
	ahead atomic.Int64
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{system: newSystem()}
	dir := t.TempDir()
	var err error
	if w.store, err = sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(dir, "test.db")}); err != nil {
		t.Fatal(err)
	}
	keeper, err := file.Open(file.Config{Path: filepath.Join(dir, "keys", "kek.json")})
	if err != nil {
		t.Fatal(err)
	}
	signing, _, err := audit.GenerateKey(rand.Reader, "keyturn.test/log")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := audit.ParseSigner(signing)
	if err != nil {
		t.Fatal(err)
	}
	w.config = engine.Config{
		Store: w.store, Keeper: keeper, Drivers: map[string]provider.Driver{"memory": w.system}, Signer: signer,
		Fleet: nobody{}, Observer: nobody{}, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Random: rand.Reader,
		Now:  func() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) },
		Poll: 20 * time.Millisecond, Lease: 600 * time.Millisecond, EffectTime: 400 * time.Millisecond,
	}
	w.Engine = w.another(t)
	t.Cleanup(func() {
		w.Stop()
		if err := w.store.Stop(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// another returns an engine on the same store, as another server would be.
func (w *world) another(t *testing.T) *engine.Engine {
	t.Helper()
	e, err := engine.New(w.config)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (w *world) jump(d time.Duration) { w.ahead.Add(int64(d)) }

const header = "---\napiVersion: keyturn/v1\n"

func keyDoc(name, policy string) string {
	return header + "kind: Key\nmetadata: {name: " + name + "}\nspec: {provider: memory, policy: " + policy + "}\n"
}

func policyDoc(name, spec string) string {
	return header + "kind: Policy\nmetadata: {name: " + name + "}\nspec:\n  stages: [{name: all, bake: 0s, ackTimeout: 500ms, onEmpty: skip}]\n" +
		"  drain: {min: 0s, quiet: 0s, max: 1m, every: 100ms}\n" + spec
}

func (w *world) try(t *testing.T, request engine.ApplyRequest, documents ...string) []string {
	t.Helper()
	for i, source := range documents {
		request.Documents = append(request.Documents, engine.Document{Name: fmt.Sprint(i, ".yaml"), Content: []byte(source)})
	}
	result, err := w.Apply(t.Context(), alice, request)
	if err != nil {
		t.Fatal(err)
	}
	codes := []string{}
	for _, p := range result.Problems {
		if p.Severity == policy.Error {
			codes = append(codes, p.Code)
			t.Log(p)
		}
	}
	return codes
}

func (w *world) apply(t *testing.T, documents ...string) {
	t.Helper()
	if codes := w.try(t, engine.ApplyRequest{}, documents...); len(codes) > 0 {
		t.Fatal(codes)
	}
}

func (w *world) rotate(t *testing.T, name key.Name) key.RotationID {
	t.Helper()
	id, err := w.Rotate(t.Context(), alice, engine.RotateRequest{Key: name, Reason: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

var errEnough = errors.New("enough")

func (w *world) wait(t *testing.T, id key.RotationID, until func(engine.RotationView) bool) engine.RotationView {
	t.Helper()
	var last engine.RotationView
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := w.WatchRotation(ctx, id, func(view engine.RotationView) error {
		if last = view; until(view) {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Fatalf("%v; the rotation is %v, hold %+v, waiting for %+v", err, last.Phase, last.Hold, last.Waiting)
	}
	return last
}

// through waits until the cut-over is complete and the old version, if there was
// one, is refused.
func (w *world) through(t *testing.T, id key.RotationID) engine.RotationView {
	t.Helper()
	view := w.wait(t, id, func(view engine.RotationView) bool { return view.Phase == rotation.Quarantine || view.Ended() })
	if view.Ended() && view.Phase != rotation.Done {
		t.Fatalf("ended as %v: %s", view.Phase, view.Reason)
	}
	return view
}

// eventually polls a condition.
func eventually(t *testing.T, what string, met func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(30 * time.Second)
	for !met() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func (w *world) rotations(t *testing.T, name key.Name) []engine.RotationView {
	t.Helper()
	list, err := w.Rotations(t.Context(), name, key.RotationID{}, 100)
	if err != nil {
		t.Fatal(err)
	}
	return list
}
