package engine_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

const leakKey = key.Name("prod/orders/database")

// leakedWorld has a key with one version, under a policy for leaks.
func leakedWorld(t *testing.T, leaks string) (*world, secret.Value) {
	t.Helper()
	w := newWorld(t)
	w.apply(t, policyDoc("p", "  quarantine: 0s\n  leaks: {onMatch: "+leaks+"}\n"), keyDoc(string(leakKey), "p"))
	w.Start(t.Context())
	w.through(t, w.rotate(t, leakKey))
	_, material, err := w.Reveal(t.Context(), alice, "", leakKey, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	return w, material.Secrets["password"]
}

func everyKey(key.Name) bool { return true }

func (w *world) match(t *testing.T, texts ...string) []engine.LeakMatch {
	t.Helper()
	var candidates []engine.LeakCandidate
	for _, text := range texts {
		candidates = append(candidates, engine.LeakCandidate{Text: secret.NewString(text), Place: "config.env:3"})
	}
	matches, err := w.MatchLeaks(t.Context(), alice, candidates, everyKey)
	if err != nil {
		t.Fatal(err)
	}
	return matches
}

func (w *world) entries(t *testing.T, action audit.Action) int {
	t.Helper()
	page, err := w.ReadLog(t.Context(), 0, 1000, engine.LogFilter{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, entry := range page.Entries {
		if strings.Contains(entry, `"`+string(action)+`"`) {
			n++
		}
	}
	return n
}

func TestLeakStartsAnEmergencyOnce(t *testing.T) {
	t.Parallel()
	w, password := leakedWorld(t, "emergency, strategy: replace-first")
	text := password.RevealString()
	matches := w.match(t, "some other text that is long enough", text)
	if len(matches) != 1 || matches[0].Candidate != 1 || matches[0].Key != leakKey || matches[0].Version != 1 ||
		!matches[0].Live || matches[0].Known || matches[0].Action != policy.LeakEmergency || matches[0].Rotation.IsZero() {
		t.Fatalf("matches %+v", matches)
	}
	again := w.match(t, text)
	if len(again) == 1 && (!again[0].Known || again[0].Rotation != matches[0].Rotation) {
		t.Errorf("found again: %+v", again)
	}
	view := w.wait(t, matches[0].Rotation, func(v engine.RotationView) bool { return v.Ended() })
	if !strings.Contains(view.Reason, "config.env:3") || view.To != 2 {
		t.Errorf("rotation %+v", view.RotationRecord)
	}
	if n := len(w.rotations(t, leakKey)); n != 2 {
		t.Errorf("%d rotations, want the first one and one emergency", n)
	}
	if found, compared := w.entries(t, "leak.found"), w.entries(t, "leaks.compared"); found != 1 || compared != 2 {
		t.Errorf("the log has %d findings and %d comparisons, want 1 and 2", found, compared)
	}
	// Its material is destroyed, and with it what it was recognised by and what became
	// of it.
	eventually(t, "the version is no longer recognised", func() bool { return len(w.match(t, text)) == 0 })
	if err := w.store.View(t.Context(), func(tx store.Tx) error {
		docs, err := tx.Index.List(t.Context(), "leak", "", "", 10)
		if len(docs) != 0 {
			t.Errorf("%d documents of leaks are left", len(docs))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestOpenLeaksComeInPages: however many versions have leaked, each that is open is
// in one page, those that are not in none.
func TestOpenLeaksComeInPages(t *testing.T) {
	t.Parallel()
	w, _ := leakedWorld(t, "page")
	const keys, others = 7, 300
	var documents []string
	for i := range keys {
		documents = append(documents, keyDoc(fmt.Sprintf("prod/many/%02d", i), "p"))
	}
	w.apply(t, documents...)
	for i := range keys {
		w.through(t, w.rotate(t, key.Name(fmt.Sprintf("prod/many/%02d", i))))
	}
	// Versions that were found once and are long gone stand between them.
	err := w.store.Update(t.Context(), func(tx store.Tx) error {
		for i := range keys {
			for n := range others / keys {
				name, version := fmt.Sprintf("prod/many/%02d", i), n+2
				if n == 0 {
					version = 1
				}
				body := fmt.Sprintf(`{"key":%q,"version":%d,"count":1}`, name, version)
				if _, err := tx.Docs.Put(t.Context(), store.Doc{Kind: "leak", Name: fmt.Sprintf("%s@%020d", name, version), Body: []byte(body)}); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for limit := 1; limit <= keys+1; limit++ {
		var names []string
		for after := ""; ; {
			open, next, err := w.OpenLeaks(t.Context(), after, limit)
			if err != nil || len(open) > limit {
				t.Fatalf("%d of at most %d, %v", len(open), limit, err)
			}
			for _, leak := range open {
				names = append(names, string(leak.Key))
			}
			if after = next; after == "" {
				break
			}
		}
		if len(names) != keys || !slices.IsSorted(names) || len(slices.Compact(names)) != keys {
			t.Errorf("in pages of %d: %q", limit, names)
		}
	}
}

func TestLeakWaitsForApproval(t *testing.T) {
	t.Parallel()
	w, password := leakedWorld(t, "approval")
	matches := w.match(t, password.RevealString())
	if len(matches) != 1 || matches[0].Action != policy.LeakApproval {
		t.Fatalf("matches %+v", matches)
	}
	view, err := w.Rotation(t.Context(), matches[0].Rotation)
	if err != nil || view.Plan.Approvals != 1 {
		t.Fatalf("rotation %+v, %v", view, err)
	}
	if err := w.Steer(t.Context(), alice, matches[0].Rotation, engine.SteerApprove, ""); err != nil {
		t.Errorf("whoever found it cannot approve: %v", err)
	}
	w.through(t, matches[0].Rotation)
}

func TestLeakPages(t *testing.T) {
	t.Parallel()
	w, password := leakedWorld(t, "page")
	text := password.RevealString()
	forms := []string{text, "\"" + text + "\" ", base64.StdEncoding.EncodeToString([]byte(text)), strings.ReplaceAll(text, "/", "%2F")}
	for _, form := range forms {
		if matches := w.match(t, form); len(matches) != 1 || matches[0].Action != policy.LeakPage || !matches[0].Rotation.IsZero() {
			t.Errorf("%q: %+v", form, matches)
		}
	}
	open, next, err := w.OpenLeaks(t.Context(), "", 10)
	if err != nil || len(open) != 1 || open[0].Key != leakKey || open[0].Count != len(forms) || next != "" {
		t.Errorf("open leaks %+v, %q, %v", open, next, err)
	}
	// A scanner that does not cover the key learns nothing, and begins nothing.
	hidden, err := w.MatchLeaks(t.Context(), alice, []engine.LeakCandidate{{Text: password}}, func(key.Name) bool { return false })
	if err != nil || len(hidden) != 0 {
		t.Errorf("hidden: %+v, %v", hidden, err)
	}
	if matches := w.match(t, text[:len(text)-1], "short"); len(matches) != 0 {
		t.Errorf("a part matches: %+v", matches)
	}
	if _, err := w.MatchLeaks(t.Context(), alice, make([]engine.LeakCandidate, engine.MaxLeakCandidates+1), everyKey); !errors.Is(err, engine.ErrInvalid) {
		t.Errorf("too many: %v", err)
	}
}

// TestOldVersionsGetFingerprints: versions from before there were fingerprints are
// given some.
func TestOldVersionsGetFingerprints(t *testing.T) {
	t.Parallel()
	w, password := leakedWorld(t, "page")
	w.Stop()
	err := w.store.Update(t.Context(), func(tx store.Tx) error {
		for _, kind := range []string{"leak-fingerprint", "leak-fingerprinted", "leak-backfill"} {
			docs, err := tx.Index.List(t.Context(), kind, "", "", 100)
			if err != nil {
				return err
			}
			for _, doc := range docs {
				if err := tx.Docs.Delete(t.Context(), kind, doc.Name, doc.Rev); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if matches := w.match(t, password.RevealString()); len(matches) != 0 {
		t.Fatalf("recognised without a fingerprint: %+v", matches)
	}
	w.Start(t.Context())
	eventually(t, "it is recognised", func() bool { return len(w.match(t, password.RevealString())) == 1 })
}
