package real

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/apikeycheck"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/gateway/snapshot"
	"github.com/keyturn/keyturn/internal/keeper/file"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/secret"
)

// fullDisk is a cache that can be made to fail.
type fullDisk struct {
	apikeycheck.Cache
	full atomic.Bool
}

func (c *fullDisk) Update(ctx context.Context, records ...apikeycheck.Record) error {
	if c.full.Load() {
		return errors.New("the disk is full")
	}
	return c.Cache.Update(ctx, records...)
}

// cachedVerifier is a verifier with a cache.
type cachedVerifier struct {
	checker *apikeycheck.Checker
	cache   *fullDisk
	store   *sqlite.Store
}

// cachedVerifier starts a verifier whose cache is in the world's folder.
func (w *world) cachedVerifier(t *testing.T, token string) *cachedVerifier {
	t.Helper()
	folder := filepath.Join(w.dir, "edge")
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(folder, "cache.db")})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := file.Open(file.Config{Path: filepath.Join(folder, "keys.json")})
	if err != nil {
		t.Fatal(err)
	}
	e := &cachedVerifier{store: s, cache: &fullDisk{Cache: snapshot.New(snapshot.Config{Store: s, Keeper: keys})}}
	e.checker, err = apikeycheck.Open(t.Context(), apikeycheck.Config{
		Address: w.address(), Token: client.StaticToken(secret.NewString(token)), RootCAs: w.roots, Name: "edge", Cache: e.cache, ReportEvery: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// kill ends a verifier after which nothing more is written.
func (e *cachedVerifier) kill(t *testing.T) {
	t.Helper()
	if err := e.store.Stop(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = e.checker.Close(ctx) // it was killed
}

// TestVerifierRestarts: a verifier that is killed lets in after its restart, while there
// is no server, what it did before. While it cannot keep what it was told, a leaked key
// is refused at once, but an emergency waits for it by name; and once that is done, no
// restart lets the leaked key in.
func TestVerifierRestarts(t *testing.T) {
	w := newAPIKeyWorld(t, apiKeyPolicy, "    keep: sealed\n")
	w.finish(t, w.rotateKey(t, apiKey, "first"), "done")
	token, err := w.control.CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{Name: "edge", Role: "verifier", Keys: []string{"partners/**"}})
	if err != nil {
		t.Fatal(err)
	}
	e := w.cachedVerifier(t, token.GetToken())
	w.finish(t, w.rotateKey(t, apiKey, "it waits for the verifier"), "done")
	leaked := w.reveal(t, apiKey, 2)
	w.stop(t)
	e.kill(t)

	began := time.Now()
	e = w.cachedVerifier(t, token.GetToken())
	if r, err := e.checker.Check(leaked, ""); err != nil || r.Version != 2 {
		t.Errorf("without a server: %+v, %v", r, err)
	}
	t.Logf("restarted in %v", time.Since(began))
	w.start(t)
	eventually(t, "it hears of the server", func() bool { return e.checker.Age() < time.Second })

	e.cache.full.Store(true)
	response, err := w.control.Rotate(t.Context(), &keyturnv1.RotateRequest{Name: apiKey, Reason: "leaked", Emergency: true, Strategy: "contain-first"})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the leaked key is refused", func() bool {
		_, err := e.checker.Check(leaked, "")
		return errors.Is(err, apikeycheck.ErrRefused)
	})
	eventually(t, "the emergency waits for the verifier", func() bool {
		r, err := w.control.GetRotation(t.Context(), &keyturnv1.GetRotationRequest{Id: response.GetRotationId()})
		if err != nil || r.GetRotation().GetEnded() {
			t.Fatalf("it did not wait: %v, %v", r, err)
		}
		return strings.Contains(fmt.Sprint(r), "verifier") && strings.Contains(fmt.Sprint(r), "edge")
	})
	if e.checker.CacheError() == nil {
		t.Error("the verifier does not know that it keeps nothing")
	}
	e.cache.full.Store(false)
	w.finish(t, response.GetRotationId(), "done")
	current := w.reveal(t, apiKey, 3)
	w.stop(t)
	e.kill(t)

	e = w.cachedVerifier(t, token.GetToken())
	if _, err := e.checker.Check(leaked, ""); !errors.Is(err, apikeycheck.ErrRefused) && !errors.Is(err, apikeycheck.ErrUnsure) {
		t.Errorf("the leaked key after the last restart: %v", err)
	}
	if _, err := e.checker.Check(current, ""); err != nil {
		t.Errorf("the key that took its place: %v", err)
	}
	e.kill(t)
}
