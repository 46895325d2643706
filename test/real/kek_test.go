package real

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/server"
)

// rewrapped waits until a server has brought everything under the primary KEK.
func (w *world) rewrapped(t *testing.T, kek string) {
	t.Helper()
	eventually(t, "everything is under "+kek, func() bool {
		return strings.Contains(w.logs.String(), "everything is under the primary key-encryption key") && strings.Contains(w.logs.String(), "kek="+kek)
	})
}

// envelopes counts what in the store of a stopped server is under each KEK.
func (w *world) envelopes(t *testing.T) map[string]int {
	t.Helper()
	list, counted, err := server.ListKEKs(t.Context(), w.config)
	if err != nil || !counted {
		t.Fatalf("counted %v, %v", counted, err)
	}
	counts := map[string]int{}
	for _, kek := range list {
		counts[kek.ID] = *kek.Envelopes
	}
	return counts
}

// TestKEKRotatesUnderLoad: the key-encryption key is rotated while clients show their
// API keys all the time and a key is rotated; none is refused. Once the old one is
// removed the server starts, with every key, pepper and secret of notices as before,
// and a copy of the file from before opens nothing of it.
func TestKEKRotatesUnderLoad(t *testing.T) {
	w := newAPIKeyWorld(t, apiKeyPolicy, "    keep: sealed\n")
	w.finish(t, w.rotateKey(t, apiKey, "first"), "done")
	list, counted, err := server.ListKEKs(t.Context(), w.config)
	if err != nil || counted || len(list) != 1 {
		t.Fatalf("before: %+v, counted %v, %v", list, counted, err)
	}
	old := list[0].ID
	before, err := os.ReadFile(filepath.Join(w.config.DataDir, "kek.json"))
	if err != nil {
		t.Fatal(err)
	}
	l := &load{}
	for i := range 3 {
		w.caller(t, l, fmt.Sprint("caller-", i))
	}
	l.more(t, 30)
	kek, err := server.AddKEK(t.Context(), w.config, true)
	if err != nil {
		t.Fatal(err)
	}
	w.finish(t, w.rotateKey(t, apiKey, "meanwhile"), "done")
	w.rewrapped(t, kek)
	if err := server.RemoveKEK(t.Context(), w.config, old); err == nil || !strings.Contains(err.Error(), "stop it") {
		t.Errorf("removed while the server runs: %v", err)
	}
	l.more(t, 30)
	l.check(t)
	shown := w.reveal(t, apiKey, 0)
	w.stop(t)

	if counts := w.envelopes(t); counts[old] != 0 || counts[kek] < 4 { // two peppers, the secret of nonces, a version
		t.Fatalf("under the KEKs are %v", counts)
	}
	if err := server.RemoveKEK(t.Context(), w.config, kek); err == nil {
		t.Error("the KEK that everything is under was removed")
	}
	if err := server.RemoveKEK(t.Context(), w.config, old); err != nil {
		t.Fatal(err)
	}
	w.start(t)
	var v verified
	eventually(t, "the server has read the keys", func() bool {
		v, err = w.verify(t.Context(), shown, "test")
		return err == nil
	})
	if !v.Valid || v.Version != 2 {
		t.Errorf("the key after the removal: %+v", v)
	}
	if again := w.reveal(t, apiKey, 0); again != shown {
		t.Error("another key is revealed")
	}
	w.finish(t, w.rotateKey(t, apiKey, "after"), "done")
	w.stop(t)

	// Who has an old copy of the file and the database has nothing.
	if err := os.WriteFile(filepath.Join(w.config.DataDir, "kek.json"), before, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := server.Start(t.Context(), w.config, w.options); !errors.Is(err, server.ErrForeignKeys) {
		t.Errorf("the server started with the old file: %v", err)
		if err == nil {
			w.server = s
			return
		}
	}
}
