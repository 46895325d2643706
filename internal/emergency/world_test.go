package emergency_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/emergency"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/keeper/file"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// system is a system in memory with two endpoints. hook may fail an operation.
type system struct {
	mu       sync.Mutex
	accepted map[string]bool
	hook     func(operation string, name key.Name) error
}

func (s *system) Check(provider.Config) (provider.Topology, error) {
	return provider.Topology{Endpoints: []provider.Endpoint{{Name: "primary"}, {Name: "replica"}}, Capacity: 3}, nil
}

func (s *system) Open(context.Context, provider.Config, provider.Env) (provider.System, error) {
	return s, nil
}

func (s *system) Mint(_ context.Context, call provider.Call, request provider.MintRequest) (provider.Material, error) {
	return provider.Material{Secrets: map[string]secret.Value{"password": secret.NewString(fmt.Sprintf("plaintext of %s %d", call.Key, request.Number))}}, nil
}

func (s *system) do(operation string, call provider.Call) error {
	if s.hook == nil {
		return nil
	}
	return s.hook(operation, call.Key)
}

func (s *system) set(operation string, call provider.Call, endpoint string, v provider.Version, accepted bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.do(operation, call); err != nil {
		return err
	}
	s.accepted[endpoint+v.Material.Secrets["password"].RevealString()] = accepted
	return nil
}

func (s *system) Accept(_ context.Context, call provider.Call, endpoint string, v provider.Version) error {
	return s.set("accept", call, endpoint, v, true)
}

func (s *system) Refuse(_ context.Context, call provider.Call, endpoint string, v provider.Version) error {
	return s.set("refuse", call, endpoint, v, false)
}

func (s *system) Probe(_ context.Context, _ provider.Call, endpoint string, v provider.Version) (provider.Verdict, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.accepted[endpoint+v.Material.Secrets["password"].RevealString()] {
		return provider.Accepted, nil
	}
	return provider.Refused, nil
}

func (s *system) Usage(context.Context, provider.Call, provider.Version) (provider.Usage, error) {
	return provider.Usage{}, nil
}

func (s *system) setHook(hook func(operation string, name key.Name) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

type nobody struct{}

func (nobody) Tell(key.Name, []engine.Tell) {}
func (nobody) Present(key.Name) bool        { return false }
func (nobody) Samples(context.Context, key.Name, key.Version, time.Time) ([]engine.Sample, error) {
	return nil, nil
}
func (nobody) Moved(engine.Moved)         {}
func (nobody) Attempted(engine.Attempted) {}

var alice = audit.Actor{ID: "alice", Kind: "user"}

type world struct {
	*engine.Engine
	*emergency.Service
	store  *sqlite.Store
	system *system
	config emergency.Config
	signer *audit.Signer
	issued []emergency.Token
}

func (w *world) tokens(context.Context) ([]emergency.Token, bool, error) {
	return w.issued, true, nil
}

// inWorld runs a test with an engine under simulated time.
func inWorld(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.Start(t.Context())
		test(t, w)
		w.Stop()
		if err := w.store.Stop(); err != nil {
			t.Error(err)
		}
	})
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{system: &system{accepted: map[string]bool{}}}
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
	if w.signer, err = audit.ParseSigner(signing); err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	w.Engine, err = engine.New(engine.Config{
		Store: w.store, Keeper: keeper, Drivers: map[string]provider.Driver{"memory": w.system}, Signer: w.signer,
		Fleet: nobody{}, Observer: nobody{}, Logger: logger, Now: time.Now, Random: rand.Reader,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.config = emergency.Config{Store: w.store, Engine: w.Engine, Fleet: w.Engine, Tokens: w.tokens, Logger: logger, Now: time.Now, Random: rand.Reader}
	w.Service = emergency.New(w.config)
	return w
}

const policyDoc = `---
apiVersion: keyturn/v1
kind: Policy
metadata: {name: p}
spec:
  stages: [{name: all, bake: 0s, ackTimeout: 500ms, onEmpty: skip}]
  drain: {min: 0s, quiet: 0s, max: 1m, every: 100ms}
  quarantine: 1h
`

func keyDoc(name, labels string) string {
	return "---\napiVersion: keyturn/v1\nkind: Key\nmetadata: {name: " + name + ", labels: {" + labels + "}}\nspec: {provider: memory, policy: p}\n"
}

func (w *world) apply(t *testing.T, documents ...string) {
	t.Helper()
	request := engine.ApplyRequest{}
	for i, source := range documents {
		request.Documents = append(request.Documents, engine.Document{Name: fmt.Sprint(i, ".yaml"), Content: []byte(source)})
	}
	result, err := w.Apply(t.Context(), alice, request)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range result.Problems {
		t.Log(p)
	}
}

// first brings in the first version of keys.
func (w *world) first(t *testing.T, names ...key.Name) {
	t.Helper()
	for _, name := range names {
		id, err := w.Rotate(t.Context(), alice, engine.RotateRequest{Key: name})
		if err != nil {
			t.Fatal(err)
		}
		w.until(t, id, func(r engine.RotationView) bool { return r.Phase == rotation.Done })
	}
}

var errEnough = errors.New("enough")

func (w *world) until(t *testing.T, id key.RotationID, met func(engine.RotationView) bool) {
	t.Helper()
	err := w.WatchRotation(t.Context(), id, func(r engine.RotationView) error {
		if met(r) {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Fatalf("rotation %v does not get there: %v", id, err)
	}
}

// entries returns the audit entries with an action.
func (w *world) entries(t *testing.T, action audit.Action) []audit.Entry {
	t.Helper()
	var list []audit.Entry
	for from := uint64(0); ; {
		page, err := w.ReadLog(t.Context(), from, 1000, engine.LogFilter{})
		if err != nil {
			t.Fatal(err)
		}
		for _, record := range page.Entries {
			entry, err := audit.Decode([]byte(record))
			if err != nil {
				t.Fatal(err)
			}
			if entry.Action == action {
				list = append(list, entry)
			}
		}
		if from = page.Next; from >= page.Size {
			return list
		}
	}
}
