package hub_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/internal/store/storetest"
	"github.com/keyturn/keyturn/key"
)

// server is one of several nodes on one store.
type server struct {
	*hub.Hub
	line *storetest.Line
}

// servers starts n nodes with one core on one store, in simulated time.
func servers(t *testing.T, path string, n int, config hub.Config) (c *core, nodes []server) {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	c = newCore()
	for range n {
		one := server{line: &storetest.Line{Store: s}}
		config.Store, config.Logger, config.Now = one.line, slog.New(slog.DiscardHandler), time.Now
		one.Hub = hub.New(config)
		one.Use(c)
		one.Start(t.Context())
		nodes = append(nodes, one)
	}
	t.Cleanup(func() {
		for _, one := range nodes {
			one.Stop()
		}
		synctest.Wait()
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c, nodes
}

// TestPresenceIsSharedByNodes: whoever is connected to one node is connected for
// all, until the session ends, or the node dies and a bound has passed.
func TestPresenceIsSharedByNodes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	synctest.Test(t, func(t *testing.T) {
		_, nodes := servers(t, path, 2, hub.Config{})
		a, b := nodes[0], nodes[1]
		connected := func(when string, want bool) (seen time.Time) {
			t.Helper()
			is, seen := a.Presence("web1")
			if is != want {
				t.Fatalf("%s: connected is %v", when, is)
			}
			return seen
		}
		connected("before", false)
		s := connect(t, b.Hub, "web1")
		time.Sleep(2 * time.Second)
		connected("after two seconds", true)
		s.Close()
		time.Sleep(2 * time.Second)
		if seen := connected("after the session's end", false); time.Since(seen) > 3*time.Second {
			t.Errorf("last seen %v ago", time.Since(seen))
		}
		connect(t, b.Hub, "web1")
		time.Sleep(2 * time.Second)
		b.line.Cut.Store(true)
		time.Sleep(hub.DeadAfter - 5*time.Second)
		connected("shortly after the node was cut off", true)
		time.Sleep(6 * time.Second)
		if seen := connected("when the node counts as dead", false); time.Since(seen) < hub.DeadAfter-time.Second {
			t.Errorf("last seen %v ago, when nothing was heard of the node", time.Since(seen))
		}
		b.line.Cut.Store(false)
		time.Sleep(5 * time.Second)
		connected("when the node is back", true)
		b.line.Cut.Store(true)
		time.Sleep(5 * time.Minute) // what it said is deleted
		connected("when the node was buried", false)
		b.line.Cut.Store(false)
		time.Sleep(5 * time.Second)
		connected("when the buried node is back", true)
		b.Stop()
		time.Sleep(5 * time.Second)
		connected("when the node was stopped", false)
	})
}

// TestComeBackElsewhere: the parties of a node that stops have more time to go to
// others than to come back to a node that is alone and starts again.
func TestComeBackElsewhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	synctest.Test(t, func(t *testing.T) {
		_, nodes := servers(t, path, 2, hub.Config{})
		for at, n := range nodes {
			for i := range 1000 {
				connect(t, n.Hub, fmt.Sprintf("web%d-%d", at, i))
			}
		}
		time.Sleep(5 * time.Second)
		nodes[0].Stop()
		time.Sleep(5 * time.Second)
		nodes[1].Stop()
		if elsewhere, alone := nodes[0].ComeBack(), nodes[1].ComeBack(); elsewhere != 1500*time.Millisecond || alone != 500*time.Millisecond {
			t.Errorf("to come back within %v where another node lives, within %v where none does", elsewhere, alone)
		}
	})
}

// TestReplacedAtAnotherNode: of a party that has connected again elsewhere only
// the latest session counts. A poll replaces no stream.
func TestReplacedAtAnotherNode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	synctest.Test(t, func(t *testing.T) {
		_, nodes := servers(t, path, 2, hub.Config{})
		for i := range 4 {
			from, to := nodes[i%2], nodes[(i+1)%2]
			old := connect(t, from.Hub, "web1")
			time.Sleep(3 * time.Second)
			if _, err := to.Poll(t.Context(), operator, engine.PartyRecord{ID: "web1", Kind: hub.KindAgent}, []engine.Holding{{Key: "a"}}, time.Second); err != nil {
				t.Fatal(err)
			}
			want(t, next(t, old, 5*time.Second))
			latest := connect(t, to.Hub, "web1")
			if _, err := old.Next(t.Context(), 5*time.Second); !errors.Is(err, hub.ErrReplaced) {
				t.Errorf("the old session: %v", err)
			}
			want(t, next(t, latest, 10*time.Second))
			latest.Close()
		}
	})
}

// TestClientOfAnotherNodeIsNotForgotten: a client is removed when it is connected
// nowhere for long enough, once, and not while any node has it.
func TestClientOfAnotherNodeIsNotForgotten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	synctest.Test(t, func(t *testing.T) {
		c, nodes := servers(t, path, 3, hub.Config{ForgetClients: time.Minute})
		party := engine.PartyRecord{ID: "web1", Kind: hub.KindClient}
		register := func() *hub.Session {
			t.Helper()
			err := nodes[1].line.Store.Update(t.Context(), func(tx store.Tx) error {
				_, err := tx.Docs.Put(t.Context(), store.Doc{Kind: engine.KindParty, Name: party.ID})
				return err
			})
			if err != nil && !errors.Is(err, store.ErrConflict) {
				t.Fatal(err)
			}
			s, err := nodes[1].Connect(t.Context(), operator, party, []engine.Holding{{Key: "a"}})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		s := register()
		time.Sleep(10 * time.Minute)
		want(t, c.gone())
		// It moves from node to node and is never away for long.
		s.Close()
		for i := range 6 {
			s, err := nodes[i%3].Connect(t.Context(), operator, party, []engine.Holding{{Key: "a"}})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(40 * time.Second)
			s.Close()
			time.Sleep(20 * time.Second)
		}
		want(t, c.gone())
		// A node that does not know what the others have forgets nobody.
		register()
		nodes[0].line.Cut.Store(true)
		time.Sleep(10 * time.Minute)
		want(t, c.gone())
		// The node dies: the client is forgotten by those that are left.
		nodes[0].line.Cut.Store(false)
		nodes[1].line.Cut.Store(true)
		time.Sleep(3 * time.Minute)
		if gone := c.gone(); !slices.Contains(gone, "web1") {
			t.Error("it was not forgotten")
		}
	})
}

// TestForgottenWhileConnecting: a client that another node has forgotten while it
// connected is made to connect again.
func TestForgottenWhileConnecting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	synctest.Test(t, func(t *testing.T) {
		_, nodes := servers(t, path, 1, hub.Config{})
		// It is not registered any more when the node publishes it.
		s, err := nodes[0].Connect(t.Context(), operator, engine.PartyRecord{ID: "web1", Kind: hub.KindClient}, []engine.Holding{{Key: "a"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Next(t.Context(), 10*time.Second); !errors.Is(err, hub.ErrReplaced) {
			t.Errorf("it hears of nothing any more: %v", err)
		}
	})
}

// TestPresentersOfOtherNodesAreTold: whichever node decides, the presenters at all
// of them hear of it at once; they are not waited for until they connect again.
func TestPresentersOfOtherNodesAreTold(t *testing.T) {
	w := newWorld(t)
	other := w.another(t)
	w.party(t, "a", "canary", nil)
	other.party(t, "b", "canary", nil)
	w.party(t, "c", "rest", nil)
	other.party(t, "d", "rest", nil)
	for n := key.Version(1); n <= 10; n++ {
		at := []*world{w, other}[n%2]
		view := at.wait(t, at.rotate(t, engine.RotateRequest{Reason: "test"}), ended)
		if view.Phase != rotation.Done || view.To != n {
			t.Fatalf("rotation %d: %v to %v: %s", n, view.Phase, view.To, view.Reason)
		}
		if took := view.EndedAt.Sub(view.StartedAt); took > 5*time.Second {
			t.Errorf("rotation %d took %v", n, took)
		}
	}
}

const judged = `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: quick}
spec:
  stages: [{name: all, bake: 1s, ackTimeout: 500ms}]
  judge: [{name: failures, signal: auth_failures, max: 2, minSamples: 2}]
  drain: {min: 0s, quiet: 0s, max: 1m, every: 100ms}
  quarantine: 0s
`

// TestReportsOfOtherNodesCount: a stage is judged by what presenters report at
// every node, whichever node judges. Of a presenter that reports nowhere there is
// no data, and failures count wherever they are reported.
func TestReportsOfOtherNodesCount(t *testing.T) {
	w := newWorld(t)
	result, err := w.engine.Apply(t.Context(), operator, engine.ApplyRequest{Documents: []engine.Document{{Name: "p.yaml", Content: []byte(judged)}}})
	if err != nil || result.Problems.Err() != nil {
		t.Fatal(err, result.Problems)
	}
	other := w.another(t)
	nodes := map[string]*world{"a": w, "b": other, "c": other}
	var silent, failing atomic.Bool
	var version atomic.Uint64
	for id, at := range nodes {
		at.party(t, id, "", nil)
		var running sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(func() { cancel(); running.Wait() })
		running.Go(func() {
			for tick := time.Tick(50 * time.Millisecond); ctx.Err() == nil; {
				select {
				case <-tick:
				case <-ctx.Done():
					return
				}
				if id == "c" && silent.Load() {
					continue
				}
				sample := engine.Sample{Presenter: id, Attempts: 1, Healthy: true}
				if id == "c" && failing.Load() {
					sample.AuthFailures = 1
				}
				if err := at.hub.Report(ctx, "prod/db", key.Version(version.Load()), sample); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	rotate := func(until func(engine.RotationView) bool) (key.RotationID, engine.RotationView) {
		t.Helper()
		at := []*world{w, other}[version.Add(1)%2]
		id := at.rotate(t, engine.RotateRequest{Reason: "test"})
		return id, at.wait(t, id, func(view engine.RotationView) bool { return until(view) || view.Ended() })
	}
	for range 2 {
		if _, view := rotate(ended); view.Phase != rotation.Done {
			t.Fatalf("with reports of all: %v: %s", view.Phase, view.Reason)
		}
	}
	silent.Store(true)
	id, view := rotate(func(view engine.RotationView) bool {
		return view.Hold.Reason == rotation.HoldNoData && strings.Contains(view.Hold.Message, "c has not reported")
	})
	if view.Ended() {
		t.Fatalf("with one that is silent: %v, %+v", view.Phase, view.Hold)
	}
	silent.Store(false)
	if view := w.wait(t, id, ended); view.Phase != rotation.Done {
		t.Fatalf("when it reports again: %v: %s", view.Phase, view.Reason)
	}
	failing.Store(true)
	if _, view := rotate(ended); view.Phase != rotation.RolledBack || !strings.Contains(view.Reason, "authentication failures") {
		t.Errorf("with failures: %v: %s", view.Phase, view.Reason)
	}
}
