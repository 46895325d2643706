package engine_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/keeper/file"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// TestRewrapMaterials: after the KEK was rotated, and what is sealed rewrapped, the old
// one can go, and every version is what it was. One that cannot be rewrapped is left, and
// said; one that is destroyed meanwhile stays so.
func TestRewrapMaterials(t *testing.T) {
	w := newWorld(t)
	keys, ok := w.config.Keeper.(*file.Keeper)
	if !ok {
		t.Fatalf("the keeper is a %T", w.config.Keeper)
	}
	names := []key.Name{"a", "b", "c"}
	documents := []string{policyDoc("p", "  quarantine: 1h\n")}
	for _, name := range names {
		documents = append(documents, keyDoc(string(name), "p"))
	}
	w.apply(t, documents...)
	w.Start(t.Context())
	secrets := map[string]string{}
	read := func(name key.Name, v key.Version) string {
		t.Helper()
		_, material, err := w.Reveal(t.Context(), alice, "", name, v, 0)
		if err != nil {
			t.Fatal(err)
		}
		return material.Secrets["password"].RevealString()
	}
	for range 2 {
		for _, name := range names {
			w.through(t, w.rotate(t, name))
		}
	}
	for _, name := range names {
		for v := key.Version(1); v <= 2; v++ {
			secrets[fmt.Sprint(name, v)] = read(name, v)
		}
	}
	old := keys.Primary()
	if _, err := keys.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	again, err := keeper.NewRewrapper(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	refuses := errors.New("it cannot be read")
	var destroyed key.Version
	err = engine.RewrapMaterials(t.Context(), w.store, func(ctx context.Context, place keeper.Place, sealed []byte) ([]byte, error) {
		if place.Key == "a" && place.Version == 1 {
			return nil, refuses
		}
		envelope, err := again.Again(ctx, place, sealed)
		if place.Key == "b" && place.Version == 1 && destroyed == 0 {
			destroyed = 1
			err = errors.Join(err, w.store.Update(ctx, func(tx store.Tx) error { return tx.Materials.Delete(ctx, "b", 1) }))
		}
		return envelope, err
	}, 0)
	if !errors.Is(err, refuses) || again.Count() != 5 {
		t.Fatalf("%v, %d were rewrapped", err, again.Count())
	}
	if err := w.store.View(t.Context(), func(tx store.Tx) error { _, err := tx.Materials.Get(t.Context(), "b", 1); return err }); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("what was destroyed is there again: %v", err)
	}
	if err := engine.RewrapMaterials(t.Context(), w.store, again.Again, 0); err != nil || again.Count() != 6 {
		t.Fatalf("again: %v, %d were rewrapped", err, again.Count())
	}
	if err := keys.Remove(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		for v := key.Version(1); v <= 2; v++ {
			if name == "b" && v == 1 {
				continue
			}
			if got := read(name, v); got != secrets[fmt.Sprint(name, v)] {
				t.Errorf("%s %s is %q now", name, v, got)
			}
		}
	}
	w.through(t, w.rotate(t, "c"))
}
