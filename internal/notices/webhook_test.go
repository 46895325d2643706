package notices_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/keeper/file"
	"github.com/keyturn/keyturn/internal/notices"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// keeping is a store with signing secrets, and the time there.
type keeping struct {
	store   store.Store
	journal *journal
	secrets *notices.Secrets
	keys    *file.Keeper
	now     time.Time
}

func newKeeping(t *testing.T) *keeping {
	t.Helper()
	dir := t.TempDir()
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(dir, "keyturn.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() }) // the test ends
	sealing, err := file.Open(file.Config{Path: filepath.Join(dir, "kek.json")})
	if err != nil {
		t.Fatal(err)
	}
	k := &keeping{store: s, journal: &journal{store: s}, keys: sealing, now: time.Now()}
	k.secrets = notices.NewSecrets(notices.SecretsConfig{Store: s, Journal: k.journal, Keeper: sealing, Now: func() time.Time { return k.now }, Random: rand.Reader})
	return k
}

func (k *keeping) show(t *testing.T, name key.Name, renew bool) notices.Shown {
	t.Helper()
	shown, err := k.secrets.Show(t.Context(), audit.Actor{ID: "ann", Kind: "user"}, name, renew)
	if err != nil {
		t.Fatal(err)
	}
	return shown
}

// TestRewrapSecrets: after the KEK was rotated, and what is sealed rewrapped, the old
// one can go, and all secrets are what they were.
func TestRewrapSecrets(t *testing.T) {
	k := newKeeping(t)
	first := k.show(t, "partners/acme", false)
	second := k.show(t, "partners/acme", true)
	other := k.show(t, "partners/other", false)
	old := k.keys.Primary()
	if _, err := k.keys.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	again, err := keeper.NewRewrapper(t.Context(), k.keys)
	if err != nil {
		t.Fatal(err)
	}
	refuses := errors.New("it cannot be read")
	err = notices.RewrapSecrets(t.Context(), k.store, func(ctx context.Context, place keeper.Place, sealed []byte) ([]byte, error) {
		if place.Version == 2 {
			return nil, refuses
		}
		return again.Again(ctx, place, sealed)
	})
	if !errors.Is(err, refuses) || !strings.Contains(err.Error(), "partners/acme") || again.Count() != 1 {
		t.Fatalf("%v, %d were rewrapped", err, again.Count())
	}
	for range 2 {
		if err := notices.RewrapSecrets(t.Context(), k.store, again.Again); err != nil || again.Count() != 3 {
			t.Fatalf("%v, %d were rewrapped", err, again.Count())
		}
	}
	if err := k.keys.Remove(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	list, err := k.secrets.Signing(t.Context(), audit.Actor{ID: "keyturn", Kind: "server"}, "partners/acme")
	if err != nil || len(list) != 2 || !list[0].Equal(second.Secret) || !list[1].Equal(first.Secret) {
		t.Errorf("%d secrets, %v", len(list), err)
	}
	if shown := k.show(t, "partners/other", false); !shown.Secret.Equal(other.Secret) {
		t.Error("another secret")
	}
}

// TestSigningSecrets: each key has its own; while one is replaced both sign, at most
// three do; none is stored in plaintext; making and reading are audited.
func TestSigningSecrets(t *testing.T) {
	k := newKeeping(t)
	signing := func(name key.Name) int {
		t.Helper()
		list, err := k.secrets.Signing(t.Context(), audit.Actor{ID: "keyturn", Kind: "server"}, name)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	if n := signing("partners/acme"); n != 1 {
		t.Fatalf("%d secrets sign at first", n)
	}
	first := k.show(t, "partners/acme", false)
	if again := k.show(t, "partners/acme", false); !again.Secret.Equal(first.Secret) || first.Number != 1 || !first.OldUntil.IsZero() || !strings.HasPrefix(first.Secret.RevealString(), "whsec_") {
		t.Errorf("the first secret: %+v, then %+v", first, again)
	}
	if other := k.show(t, "partners/other", false); other.Secret.Equal(first.Secret) {
		t.Error("two keys have one secret")
	}
	second := k.show(t, "partners/acme", true)
	if second.Secret.Equal(first.Secret) || second.Number != 2 || !second.OldUntil.Equal(k.now.UTC().Add(notices.Overlap)) || signing("partners/acme") != 2 {
		t.Errorf("the second secret: %+v, %d sign", second, signing("partners/acme"))
	}
	for range 3 {
		k.show(t, "partners/acme", true)
	}
	if n := signing("partners/acme"); n != 3 {
		t.Errorf("%d secrets sign after many changes", n)
	}
	k.now = k.now.Add(notices.Overlap)
	if n := signing("partners/acme"); n != 1 {
		t.Errorf("%d secrets sign when the time of the old ones is over", n)
	}
	made, read := 0, 0
	for _, e := range k.journal.entries {
		if e.Action == notices.ActionSecretMade {
			made++
		} else if e.Action == notices.ActionSecretRead {
			read++
		}
	}
	if made != 6 || read != 7 || len(k.journal.entries) != 13 {
		t.Errorf("%d made and %d read, by the log", made, read)
	}
	err := k.store.View(t.Context(), func(tx store.Tx) error {
		docs, err := tx.Index.List(t.Context(), "notice-secret", "", "", 10)
		if len(docs) != 2 || bytes.Contains(docs[0].Body, []byte("whsec_")) || bytes.Contains(docs[0].Body, second.Secret.Reveal()[6:]) {
			t.Errorf("%d documents, or a secret in one", len(docs))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestWebhookIsSigned: a receiver that knows one of the present secrets takes a
// notice, one that knows another key's does not; repeated, it has the same ID.
func TestWebhookIsSigned(t *testing.T) {
	k := newKeeping(t)
	first := k.show(t, "partners/acme", false)
	second := k.show(t, "partners/acme", true)
	foreign := k.show(t, "partners/other", false)
	var ids []string
	status, retry := http.StatusNoContent, ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		for _, known := range []struct {
			shown notices.Shown
			takes bool
		}{{first, true}, {second, true}, {foreign, false}} {
			receiver, err := standardwebhooks.NewWebhook(known.shown.Secret.RevealString())
			if err != nil {
				t.Fatal(err)
			}
			if err := receiver.Verify(body, r.Header); (err == nil) != known.takes {
				t.Errorf("with secret %d: %v", known.shown.Number, err)
			}
			if receiver.Verify(append(bytes.Clone(body), ' '), r.Header) == nil {
				t.Error("a changed notice is taken")
			}
		}
		var event struct {
			Type      string
			Timestamp time.Time
			Data      struct{ Client, Key string }
		}
		if err := json.Unmarshal(body, &event); err != nil || event.Type != "keyturn.apikey.reminder" || event.Timestamp.IsZero() || event.Data.Client != "ACME" || event.Data.Key != "partners/acme" {
			t.Errorf("%s, %v", body, err)
		}
		ids = append(ids, r.Header.Get("webhook-id"))
		w.Header().Set("Retry-After", retry)
		w.WriteHeader(status)
	}))
	defer server.Close()
	hook := notices.NewWebhook(notices.WebhookConfig{Client: server.Client(), Now: func() time.Time { return k.now }, Secrets: func(ctx context.Context, name key.Name) ([]secret.Value, error) {
		return k.secrets.Signing(ctx, audit.Actor{ID: "keyturn", Kind: "server"}, name)
	}})
	message := &notices.Message{Occasion: notices.Reminder, Key: "partners/acme", Client: "ACME", At: k.now}
	send := func(id string) error { return hook.Send(t.Context(), server.URL+"/secret-path", id, message) }
	if err := errors.Join(send("partners/acme@1/a.b"), send("partners/acme@1/a.b"), send("partners/acme@1/c")); err != nil {
		t.Fatal(err)
	}
	if len(ids) != 3 || ids[0] != ids[1] || ids[0] == ids[2] || strings.Contains(ids[0], ".") {
		t.Errorf("IDs: %q", ids)
	}
	status = http.StatusGone
	if err := send("d"); !errors.Is(err, notices.ErrFinal) {
		t.Errorf("gone: %v", err)
	}
	wanted := new(notices.RetryError)
	status, retry = http.StatusTooManyRequests, "90"
	if err := send("e"); !errors.As(err, &wanted) || wanted.After != 90*time.Second {
		t.Errorf("busy: %v", err)
	}
	status, retry = http.StatusServiceUnavailable, k.now.Add(time.Hour).UTC().Format(http.TimeFormat)
	if err := send("f"); !errors.As(err, &wanted) || wanted.After < 59*time.Minute || wanted.After > time.Hour {
		t.Errorf("busy until a time: %v, %v", err, wanted.After)
	}
	server.Close()
	if err := send("g"); err == nil || strings.Contains(err.Error(), "secret-path") {
		t.Errorf("closed: %v", err)
	}
}
