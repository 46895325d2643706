package real

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/apikeycheck"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/secret"
)

// checker opens a verifier outside the server. ahead is how far its clock is ahead.
func (w *world) checker(t *testing.T, name string, patterns []string, ahead *atomic.Int64) *apikeycheck.Checker {
	t.Helper()
	token, err := w.control.CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{Name: name, Role: "verifier", Keys: patterns})
	if err != nil {
		t.Fatal(err)
	}
	checker, err := apikeycheck.Open(t.Context(), apikeycheck.Config{
		Address: w.address(), Token: client.StaticToken(secret.NewString(token.GetToken())), RootCAs: w.roots, Name: name, MaxAge: 10 * time.Minute,
		ReportEvery: 100 * time.Millisecond, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return checker
}

func closeChecker(t *testing.T, checker *apikeycheck.Checker) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	if err := checker.Close(ctx); err != nil {
		t.Errorf("close the verifier: %v", err)
	}
}

// TestAPIKeyIsVerifiedLocally: a service verifies keys by a pushed snapshot. Through
// a rotation none that is good is refused; who still used the old one is named by
// what the service reported; once the rotation is over the service refuses the old
// key; and it lets in the new one while there is no server, for a while.
func TestAPIKeyIsVerifiedLocally(t *testing.T) {
	w := newAPIKeyWorld(t, strings.Replace(apiKeyPolicy, "max: 1m", "max: 2s", 1), "    keep: sealed\n")
	w.finish(t, w.rotateKey(t, apiKey, "first"), "done")
	first := w.reveal(t, apiKey, 0)
	var ahead atomic.Int64
	checker := w.checker(t, "orders-api", []string{"partners/**"}, &ahead)
	blind := w.checker(t, "blind", []string{"prod/**"}, &ahead)
	if r, err := checker.Check(first, "198.51.100.9"); err != nil || r.Key != apiKey || r.Version != 1 || r.Client != "ACME Ltd." || len(r.Scopes) != 1 {
		t.Fatalf("the first key: %+v, %v", r, err)
	}
	for what, text := range map[string]string{"mistyped": first[:20] + "0" + first[21:], "empty": "", "another": strings.Replace(first, "acme", "acmf", 1)} {
		if r, err := checker.Check(text, ""); !errors.Is(err, apikeycheck.ErrRefused) || r.Key != "" {
			t.Errorf("%s: %+v, %v", what, r, err)
		}
	}
	if _, err := blind.Check(first, ""); !errors.Is(err, apikeycheck.ErrRefused) || blind.Len() != 0 {
		t.Errorf("a verifier that does not cover the key: %v, %d versions", err, blind.Len())
	}
	closeChecker(t, blind)

	var current atomic.Pointer[string]
	current.Store(&first)
	var failed, checked atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer func() {
		cancel()
		running.Wait()
	}()
	running.Go(func() {
		for ctx.Err() == nil {
			checked.Add(1)
			if _, err := checker.Check(*current.Load(), "198.51.100.9"); err != nil {
				failed.Add(1)
			}
			select {
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
			}
		}
	})
	id := w.rotateKey(t, apiKey, "again")
	held := w.wait(t, id, func(r *keyturnv1.Rotation) bool { return r.GetHold().GetReason() == "drain-max" })
	if len(held.GetHolders()) != 1 || held.GetHolders()[0].GetApplication() != "orders-api" || held.GetHolders()[0].GetAddress() != "198.51.100.9" {
		t.Errorf("the old key is used, and the holders are %v (%v)", held.GetHolders(), held.GetPhase())
	}
	second := w.reveal(t, apiKey, 2)
	current.Store(&second)
	w.finish(t, id, "done")
	if _, err := checker.Check(first, ""); !errors.Is(err, apikeycheck.ErrRefused) {
		t.Errorf("the old key after the rotation: %v", err)
	}
	w.stop(t)
	if _, err := checker.Check(second, ""); err != nil {
		t.Errorf("without a server: %v", err)
	}
	cancel()
	running.Wait()
	if failed.Load() != 0 || checked.Load() < 100 {
		t.Errorf("%d of %d checks of a good key failed", failed.Load(), checked.Load())
	}
	ahead.Store(int64(time.Minute))
	if _, err := checker.Check(first, ""); !errors.Is(err, apikeycheck.ErrUnsure) {
		t.Errorf("a key that is not known, a minute after the last news: %v", err)
	}
	if _, err := checker.Check(second, ""); err != nil {
		t.Errorf("a known key, a minute after the last news: %v", err)
	}
	ahead.Store(int64(11 * time.Minute))
	if _, err := checker.Check(second, ""); !errors.Is(err, apikeycheck.ErrUnsure) {
		t.Errorf("a known key after the longest time: %v", err)
	}
	ahead.Store(0)
	w.start(t)
	eventually(t, "the verifier is fresh again", func() bool {
		_, err := checker.Check(first, "")
		return errors.Is(err, apikeycheck.ErrRefused) && checker.Age() < 3*time.Second
	})
	closeChecker(t, checker)
}
