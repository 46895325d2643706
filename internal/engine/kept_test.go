package engine_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// TestKeepsThePolicy: a rotation's record and its audit entry name the policy by which
// it began, whose text stays what it was; that of an emergency does as well.
func TestKeepsThePolicy(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("p", "  quarantine: 1h\n"), keyDoc("a", "p"))
	w.Start(t.Context())
	first := w.rotate(t, "a")
	w.through(t, first)
	w.apply(t, policyDoc("p", "  quarantine: 77m\n"))
	second, err := w.Rotate(t.Context(), alice, engine.RotateRequest{Key: "a", Emergency: true})
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]bool{}
	for id, want := range map[key.RotationID]string{first: "1h", second: "1h17m"} {
		view, err := w.Rotation(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		text, err := w.PolicyText(t.Context(), view.Policy)
		sum := sha256.Sum256(text)
		if err != nil || view.Policy.Name != "p" || hex.EncodeToString(sum[:]) != view.Policy.SHA256 || !strings.Contains(string(text), `"quarantine":"`+want+`"`) {
			t.Errorf("%+v: %s, %v", view.Policy, text, err)
		}
		texts[string(text)] = true
		page, err := w.ReadLog(t.Context(), 0, 1000, engine.LogFilter{Rotation: id})
		if err != nil {
			t.Fatal(err)
		}
		begun := 0
		for _, record := range page.Entries {
			entry, err := audit.Decode([]byte(record))
			if err != nil {
				t.Fatal(err)
			}
			if entry.Action == "rotation.begun" {
				begun++
				if entry.Detail["policy-sha256"] != view.Policy.SHA256 || entry.Detail["policy"] != "p" {
					t.Errorf("%+v", entry.Detail)
				}
			}
		}
		if begun != 1 {
			t.Errorf("%d entries say that it began", begun)
		}
	}
	if len(texts) != 2 {
		t.Error("the two rotations began by one policy")
	}
	// The policy of keys that name none has no document, and is kept as well.
	w.apply(t, header+"kind: Key\nmetadata: {name: b}\nspec: {provider: memory}\n")
	view, err := w.Rotation(t.Context(), w.rotate(t, "b"))
	if err != nil {
		t.Fatal(err)
	}
	if text, err := w.PolicyText(t.Context(), view.Policy); err != nil || view.Policy.Name != "default" || !strings.Contains(string(text), `"kind":"Policy"`) || !strings.Contains(string(text), `"name":"default"`) {
		t.Errorf("%+v: %s, %v", view.Policy, text, err)
	}
	if _, err := w.PolicyText(t.Context(), engine.PolicyRef{Name: "p", SHA256: "x"}); !errors.Is(err, engine.ErrNotFound) {
		t.Error(err)
	}
}

// TestNamesWhoIsBehind: an emergency names the parties that do not use its new version,
// while it goes on and after its end, and none of them once they do.
func TestNamesWhoIsBehind(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("p", "  emergency: {strategy: contain-first, grace: 0s}\n  quarantine: 0s\n"), keyDoc("a", "p"))
	w.Start(t.Context())
	w.through(t, w.rotate(t, "a"))
	for _, id := range []string{"web-1", "web-2"} {
		w.attach(t, id, engine.Holding{Key: "a"})
	}
	id, err := w.Rotate(t.Context(), alice, engine.RotateRequest{Key: "a", Emergency: true})
	if err != nil {
		t.Fatal(err)
	}
	behind := func(view engine.RotationView) string { return strings.Join(view.Behind, " ") }
	if view, err := w.Rotation(t.Context(), id); err != nil || behind(view) != "web-1 web-2" || view.BehindTotal != 2 {
		t.Errorf("at its begin: %q %v", behind(view), err)
	}
	w.acknowledge(t, id, "web-1")
	w.wait(t, id, func(view engine.RotationView) bool { return behind(view) == "web-2" })
	w.acknowledge(t, id, "web-2")
	if view := w.wait(t, id, func(view engine.RotationView) bool { return view.BehindTotal == 0 }); len(view.Behind) != 0 {
		t.Error(view.Behind)
	}
}

// acknowledge lets a party say that it uses version 2 of key a, once it is told to.
func (w *world) acknowledge(t *testing.T, id key.RotationID, party string) {
	t.Helper()
	var tell engine.Tell
	w.wait(t, id, func(engine.RotationView) bool {
		var err error
		if tell, _, _, err = w.Assigned(t.Context(), "a", party); err != nil {
			t.Fatal(err)
		}
		return tell.Version == 2
	})
	if err := w.Acknowledge(t.Context(), alice, "a", []rotation.Ack{{ID: party, Epoch: tell.Epoch, OK: true, Using: 2}}); err != nil {
		t.Fatal(err)
	}
}
