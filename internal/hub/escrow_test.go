package hub_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
)

// TestEscrowKeepsMaterial ends a version under a policy with escrow: it is
// accepted nowhere, and its sealed material can still be revealed by its number.
func TestEscrowKeepsMaterial(t *testing.T) {
	w := newWorld(t)
	escrow := strings.Replace(documents, "  quarantine: 200ms", "  quarantine: 200ms\n  retain: {destroyAfter: 0s, escrow: true}", 1)
	result, err := w.engine.Apply(t.Context(), operator, engine.ApplyRequest{Documents: []engine.Document{{Name: "keys.yaml", Content: []byte(escrow)}}})
	if err != nil || result.Problems.Err() != nil {
		t.Fatal(err, result.Problems)
	}
	for range 2 {
		if view := w.wait(t, w.rotate(t, engine.RotateRequest{}), ended); view.Phase != rotation.Done {
			t.Fatalf("ended as %v", view.Phase)
		}
	}
	if w.system.accepts(1) {
		t.Error("the version in escrow is accepted")
	}
	if _, material, err := w.engine.Reveal(t.Context(), operator, "", "prod/db", 1, 0); err != nil || material.Secrets["password"].RevealString() != "plaintext-of-1" {
		t.Errorf("reveal from escrow: %v", err)
	}
	view, err := w.engine.Key(t.Context(), "prod/db")
	if err != nil || view.Versions[0].Escrowed.IsZero() || !view.Versions[0].Destroyed.IsZero() {
		t.Errorf("%+v, %v", view.Versions, err)
	}
	if _, _, err := w.engine.Reveal(t.Context(), operator, "", "prod/db", 9, 0); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("an unknown version: %v", err)
	}
}
