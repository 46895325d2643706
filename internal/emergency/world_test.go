package emergency_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/emergency"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/engine/enginetest"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/key"
)

var alice = audit.Actor{ID: "alice", Kind: "user"}

type world struct {
	*engine.Engine
	*emergency.Service
	store  *sqlite.Store
	system *enginetest.System
	config emergency.Config
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
	w := &world{system: enginetest.NewSystem("primary", "replica")}
	var config engine.Config
	config, w.store = enginetest.Config(t, t.TempDir(), w.system)
	var err error
	if w.Engine, err = engine.New(config); err != nil {
		t.Fatal(err)
	}
	w.config = emergency.Config{Store: w.store, Engine: w.Engine, Fleet: w.Engine, Tokens: w.tokens, Logger: config.Logger, Now: time.Now, Random: rand.Reader}
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
