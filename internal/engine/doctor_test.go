package engine_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

func findings(t *testing.T, w *world, status string) []string {
	t.Helper()
	checks, err := w.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, check := range checks {
		if check.Status == status {
			list = append(list, check.Name+": "+check.Message)
		}
	}
	return list
}

// An examination goes page by page beside rotations that move: what happens
// meanwhile is neither missing nor counted twice.
func TestDoctorBesideRotations(t *testing.T) {
	w := newWorld(t)
	w.Start(t.Context())
	var doc strings.Builder
	const keys = 700
	for i := range keys {
		doc.WriteString(keyDoc(fmt.Sprintf("k%03d", i), "p"))
	}
	w.apply(t, policyDoc("p", "  quarantine: 0s\n"), doc.String())
	var running sync.WaitGroup
	for i := range 6 {
		running.Go(func() {
			for range 3 {
				w.through(t, w.rotate(t, key.Name(fmt.Sprintf("k%03d", 100*i))))
			}
		})
	}
	for range 10 {
		if failed := findings(t, w, "failed"); len(failed) > 0 {
			t.Error(failed)
		}
	}
	running.Wait()
	if ok := findings(t, w, "ok"); !strings.Contains(fmt.Sprint(ok), fmt.Sprintf("histories of %d keys", keys)) || !strings.Contains(fmt.Sprint(ok), "100 %") {
		t.Error(ok)
	}
}

func TestDoctorFindsWhatWasChangedBehindItsBack(t *testing.T) {
	w := withVersion(t)
	if failed := findings(t, w, "failed"); len(failed) > 0 {
		t.Fatal(failed)
	}
	update := func(edit func(tx store.Tx) error) {
		t.Helper()
		if err := w.store.Update(t.Context(), edit); err != nil {
			t.Fatal(err)
		}
	}
	var honest store.Doc
	update(func(tx store.Tx) (err error) {
		if honest, err = tx.Docs.Get(t.Context(), "state", "a"); err != nil {
			return err
		}
		forged := honest
		forged.Body = []byte(strings.Replace(string(forged.Body), `"active"`, `"compromised"`, 1))
		honest.Rev, err = tx.Docs.Put(t.Context(), forged)
		return err
	})
	if failed := findings(t, w, "failed"); len(failed) != 1 || !strings.Contains(failed[0], "history of a") {
		t.Errorf("a forged state: %v", failed)
	}
	update(func(tx store.Tx) error { return tx.Docs.Delete(t.Context(), "state", "a", honest.Rev) })
	if failed := findings(t, w, "failed"); len(failed) != 1 || !strings.Contains(failed[0], "history of a: it has no state") {
		t.Errorf("a state that is gone: %v", failed)
	}
	update(func(tx store.Tx) error {
		honest.Rev = 0
		_, err := tx.Docs.Put(t.Context(), honest)
		return err
	})
	if failed := findings(t, w, "failed"); len(failed) > 0 {
		t.Fatal(failed)
	}
	err := w.Record(t.Context(), alice, audit.Entry{Action: audit.ActionPhase, Key: "a", Rotation: key.RotationID{7}, Event: 3, From: "planned", To: "minting"})
	if failed := findings(t, w, "failed"); err != nil || len(failed) != 1 || !strings.Contains(failed[0], "1 entries stand for none") {
		t.Errorf("an entry that stands for nothing: %v, %v", failed, err)
	}
}
