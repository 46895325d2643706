package engine_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// pair is a system with two endpoints, at which a deleted version cannot be accepted
// again.
type pair struct {
	mu sync.Mutex
	// accepted and deleted hold "endpoint version".
	accepted, deleted map[string]bool
}

func (p *pair) Check(provider.Config) (provider.Topology, error) {
	return provider.Topology{Endpoints: []provider.Endpoint{{Name: "one"}, {Name: "two"}}}, nil
}

func (p *pair) Open(context.Context, provider.Config, provider.Env) (provider.System, error) {
	return p, nil
}

func at(endpoint string, v key.Version) string { return fmt.Sprint(endpoint, " ", v) }

func (p *pair) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *pair) Mint(_ context.Context, _ provider.Call, request provider.MintRequest) (provider.Material, error) {
	return provider.Material{Secrets: map[string]secret.Value{"password": secret.NewString(request.Number.String())}}, nil
}

func (p *pair) Accept(_ context.Context, _ provider.Call, endpoint string, v provider.Version) (err error) {
	p.set(func() {
		if p.deleted[at(endpoint, v.Number)] {
			err = provider.Permanent(errors.New("it was deleted here"), "bring in another one")
			return
		}
		p.accepted[at(endpoint, v.Number)] = true
	})
	return err
}

func (p *pair) Refuse(_ context.Context, _ provider.Call, endpoint string, v provider.Version) error {
	p.set(func() { delete(p.accepted, at(endpoint, v.Number)) })
	return nil
}

func (p *pair) Probe(_ context.Context, _ provider.Call, endpoint string, v provider.Version) (verdict provider.Verdict, _ error) {
	verdict = provider.Refused
	p.set(func() {
		if p.accepted[at(endpoint, v.Number)] {
			verdict = provider.Accepted
		}
	})
	return verdict, nil
}

func (p *pair) Usage(context.Context, provider.Call, provider.Version) (provider.Usage, error) {
	return provider.Usage{}, nil
}

func (p *pair) Held(context.Context, provider.Call) (held []provider.Held, _ error) {
	p.set(func() {
		for v := range key.Version(2) {
			for _, endpoint := range []string{"one", "two"} {
				held = append(held, provider.Held{Endpoint: endpoint, Version: v + 1, Accepted: p.accepted[at(endpoint, v+1)]})
			}
		}
	})
	return held, nil
}

// presents attaches a party that holds v and reports what it was told.
func (w *world) presents(t *testing.T, v key.Version) engine.Tell {
	t.Helper()
	state := w.standing(t)
	held := engine.Holding{Key: "a/b", Version: v}
	if p, ok := state.Presenter("web"); ok {
		held.Epoch = p.Epoch
	}
	tells, err := w.Attach(t.Context(), alice, engine.PartyRecord{ID: "web", Kind: "agent"}, []engine.Holding{held})
	if err != nil {
		t.Fatal(err)
	}
	return tells["a/b"]
}

func (w *world) answers(t *testing.T, tell engine.Tell) {
	t.Helper()
	ack := rotation.Ack{ID: "web", Epoch: tell.Epoch, OK: true, Using: tell.Version}
	if err := w.Acknowledge(t.Context(), alice, "a/b", []rotation.Ack{ack}); err != nil {
		t.Fatal(err)
	}
}

// TestNoWayBack: a key is replaced after a restore, and an endpoint cannot be made to
// accept the version before any more. Whoever gives the cut-over up, when a presenter
// may be using the new version, is told so, and it goes on; as soon as that endpoint
// accepts the version before, it can be given up.
func TestNoWayBack(t *testing.T) {
	w := newWorld(t)
	p := &pair{accepted: map[string]bool{}, deleted: map[string]bool{}}
	w.config.Drivers = map[string]provider.Driver{"memory": p}
	w.Engine = w.another(t)
	w.Start(t.Context())
	w.apply(t, policyDoc("p", ""), keyDoc("a/b", "p"))
	w.through(t, w.rotate(t, "a/b"))
	w.answers(t, w.presents(t, 0))
	w.Stop()
	p.set(func() {
		delete(p.accepted, at("two", 1))
		p.deleted[at("two", 1)] = true
	})
	if err := engine.MarkRestored(t.Context(), w.store, engine.RestoreRecord{At: time.Now(), Reason: "a test"}); err != nil {
		t.Fatal(err)
	}
	w.Engine = w.another(t)
	if err := w.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	w.Start(t.Context())
	w.presents(t, 1)
	eventually(t, "it is found", func() bool { state := w.standing(t); return len(state.Differences()) == 1 })
	id, err := w.Reconcile(t.Context(), alice, engine.ReconcileRequest{Key: "a/b", How: rotation.Replace})
	if err != nil {
		t.Fatal(err)
	}
	told := func() key.Version {
		state := w.standing(t)
		web, _ := state.Presenter("web")
		return web.Told
	}
	eventually(t, "the fresh version is told", func() bool { return told() > 1000 })
	_, rollback := w.Rollback(t.Context(), alice, id, "a test")
	for what, err := range map[string]error{"cancel": w.Steer(t.Context(), alice, id, engine.SteerCancel, "a test"), "roll back": rollback} {
		if !errors.Is(err, rotation.ErrPhase) || !strings.Contains(err.Error(), "verifier two does not accept v1") || !strings.Contains(err.Error(), "let the rotation go on") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if view, err := w.Rotation(t.Context(), id); err != nil || view.Phase != rotation.Presenting {
		t.Fatalf("it is %v: %v", view.Phase, err)
	}
	p.set(func() { clear(p.deleted) })
	w.jump(2 * time.Minute)
	eventually(t, "it can be given up", func() bool {
		return w.Steer(t.Context(), alice, id, engine.SteerCancel, "a test") == nil
	})
	eventually(t, "presenters return", func() bool { return told() == 1 })
	w.answers(t, w.presents(t, 1))
	w.wait(t, id, func(view engine.RotationView) bool { return view.Phase == rotation.RolledBack })
}
