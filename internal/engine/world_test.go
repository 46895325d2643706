package engine_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/engine/enginetest"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/key"
)

var alice, bob = audit.Actor{ID: "alice", Kind: "user"}, audit.Actor{ID: "bob", Kind: "user"}

type (
	system = enginetest.System
	nobody = enginetest.Nobody
)

func newSystem() *system { return enginetest.NewSystem("one") }

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
	w.config, w.store = enginetest.Config(t, t.TempDir(), w.system)
	w.config.Now = func() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }
	w.config.Poll, w.config.Lease, w.config.EffectTime = 20*time.Millisecond, 600*time.Millisecond, 400*time.Millisecond
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
