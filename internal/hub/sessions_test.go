package hub_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// core is an engine without a store: it answers what the test says.
type core struct {
	mu        sync.Mutex
	parties   map[string]engine.PartyRecord
	tells     map[string]map[key.Name]engine.Tell
	unwell    map[string]bool
	acked     [][]rotation.Ack
	detached  []string
	materials int

	attach      func(engine.PartyRecord) error
	acknowledge func(name key.Name, acks []rotation.Ack) error
	material    func(ctx context.Context, v key.Version) error
}

func newCore() *core {
	return &core{parties: map[string]engine.PartyRecord{}, tells: map[string]map[key.Name]engine.Tell{}, unwell: map[string]bool{}}
}

func (c *core) Attach(_ context.Context, _ audit.Actor, party engine.PartyRecord, holdings []engine.Holding) (map[key.Name]engine.Tell, error) {
	if c.attach != nil {
		if err := c.attach(party); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range holdings {
		party.Keys = append(party.Keys, h.Key)
	}
	c.parties[party.ID] = party
	return c.tells[party.ID], nil
}

func (c *core) Bake(context.Context, key.Name) (key.Version, time.Time, error) {
	return 0, time.Time{}, nil
}

func (c *core) Detach(_ context.Context, _ audit.Actor, id, _ string, _ func(context.Context, store.Tx) (bool, error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.detached = append(c.detached, id)
	delete(c.parties, id)
	return nil
}

func (c *core) Acknowledge(_ context.Context, _ audit.Actor, name key.Name, acks []rotation.Ack) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acked = append(c.acked, slices.Clone(acks))
	if c.acknowledge != nil {
		return c.acknowledge(name, acks)
	}
	return nil
}

func (c *core) Assigned(_ context.Context, name key.Name, id string) (engine.Tell, bool, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	tell, ok := c.tells[id][name]
	return tell, c.unwell[id], ok, nil
}

func (c *core) Material(ctx context.Context, _ key.Name, v key.Version) (provider.Material, error) {
	c.mu.Lock()
	c.materials++
	wait := c.material
	c.mu.Unlock()
	if wait != nil {
		if err := wait(ctx, v); err != nil {
			return provider.Material{}, err
		}
	}
	return provider.Material{Secrets: map[string]secret.Value{"password": secret.NewString(fmt.Sprint("p", v))}}, nil
}

func (c *core) Parties(_ context.Context, after string, limit int) ([]engine.PartyRecord, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []engine.PartyRecord
	for id, party := range c.parties {
		if id > after {
			list = append(list, party)
		}
	}
	slices.SortFunc(list, func(a, b engine.PartyRecord) int { return strings.Compare(a.ID, b.ID) })
	return list[:min(limit, len(list))], nil
}

func (c *core) tell(id string, name key.Name, v key.Version, epoch uint64) engine.Tell {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tells[id] == nil {
		c.tells[id] = map[key.Name]engine.Tell{}
	}
	c.tells[id][name] = engine.Tell{Presenter: id, Version: v, Epoch: epoch}
	return c.tells[id][name]
}

func (c *core) acks() [][]rotation.Ack {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.acked)
}

// gone returns who was detached, sorted.
func (c *core) gone() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(slices.Values(c.detached))
}

// start returns a hub with the core. It is stopped when the test ends.
func start(t *testing.T, c *core, config hub.Config) *hub.Hub {
	t.Helper()
	config.Logger, config.Now = slog.New(slog.NewTextHandler(t.Output(), nil)), time.Now
	h := hub.New(config)
	h.Use(c)
	h.Start(t.Context())
	t.Cleanup(h.Stop)
	return h
}

func connect(t *testing.T, h *hub.Hub, id string, holdings ...engine.Holding) *hub.Session {
	t.Helper()
	if len(holdings) == 0 {
		holdings = []engine.Holding{{Key: "a"}}
	}
	s, err := h.Connect(t.Context(), operator, engine.PartyRecord{ID: id, Kind: hub.KindAgent}, holdings)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// next returns what waits for a session, as key@version#epoch.
func next(t *testing.T, s *hub.Session, wait time.Duration) []string {
	t.Helper()
	deliveries, err := s.Next(t.Context(), wait)
	if err != nil {
		t.Fatal(err)
	}
	list := []string{}
	for _, d := range deliveries {
		list = append(list, fmt.Sprintf("%s@%d#%d", d.Key, d.Version, d.Epoch))
	}
	return list
}

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestSlowPartyGetsTheLatestOfEachKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCore()
		h := start(t, c, hub.Config{})
		s := connect(t, h, "web1", engine.Holding{Key: "a"}, engine.Holding{Key: "b"})
		for epoch := uint64(1); epoch <= 1000; epoch++ {
			h.Tell("a", []engine.Tell{{Presenter: "web1", Version: key.Version(epoch), Epoch: epoch}})
		}
		h.Tell("b", []engine.Tell{{Presenter: "web1", Version: 7, Epoch: 3}})
		h.Tell("b", []engine.Tell{{Presenter: "web1", Version: 6, Epoch: 2}}) // overtaken
		h.Tell("c", []engine.Tell{{Presenter: "web1", Version: 1, Epoch: 1}}) // not watched
		h.Tell("a", []engine.Tell{{Presenter: "web2", Version: 9, Epoch: 9}}) // somebody else
		want(t, next(t, s, time.Second), "a@1000#1000", "b@7#3")
		h.Tell("a", []engine.Tell{{Presenter: "web1", Version: 1000, Epoch: 1000}}) // known by now
		want(t, next(t, s, time.Second))
	})
}

func TestConnectRepeatsOnlyWhatIsUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCore()
		h := start(t, c, hub.Config{})
		c.tell("web1", "a", 2, 5)
		want(t, next(t, connect(t, h, "web1", engine.Holding{Key: "a", Version: 2, Epoch: 5}), time.Second))
		// An answer that was lost in a crash would otherwise never be given again.
		tell := c.tell("web1", "a", 2, 5)
		tell.Unanswered = true
		c.tells["web1"]["a"] = tell
		want(t, next(t, connect(t, h, "web1", engine.Holding{Key: "a", Version: 2, Epoch: 5}), time.Second), "a@2#5")
	})
}

func TestLatestStreamCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCore()
		h := start(t, c, hub.Config{})
		old := connect(t, h, "web1")
		young := connect(t, h, "web1")
		if _, err := old.Next(t.Context(), time.Minute); !errors.Is(err, hub.ErrReplaced) {
			t.Errorf("the older session: %v", err)
		}
		old.Close()
		if h.Connected() != 1 {
			t.Errorf("%d sessions", h.Connected())
		}
		h.Tell("a", []engine.Tell{{Presenter: "web1", Version: 1, Epoch: 1}})
		want(t, next(t, young, time.Second), "a@1#1")
	})
}

// A party polls beside its stream to learn whether the stream gets through.
func TestPollLeavesTheStreamAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCore()
		h := start(t, c, hub.Config{})
		s := connect(t, h, "web1")
		polled := make(chan int)
		go func() {
			deliveries, err := h.Poll(t.Context(), operator, engine.PartyRecord{ID: "web1", Kind: hub.KindAgent}, []engine.Holding{{Key: "a"}}, time.Minute)
			if err != nil {
				t.Error(err)
			}
			polled <- len(deliveries)
		}()
		synctest.Wait()
		h.Tell("a", []engine.Tell{{Presenter: "web1", Version: 1, Epoch: 1}})
		if n := <-polled; n != 1 {
			t.Errorf("the poll got %d assignments", n)
		}
		want(t, next(t, s, time.Second), "a@1#1")
		if connected, _ := h.Presence("web1"); !connected {
			t.Error("the stream ended with the poll")
		}
	})
}

func TestSessionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCore()
		h := start(t, c, hub.Config{MaxSessions: 2})
		connect(t, h, "web1")
		s := connect(t, h, "web2")
		if _, err := h.Connect(t.Context(), operator, engine.PartyRecord{ID: "web3"}, nil); !errors.Is(err, hub.ErrFull) {
			t.Errorf("got %v", err)
		}
		connect(t, h, "web2") // who is connected already may come back
		s.Close()
		if _, seen := h.Presence("web3"); !seen.IsZero() {
			t.Error("a party that was turned away was seen")
		}
	})
}

func TestFailedAttachLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCore()
		c.attach = func(engine.PartyRecord) error { return engine.ErrNotFound }
		h := start(t, c, hub.Config{})
		for i := range 100 {
			id := fmt.Sprint("web", i)
			if _, err := h.Connect(t.Context(), operator, engine.PartyRecord{ID: id}, []engine.Holding{{Key: "nosuch"}}); !errors.Is(err, engine.ErrNotFound) {
				t.Fatal(err)
			}
			if connected, seen := h.Presence(id); connected || !seen.IsZero() {
				t.Fatalf("%s is remembered", id)
			}
		}
	})
}

func TestStopEndsSessionsAndWaitsForAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCore()
		h := start(t, c, hub.Config{AckPause: time.Second})
		s := connect(t, h, "web1")
		answered, ended := make(chan error, 1), make(chan error, 1)
		go func() {
			answered <- h.Acknowledge(t.Context(), "web1", []hub.Outcome{{Key: "a", Epoch: 1, OK: true, Using: 1}})
		}()
		go func() { _, err := s.Next(t.Context(), time.Hour); ended <- err }()
		synctest.Wait()
		h.Stop()
		h.Stop()
		if err := <-answered; err != nil || len(c.acks()) != 1 {
			t.Errorf("the answer under way: %v, %v", err, c.acks())
		}
		if err := <-ended; !errors.Is(err, hub.ErrStopped) {
			t.Errorf("the session: %v", err)
		}
		if _, err := h.Connect(t.Context(), operator, engine.PartyRecord{ID: "web2"}, nil); !errors.Is(err, hub.ErrStopped) {
			t.Errorf("connecting: %v", err)
		}
		if err := h.Acknowledge(t.Context(), "web1", []hub.Outcome{{Key: "a", Epoch: 1}}); !errors.Is(err, hub.ErrStopped) {
			t.Errorf("acknowledging: %v", err)
		}
	})
}

func TestClientsThatStayAwayAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCore()
		c.parties["before"] = engine.PartyRecord{ID: "before", Kind: hub.KindClient} // of before the start
		h := start(t, c, hub.Config{ForgetClients: time.Minute})
		for _, party := range []engine.PartyRecord{{ID: "stays", Kind: hub.KindClient}, {ID: "goes", Kind: hub.KindClient}, {ID: "agent", Kind: hub.KindAgent}} {
			s, err := h.Connect(t.Context(), operator, party, []engine.Holding{{Key: "a"}})
			if err != nil {
				t.Fatal(err)
			}
			if party.ID != "stays" {
				s.Close()
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
		defer cancel()
		<-ctx.Done()
		synctest.Wait()
		if gone := c.gone(); len(gone) != 0 {
			t.Fatalf("too early: %v", gone)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		<-ctx.Done()
		synctest.Wait()
		want(t, c.gone(), "before", "goes")
	})
}

// A party that is removed while it connects must not end up connected and
// unregistered: it would hear of nothing.
func TestLeaveEndsSessionsOpenedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCore()
		h := start(t, c, hub.Config{})
		s := connect(t, h, "web1")
		if err := h.Leave(t.Context(), operator, "web1", "test"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Next(t.Context(), time.Minute); !errors.Is(err, hub.ErrReplaced) {
			t.Errorf("the session goes on: %v", err)
		}
		if _, seen := h.Presence("web1"); !seen.IsZero() {
			t.Error("it is still remembered")
		}
	})
}

func TestMaterialIsReadOnceAndNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCore()
		started, release := make(chan struct{}), make(chan struct{})
		c.material = func(ctx context.Context, _ key.Version) error {
			close(started)
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		h := start(t, c, hub.Config{})
		first, second := connect(t, h, "web1"), connect(t, h, "web2")
		h.Tell("a", []engine.Tell{{Presenter: "web1", Version: 1, Epoch: 1}, {Presenter: "web2", Version: 1, Epoch: 1}})
		gone, cancel := context.WithCancel(t.Context())
		go func() { _, _ = first.Next(gone, time.Minute) }()
		<-started
		got := make(chan []string)
		go func() { got <- next(t, second, time.Minute) }()
		synctest.Wait()
		cancel() // the party that asked first is gone; the other one must not suffer
		synctest.Wait()
		close(release)
		want(t, <-got, "a@1#1")
		c.mu.Lock()
		c.material = nil
		reads := c.materials
		c.mu.Unlock()
		if reads != 1 {
			t.Errorf("read %d times", reads)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		<-ctx.Done()
		h.Tell("a", []engine.Tell{{Presenter: "web1", Version: 1, Epoch: 2}})
		want(t, next(t, first, time.Second), "a@1#2")
		if c.materials != 2 {
			t.Errorf("the plaintext was kept for a minute")
		}
	})
}
