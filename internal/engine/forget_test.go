package engine_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// forgetful is a system whose versions work without their material, unless it keeps
// them.
type forgetful struct {
	*system
	keeps atomic.Bool
}

func (f *forgetful) Open(context.Context, provider.Config, provider.Env) (provider.System, error) {
	return f, nil
}

func (f *forgetful) Forgets() bool { return !f.keeps.Load() }

// forgetWorld has a key with one version, which a user can prove to have.
func forgetWorld(t *testing.T, policy string) (*world, *forgetful) {
	t.Helper()
	w := newWorld(t)
	f := &forgetful{system: w.system}
	w.config.Drivers = map[string]provider.Driver{"memory": f}
	w.Engine = w.another(t)
	w.apply(t, policyDoc("p", policy), keyDoc(string(leakKey), "p"))
	w.Start(t.Context())
	w.through(t, w.rotate(t, leakKey))
	return w, f
}

// kept reports whether the sealed material of a version is in the store.
func (w *world) kept(t *testing.T, v key.Version) bool {
	t.Helper()
	err := w.store.View(t.Context(), func(tx store.Tx) error {
		_, err := tx.Materials.Get(t.Context(), leakKey, v)
		return err
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

// TestForgetOnce: once its user has proven to have a version, its material is gone
// from the store, nobody is shown it, and the log says so once; the version is
// rotated and refused by its attributes alone.
func TestForgetOnce(t *testing.T) {
	t.Parallel()
	w, _ := forgetWorld(t, "  quarantine: 0s\n")
	const user = "apikey/prod/orders/database"
	if _, material, err := w.Reveal(t.Context(), alice, "", leakKey, 1, 0); err != nil || material.Secrets["password"].Len() == 0 || !w.kept(t, 1) {
		t.Fatalf("before it is forgotten: %v", err)
	}
	for range 3 {
		if err := w.Forget(t.Context(), alice, leakKey, 1, user); err != nil {
			t.Fatal(err)
		}
	}
	for _, label := range []key.Label{0, key.Current} {
		v := key.Version(1)
		if label != 0 {
			v = 0
		}
		if _, material, err := w.Reveal(t.Context(), alice, "", leakKey, v, label); err == nil || !strings.Contains(err.Error(), "shown once") || len(material.Secrets) != 0 {
			t.Errorf("after it is forgotten: %d secrets, %v", len(material.Secrets), err)
		}
	}
	if w.kept(t, 1) || w.entries(t, engine.ActionForget) != 1 {
		t.Errorf("its material is kept: %t, %d entries", w.kept(t, 1), w.entries(t, engine.ActionForget))
	}
	w.through(t, w.rotate(t, leakKey))
	if _, material, err := w.Reveal(t.Context(), alice, "", leakKey, 0, key.Current); err != nil || material.Secrets["password"].Len() == 0 || !w.kept(t, 2) {
		t.Errorf("the next version: %v", err)
	}
	if err := w.Forget(t.Context(), alice, leakKey, 7, user); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("a version that does not exist: %v", err)
	}
}

// TestForgetRefuses: material stays in the store while the config keeps it, the policy
// keeps it in escrow, or somebody else must be delivered it.
func TestForgetRefuses(t *testing.T) {
	t.Parallel()
	for what, test := range map[string]struct {
		policy  string
		prepare func(w *world, f *forgetful) error
		reason  string
	}{
		"kept by the config": {"", func(_ *world, f *forgetful) error { f.keeps.Store(true); return nil }, "kept sealed"},
		"escrow":             {"  retain: {destroyAfter: 0s, escrow: true}\n", func(*world, *forgetful) error { return nil }, "escrow"},
		"another presenter": {"", func(w *world, _ *forgetful) error {
			_, err := w.Attach(t.Context(), alice, engine.PartyRecord{ID: "web-1", Kind: "agent"}, []engine.Holding{{Key: leakKey}})
			return err
		}, "delivered to web-1"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w, f := forgetWorld(t, test.policy)
			if err := test.prepare(w, f); err != nil {
				t.Fatal(err)
			}
			err := w.Forget(t.Context(), alice, leakKey, 1, "its-user")
			if !errors.Is(err, engine.ErrState) || !strings.Contains(err.Error(), test.reason) {
				t.Errorf("got %v", err)
			}
			if _, material, err := w.Reveal(t.Context(), alice, "", leakKey, 1, 0); err != nil || material.Secrets["password"].Len() == 0 || !w.kept(t, 1) {
				t.Errorf("its material: %v", err)
			}
			if n := w.entries(t, engine.ActionForget); n != 0 {
				t.Errorf("%d entries", n)
			}
		})
	}
}
