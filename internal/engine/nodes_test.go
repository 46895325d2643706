package engine_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/storetest"
	"github.com/keyturn/keyturn/key"
)

// pair starts two nodes on the world's store with the leases that servers have.
func (w *world) pair(t *testing.T) (nodes [2]*engine.Engine, lines [2]*storetest.Line) {
	t.Helper()
	w.config.Lease, w.config.EffectTime, w.config.Poll = 0, 0, 0
	for i := range nodes {
		lines[i] = &storetest.Line{Store: w.store}
		w.config.Store = lines[i]
		nodes[i] = w.another(t)
		nodes[i].Start(t.Context())
		t.Cleanup(nodes[i].Stop)
	}
	return nodes, lines
}

// TestSlowEffectKeepsItsLease: an effect that takes longer than a lease is not
// carried out twice while its node lives.
func TestSlowEffectKeepsItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.apply(t, policyDoc("p", "  quarantine: 1h\n"), keyDoc("a", "p"))
		var accepts atomic.Int32
		w.system.SetHook(func(ctx context.Context, operation string, _ key.Name) error {
			if operation != "accept" {
				return nil
			}
			accepts.Add(1)
			select {
			case <-time.After(15 * time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		w.pair(t)
		w.through(t, w.rotate(t, "a"))
		if n := accepts.Load(); n != 1 {
			t.Errorf("it was carried out %d times", n)
		}
	})
}

// TestDeadNodesEffectIsTakenOver: when a node dies in the middle of an effect,
// another one carries it out within seconds, under a new fence, and not before
// the first one has given it up. The late result is refused.
func TestDeadNodesEffectIsTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.apply(t, policyDoc("p", "  quarantine: 1h\n"), keyDoc("a", "p"))
		nodes, lines := w.pair(t)
		var mu sync.Mutex
		var began, ended []time.Time
		w.system.SetHook(func(ctx context.Context, operation string, _ key.Name) error {
			if operation != "accept" {
				return nil
			}
			mu.Lock()
			began = append(began, time.Now())
			first := len(began) == 1
			mu.Unlock()
			if !first {
				return nil
			}
			<-ctx.Done()
			mu.Lock()
			ended = append(ended, time.Now())
			mu.Unlock()
			return nil // it has worked after all, too late
		})
		nodes[1].Stop() // the first node begins
		id := w.rotate(t, "a")
		synctest.Wait()
		time.Sleep(10 * time.Second) // its lease is renewed
		nodes[1].Start(t.Context())
		time.Sleep(3 * time.Second)
		mu.Lock()
		if len(began) != 1 || len(ended) != 0 {
			t.Fatalf("began %v, ended %v", began, ended)
		}
		mu.Unlock()
		lines[0].Cut.Store(true)
		died := time.Now()
		view := w.through(t, id)
		if view.Phase != rotation.Quarantine && view.Phase != rotation.Done {
			t.Errorf("it is %v", view.Phase)
		}
		mu.Lock()
		if len(began) != 2 || len(ended) != 1 {
			t.Fatalf("began %v, ended %v", began, ended)
		}
		if took := began[1].Sub(died); took > 8*time.Second {
			t.Errorf("taken over after %v", took)
		}
		if !ended[0].Before(began[1]) {
			t.Errorf("the first try ended at %v, after the second one began at %v", ended[0], began[1])
		}
		mu.Unlock()
		lines[0].Cut.Store(false)
		time.Sleep(30 * time.Second)
		if n := len(w.rotations(t, "a")); n != 1 {
			t.Errorf("%d rotations", n)
		}
		checks, err := nodes[1].Doctor(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, check := range checks {
			if check.Status == "failed" {
				t.Errorf("%+v", check)
			}
		}
	})
}

// TestResultIsRecordedAfterAnOutage: an effect that was carried out while the
// store was away for a moment is not carried out again.
func TestResultIsRecordedAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.apply(t, policyDoc("p", "  quarantine: 1h\n"), keyDoc("a", "p"))
		var accepts atomic.Int32
		nodes, lines := w.pair(t)
		nodes[1].Stop()
		w.system.SetHook(func(_ context.Context, operation string, _ key.Name) error {
			if operation == "accept" && accepts.Add(1) == 1 {
				lines[0].Cut.Store(true)
				time.AfterFunc(2*time.Second, func() { lines[0].Cut.Store(false) })
			}
			return nil
		})
		w.through(t, w.rotate(t, "a"))
		if n := accepts.Load(); n != 1 {
			t.Errorf("it was carried out %d times", n)
		}
	})
}

// listener is a fleet whose presenters are all connected to one node.
type listener struct {
	nobody
	mu    sync.Mutex
	tells []engine.Tell
}

func (*listener) Present(key.Name) bool { return true }

func (l *listener) Tell(_ key.Name, tells []engine.Tell) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tells = append(l.tells, tells...)
}

// TestTellingsOfOtherNodesSayWhen: a presenter at another node than the one that
// decided hears the same, the time of the decision included.
func TestTellingsOfOtherNodesSayWhen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.apply(t, policyDoc("p", "  quarantine: 1h\n"), keyDoc("a", "p"))
		w.attach(t, "web1", engine.Holding{Key: "a"})
		var heard [2]*listener
		for i := range heard {
			heard[i] = &listener{}
			w.config.Fleet = heard[i]
			w.config.Lease, w.config.EffectTime, w.config.Poll = 0, 0, 0
			w.config.Store = w.store
			node := w.another(t)
			node.Start(t.Context())
			t.Cleanup(node.Stop)
		}
		began := time.Now()
		w.rotate(t, "a")
		time.Sleep(400 * time.Millisecond)
		var at [2]time.Time
		for i, l := range heard {
			l.mu.Lock()
			for _, tell := range l.tells {
				if tell.Presenter == "web1" && tell.Version == 1 && at[i].IsZero() {
					at[i] = tell.At
				}
			}
			l.mu.Unlock()
		}
		if at[0].IsZero() || !at[0].Equal(at[1]) || at[0].Sub(began).Abs() > time.Minute {
			t.Errorf("the nodes say that it was told at %v and %v", at[0], at[1])
		}
	})
}

// TestArrivalsAreNoNews: who arrives at one node hears its assignment there. Other
// nodes do not read the key for that, however many arrive; what is decided later
// they hear of.
func TestArrivalsAreNoNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.apply(t, policyDoc("p", "  quarantine: 1h\n"), keyDoc("a", "p"))
		nodes, _ := w.pair(t)
		w.through(t, w.rotate(t, "a"))
		revision := func() (rev uint64) {
			if err := w.store.View(t.Context(), func(tx store.Tx) error {
				doc, err := tx.Docs.Get(t.Context(), "news", "a")
				rev = doc.Rev
				return err
			}); err != nil && !errors.Is(err, store.ErrNotFound) {
				t.Fatal(err)
			}
			return rev
		}
		before := revision()
		for _, id := range []string{"web1", "web2", "web1"} {
			tells, err := nodes[0].Attach(t.Context(), alice, engine.PartyRecord{ID: id, Kind: "agent"}, []engine.Holding{{Key: "a"}})
			if err != nil || tells["a"].Version != 1 {
				t.Fatalf("%s hears %v, %v", id, tells, err)
			}
		}
		if after := revision(); after != before {
			t.Errorf("news of revision %d were written when parties arrived", after)
		}
		// A request of web1 from before that was late: its session may be at the other node.
		tell, _, _, err := nodes[1].Assigned(t.Context(), "a", "web1")
		if err == nil {
			err = nodes[1].Acknowledge(t.Context(), alice, "a", []rotation.Ack{{ID: "web1", Epoch: tell.Epoch, OK: true, Using: 1}})
		}
		if err == nil {
			_, err = nodes[0].Attach(t.Context(), alice, engine.PartyRecord{ID: "web1", Kind: "agent"}, []engine.Holding{{Key: "a"}})
		}
		if after := revision(); err != nil || after == before {
			t.Errorf("no news of a party that is told anew: %v", err)
		}
		before = revision()
		w.rotate(t, "a")
		time.Sleep(time.Second)
		if after := revision(); after == before {
			t.Error("no news of a rotation")
		}
	})
}
