package identity_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/identity"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/secret"
)

var admin = audit.Actor{ID: "test", Kind: "user"}

// journal is a store whose transactions keep their audit entries in memory.
type journal struct {
	store.Store
	mu      sync.Mutex
	entries []audit.Entry
	// before runs before every transaction and may fail it.
	before func() error
}

func (j *journal) Transact(ctx context.Context, actor audit.Actor, fn func(store.Tx, func(audit.Entry)) error) error {
	if j.before != nil {
		if err := j.before(); err != nil {
			return err
		}
	}
	var entries []audit.Entry
	err := j.Update(ctx, func(tx store.Tx) error {
		entries = nil
		return fn(tx, func(e audit.Entry) { e.Actor = actor; entries = append(entries, e) })
	})
	if err == nil {
		j.mu.Lock()
		j.entries = append(j.entries, entries...)
		j.mu.Unlock()
	}
	return err
}

func (j *journal) has(action audit.Action) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.entries {
		if e.Action == action {
			return true
		}
	}
	return false
}

type world struct {
	*identity.Registry
	journal *journal
	clock   atomic.Int64 // seconds since the beginning
}

func newWorld(t *testing.T) *world {
	t.Helper()
	db, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(t.TempDir(), "test.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Stop(); err != nil {
			t.Error(err)
		}
	})
	w := &world{journal: &journal{Store: db}}
	began := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	w.Registry = identity.New(identity.Config{
		Store: db, Journal: w.journal, Random: rand.Reader,
		Now: func() time.Time { return began.Add(time.Duration(w.clock.Load()) * time.Second) },
	})
	return w
}

func (w *world) issue(t *testing.T, request identity.Request) (identity.Token, secret.Value) {
	t.Helper()
	if request.Keys == nil {
		request.Keys = []string{"prod/**"}
	}
	token, text, err := w.Issue(t.Context(), admin, request)
	if err != nil {
		t.Fatal(err)
	}
	return token, text
}

func (w *world) wantRefused(t *testing.T, text secret.Value, when string) {
	t.Helper()
	if caller, err := w.Authenticate(t.Context(), text); !errors.Is(err, identity.ErrUnauthenticated) {
		t.Errorf("%s: %+v, %v", when, caller, err)
	}
}

func free(context.Context, string) (bool, error) { return false, nil }

func TestAuthenticate(t *testing.T) {
	w := newWorld(t)
	token, text := w.issue(t, identity.Request{Name: "ops", Role: authz.Operator})
	for range 2 { // from the store, and from memory
		caller, err := w.Authenticate(t.Context(), text)
		if err != nil || caller.ID != token.ID || caller.Name != "ops" || caller.Role != authz.Operator || strings.Join(caller.Keys, " ") != "prod/**" {
			t.Fatalf("%+v, %v", caller, err)
		}
	}
	if !w.Recent(text) {
		t.Error("a good token is not recent")
	}
	good := text.RevealString()
	other, otherText := w.issue(t, identity.Request{Name: "other", Role: authz.Viewer})
	mixed := strings.Replace(otherText.RevealString(), other.ID, token.ID, 1)
	for _, bad := range []string{"", "kt_", good[:len(good)-1], good + "A", strings.ToUpper(good), "x" + good, strings.Replace(good, "_", "-", 2), mixed} {
		w.wantRefused(t, secret.NewString(bad), bad)
		if w.Recent(secret.NewString(bad)) {
			t.Errorf("%q is recent", bad)
		}
	}
}

// The ID of a token is public: knowing it and the form must not be enough.
func TestForgedSecretIsRefused(t *testing.T) {
	victim, forger := newWorld(t), newWorld(t)
	token, _ := victim.issue(t, identity.Request{Name: "root", Role: authz.Admin})
	_, text := forger.issue(t, identity.Request{Name: "root", Role: authz.Admin})
	victim.wantRefused(t, text, "a token of another server")
	_ = token
}

func TestExpiry(t *testing.T) {
	w := newWorld(t)
	token, text := w.issue(t, identity.Request{Name: "ops", Role: authz.Operator, Lifetime: time.Minute})
	w.clock.Store(59)
	if _, err := w.Authenticate(t.Context(), text); err != nil {
		t.Fatal(err)
	}
	w.clock.Store(60)
	w.wantRefused(t, text, "at its end")
	if err := w.Check(t.Context(), token.ID); !errors.Is(err, identity.ErrUnauthenticated) {
		t.Errorf("check: %v", err)
	}
	if err := w.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Find(t.Context(), token.ID); err != nil {
		t.Errorf("swept too early: %v", err)
	}
	w.clock.Store(60 + 24*60*60)
	if err := w.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Find(t.Context(), token.ID); !errors.Is(err, identity.ErrNotFound) {
		t.Errorf("not swept: %v", err)
	}
}

func TestRevoke(t *testing.T) {
	w := newWorld(t)
	token, text := w.issue(t, identity.Request{Name: "ops", Role: authz.Operator})
	if _, err := w.Authenticate(t.Context(), text); err != nil {
		t.Fatal(err)
	}
	if err := w.Revoke(t.Context(), admin, token.ID); err != nil {
		t.Fatal(err)
	}
	w.wantRefused(t, text, "revoked")
	if w.Recent(text) {
		t.Error("a revoked token is recent")
	}
	if err := w.Check(t.Context(), token.ID); !errors.Is(err, identity.ErrUnauthenticated) {
		t.Errorf("check: %v", err)
	}
	if err := w.Revoke(t.Context(), admin, token.ID); !errors.Is(err, identity.ErrNotFound) {
		t.Errorf("again: %v", err)
	}
	if !w.journal.has("token.revoke") {
		t.Error("it was not audited")
	}
}

// A revocation that fails must not be believed.
func TestRevokeThatFails(t *testing.T) {
	w := newWorld(t)
	token, text := w.issue(t, identity.Request{Name: "ops", Role: authz.Operator})
	down := errors.New("the store is away")
	w.journal.before = func() error { return down }
	if err := w.Revoke(t.Context(), admin, token.ID); !errors.Is(err, down) {
		t.Errorf("got %v", err)
	}
	if _, err := w.Authenticate(t.Context(), text); err != nil {
		t.Error(err)
	}
}

// What was read before a revocation must not be remembered after it.
func TestRevokeWhileAuthenticating(t *testing.T) {
	for range 20 {
		w := newWorld(t)
		token, text := w.issue(t, identity.Request{Name: "ops", Role: authz.Operator})
		var running sync.WaitGroup
		stop := make(chan struct{})
		for range 4 {
			running.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						_, _ = w.Authenticate(t.Context(), text) // either answer is right meanwhile
						w.clock.Add(1)                           // what is remembered is read anew
					}
				}
			})
		}
		if err := w.Revoke(t.Context(), admin, token.ID); err != nil {
			t.Error(err)
		}
		close(stop)
		running.Wait()
		w.wantRefused(t, text, "after the revocation")
	}
}

func TestRedeemOnce(t *testing.T) {
	w := newWorld(t)
	_, join := w.issue(t, identity.Request{Name: "join web", Role: authz.Join, Party: identity.PartyShape{Region: "eu", Labels: map[string]string{"cohort": "canary"}}})
	if caller, err := w.Authenticate(t.Context(), join); err != nil || authz.Allow(caller.Principal, authz.Present, "") == nil {
		t.Errorf("a join token is good for more than joining: %+v %v", caller, err)
	}
	var won atomic.Int64
	var running sync.WaitGroup
	for i := range 16 {
		running.Go(func() {
			wanted := identity.PartyShape{ID: fmt.Sprint("web", i), Kind: "agent", Region: "us", Labels: map[string]string{"cohort": "last", "x": "y"}}
			party, text, err := w.Redeem(t.Context(), join, wanted, free)
			if errors.Is(err, identity.ErrUnauthenticated) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			won.Add(1)
			caller, err := w.Authenticate(t.Context(), text)
			if err != nil || caller.Role != authz.Agent || caller.Party != party.ID || strings.Join(caller.Keys, " ") != "prod/**" {
				t.Errorf("%+v, %v", caller, err)
			}
			if shape := caller.Fixed.Over(wanted); shape.Region != "eu" || shape.Labels["cohort"] != "canary" || shape.Kind != "agent" {
				t.Errorf("what the join token fixes did not win: %+v", shape)
			}
		})
	}
	running.Wait()
	if won.Load() != 1 {
		t.Errorf("redeemed %d times", won.Load())
	}
}

func TestRedeemRefuses(t *testing.T) {
	w := newWorld(t)
	_, viewer := w.issue(t, identity.Request{Name: "viewer", Role: authz.Viewer})
	_, late := w.issue(t, identity.Request{Name: "late", Role: authz.Join})
	wanted := identity.PartyShape{ID: "web1"}
	if _, _, err := w.Redeem(t.Context(), viewer, wanted, free); !errors.Is(err, identity.ErrUnauthenticated) {
		t.Errorf("a token of another role: %v", err)
	}
	w.clock.Store(60 * 60)
	if _, _, err := w.Redeem(t.Context(), late, wanted, free); !errors.Is(err, identity.ErrUnauthenticated) {
		t.Errorf("an hour later: %v", err)
	}
	_, join := w.issue(t, identity.Request{Name: "join", Role: authz.Join})
	if _, _, err := w.Redeem(t.Context(), join, identity.PartyShape{}, free); !errors.Is(err, identity.ErrInvalid) {
		t.Errorf("without an ID: %v", err)
	}
	if _, _, err := w.Redeem(t.Context(), join, wanted, free); err != nil {
		t.Errorf("a refused join used up the token: %v", err)
	}
}

// Whoever holds a join token must not be able to take the place of a party.
func TestRedeemDoesNotTakeOverAParty(t *testing.T) {
	w := newWorld(t)
	joinToken := func(shape identity.PartyShape) secret.Value {
		_, text := w.issue(t, identity.Request{Name: "join", Role: authz.Join, Party: shape})
		return text
	}
	if _, _, err := w.Redeem(t.Context(), joinToken(identity.PartyShape{}), identity.PartyShape{ID: "web1"}, free); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Redeem(t.Context(), joinToken(identity.PartyShape{}), identity.PartyShape{ID: "web1"}, free); !errors.Is(err, identity.ErrInvalid) {
		t.Errorf("a party that has joined: %v", err)
	}
	taken := func(context.Context, string) (bool, error) { return true, nil }
	if _, _, err := w.Redeem(t.Context(), joinToken(identity.PartyShape{}), identity.PartyShape{ID: "sdk/1"}, taken); !errors.Is(err, identity.ErrInvalid) {
		t.Errorf("a party that is registered: %v", err)
	}
	// An admin may replace a node on purpose.
	party, text, err := w.Redeem(t.Context(), joinToken(identity.PartyShape{ID: "web1"}), identity.PartyShape{ID: "other"}, taken)
	if err != nil || party.ID != "web1" {
		t.Fatalf("%+v, %v", party, err)
	}
	caller, err := w.Authenticate(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Revoke(t.Context(), admin, caller.ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Redeem(t.Context(), joinToken(identity.PartyShape{}), identity.PartyShape{ID: "web1"}, free); err != nil {
		t.Errorf("a party whose token was revoked: %v", err)
	}
}

func TestIssueRefuses(t *testing.T) {
	good := identity.Request{Name: "n", Role: authz.Viewer, Keys: []string{"a"}}
	tests := map[string]func(*identity.Request){
		"name: 1 to":         func(r *identity.Request) { r.Name = "" },
		"name: 1 to 128":     func(r *identity.Request) { r.Name = strings.Repeat("n", 129) },
		"cannot be shown":    func(r *identity.Request) { r.Name = "a\nb" },
		"role":               func(r *identity.Request) { r.Role = 0 },
		"keys: 1 to":         func(r *identity.Request) { r.Keys = nil },
		"keys[1]":            func(r *identity.Request) { r.Keys = []string{"a", "A b"} },
		"lifetime":           func(r *identity.Request) { r.Lifetime = -1 },
		"lifetime: at most ": func(r *identity.Request) { r.Lifetime = 11 * 365 * 24 * time.Hour },
	}
	w := newWorld(t)
	for says, spoil := range tests {
		request := good
		spoil(&request)
		if _, _, err := w.Issue(t.Context(), admin, request); !errors.Is(err, identity.ErrInvalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
}

func TestTokensAreStoredHashed(t *testing.T) {
	w := newWorld(t)
	_, text := w.issue(t, identity.Request{Name: "ops", Role: authz.Operator})
	err := w.journal.View(t.Context(), func(tx store.Tx) error {
		docs, err := tx.Index.List(t.Context(), "token", "", "", 10)
		for _, doc := range docs {
			if parts := strings.SplitN(text.RevealString(), "_", 3); strings.Contains(string(doc.Body), parts[2]) {
				t.Error("the token is stored in the clear")
			}
		}
		if len(docs) != 1 {
			t.Errorf("%d tokens", len(docs))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	list, err := w.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Hash != nil {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestBootstrap(t *testing.T) {
	w := newWorld(t)
	full := errors.New("the disk is full")
	if first, err := w.Bootstrap(t.Context(), admin, func(secret.Value) error { return full }); first || !errors.Is(err, full) {
		t.Fatalf("%v, %v", first, err)
	}
	// The process ends between the file and the database: the next start repeats it.
	var lost, kept secret.Value
	w.journal.before = func() error { return full }
	if first, err := w.Bootstrap(t.Context(), admin, func(v secret.Value) error { lost = v; return nil }); first || !errors.Is(err, full) {
		t.Fatalf("%v, %v", first, err)
	}
	w.journal.before = nil
	if first, err := w.Bootstrap(t.Context(), admin, func(v secret.Value) error { kept = v; return nil }); !first || err != nil {
		t.Fatalf("%v, %v", first, err)
	}
	w.wantRefused(t, lost, "the token of the start that failed")
	caller, err := w.Authenticate(t.Context(), kept)
	if err != nil || caller.Role != authz.Admin || authz.Allow(caller.Principal, authz.Administer, "any/key") != nil {
		t.Errorf("%+v, %v", caller, err)
	}
	if first, err := w.Bootstrap(t.Context(), admin, func(secret.Value) error { t.Error("a second first token"); return nil }); first || err != nil {
		t.Errorf("%v, %v", first, err)
	}
}
