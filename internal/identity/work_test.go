package identity_test

import (
	"context"
	"crypto/rand"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/identity"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/secret"
)

// noted is a store that remembers documents it has read, answers from memory, and
// counts how often it is asked.
type noted struct {
	store.Store
	docs  map[string]store.Doc
	views int
}

func (n *noted) View(ctx context.Context, fn func(store.Tx) error) error {
	n.views++
	if n.docs == nil {
		return n.Store.View(ctx, fn)
	}
	return fn(store.Tx{Docs: notedDocs{docs: n.docs}})
}

type notedDocs struct {
	store.Docs
	docs map[string]store.Doc
}

func (n notedDocs) Get(_ context.Context, _, name string) (store.Doc, error) {
	doc, ok := n.docs[name]
	if !ok {
		return store.Doc{}, store.ErrNotFound
	}
	return doc, nil
}

// TestRefusalsCostTheSame: how long a refusal takes does not tell whether there is a
// token with that ID, whether it was used lately, or what its role is. Work is
// counted, in accesses to the store and in allocations, because clocks are noisy.
func TestRefusalsCostTheSame(t *testing.T) {
	w := newWorld(t)
	db := &noted{Store: w.journal.Store}
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	r := identity.New(identity.Config{Store: db, Journal: w.journal, Random: rand.Reader, Now: func() time.Time { return now }})
	docs := map[string]store.Doc{}
	issue := func(role authz.Role) (id string, right, wrong secret.Value) {
		token, text, err := r.Issue(t.Context(), admin, identity.Request{Name: "orders", Role: role, Keys: []string{"prod/**"}})
		if err != nil {
			t.Fatal(err)
		}
		err = w.journal.View(t.Context(), func(tx store.Tx) error {
			docs[token.ID], err = tx.Docs.Get(t.Context(), "token", token.ID)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return token.ID, text, identity.Forge(token.ID)
	}
	_, used, usedWrong := issue(authz.Operator)
	_, _, idleWrong := issue(authz.Operator)
	_, _, joinWrong := issue(authz.Join)
	db.docs = docs
	if _, err := r.Authenticate(t.Context(), used); err != nil {
		t.Fatal(err)
	}
	calls := map[string]func(secret.Value) error{
		"Authenticate": func(text secret.Value) error { _, err := r.Authenticate(t.Context(), text); return err },
		"Redeem": func(text secret.Value) error {
			_, _, err := r.Redeem(t.Context(), text, identity.PartyShape{}, nil)
			return err
		},
	}
	for name, call := range calls {
		cost := func(text secret.Value) (views int, allocations float64) {
			before := db.views
			if err := call(text); !errors.Is(err, identity.ErrUnauthenticated) {
				t.Errorf("%s: %v", name, err)
			}
			views, allocations = db.views-before, math.Inf(1)
			for range 3 { // what else the process allocates meanwhile counts, too
				allocations = min(allocations, testing.AllocsPerRun(20, func() { _ = call(text) }))
			}
			return views, allocations
		}
		views, allocations := cost(identity.Forge("0123456789abcdef"))
		for what, text := range map[string]secret.Value{"a token in use": usedWrong, "one that is not used": idleWrong, "a join token": joinWrong} {
			v, a := cost(text)
			// A role and a time more or less in the document are an allocation each.
			if v != views || math.Abs(a-allocations) > 3 {
				t.Errorf("%s with a wrong secret for %s: %d accesses and %v allocations; for an unknown ID %d and %v", name, what, v, a, views, allocations)
			}
		}
	}
	if _, err := r.Authenticate(t.Context(), used); err != nil {
		t.Errorf("wrong secrets lock out the right one: %v", err)
	}
}
