package hub_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

func TestAnswersShareTransactions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCore()
		h := start(t, c, hub.Config{})
		var running sync.WaitGroup
		for i := range 10_000 {
			running.Go(func() {
				if err := h.Acknowledge(t.Context(), fmt.Sprint("web", i), []hub.Outcome{{Key: "a", Epoch: 1, OK: true, Using: 1}}); err != nil {
					t.Error(err)
				}
			})
		}
		running.Wait()
		total := 0
		for _, batch := range c.acks() {
			total += len(batch)
			if len(batch) > 4096 {
				t.Errorf("%d answers in one transaction", len(batch))
			}
		}
		if total != 10_000 || len(c.acks()) != 3 {
			t.Errorf("%d answers in %d transactions", total, len(c.acks()))
		}
	})
}

// TestSlowStoreMakesBatchesGrow: while answers of a key are recorded, those that come
// wait together. Each alone they would wait for each other, longer than anybody waits.
func TestSlowStoreMakesBatchesGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCore()
		var mu sync.Mutex
		running, most := 0, 0
		enter := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			running += n
			most = max(most, running)
		}
		c.acknowledge = func(key.Name, []rotation.Ack) error {
			enter(1)
			defer enter(-1)
			time.Sleep(time.Second)
			return nil
		}
		h := start(t, c, hub.Config{})
		const parties = 100
		began := time.Now()
		var waiting sync.WaitGroup
		for i := range parties {
			waiting.Go(func() {
				if err := h.Acknowledge(t.Context(), fmt.Sprint("web", i), []hub.Outcome{{Key: "a", Epoch: 1, OK: true, Using: 1}}); err != nil {
					t.Error(err)
				}
			})
			time.Sleep(20 * time.Millisecond)
		}
		waiting.Wait()
		if took := time.Since(began); took > 5*time.Second || most > 1 || len(c.acks()) > 5 {
			t.Errorf("%d answers took %v in %d transactions, %d of them at once", parties, took, len(c.acks()), most)
		}
	})
}

func TestOneBadAnswerHarmsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCore()
		c.acknowledge = func(_ key.Name, acks []rotation.Ack) error {
			refused := engine.Refused{}
			for _, ack := range acks {
				if ack.Using == 99 {
					refused[ack.ID] = engine.ErrInvalid
				}
			}
			return refused
		}
		h := start(t, c, hub.Config{})
		var running sync.WaitGroup
		for _, using := range []key.Version{1, 99} {
			running.Go(func() {
				err := h.Acknowledge(t.Context(), fmt.Sprint("web", using), []hub.Outcome{{Key: "a", Epoch: 1, OK: true, Using: using}})
				if (using == 99) != errors.Is(err, engine.ErrInvalid) {
					t.Errorf("version %d: %v", using, err)
				}
			})
		}
		running.Wait()
		if len(c.acks()) != 1 {
			t.Errorf("%d transactions", len(c.acks()))
		}
	})
}

// A party drops its outcomes when it hears that repeating them cannot help.
func TestAnErrorThatMayPassWins(t *testing.T) {
	down := errors.New("the store is away")
	for _, order := range [][]key.Name{{"down", "gone"}, {"gone", "down"}} {
		synctest.Test(t, func(t *testing.T) {
			c := newCore()
			c.acknowledge = func(name key.Name, _ []rotation.Ack) error {
				if name == "down" {
					return down
				}
				return engine.ErrNotFound
			}
			h := start(t, c, hub.Config{})
			var outcomes []hub.Outcome
			for _, name := range order {
				outcomes = append(outcomes, hub.Outcome{Key: name, Epoch: 1})
			}
			if err := h.Acknowledge(t.Context(), "web1", outcomes); !errors.Is(err, down) {
				t.Errorf("%v: got %v", order, err)
			}
			if err := h.Acknowledge(t.Context(), "web1", outcomes[:1]); err == nil {
				t.Error("a failure was not told")
			}
		})
	}
}

func TestReportsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCore()
		h := start(t, c, hub.Config{})
		connect(t, h, "web1")
		report := func(v key.Version, healthy bool) {
			t.Helper()
			before := len(c.acks())
			if err := h.Report(t.Context(), "a", v, engine.Sample{Presenter: "web1", Attempts: 1, Healthy: healthy, Detail: "d"}); err != nil {
				t.Fatal(err)
			}
			if acks := c.acks(); len(acks) > before {
				ack := acks[before][0]
				if ack.OK != healthy || ack.Using != v || ack.Epoch != c.tells["web1"]["a"].Epoch {
					t.Errorf("acknowledged %+v", ack)
				}
				c.unwell["web1"] = !ack.OK
			}
		}
		count := func(want int, when string) {
			t.Helper()
			if got := len(c.acks()); got != want {
				t.Errorf("%s: %d answers, want %d", when, got, want)
			}
		}
		c.tell("web1", "a", 2, 5)
		report(1, false)
		count(0, "unwell with a version it was not told")
		report(2, true)
		count(0, "well, as far as was known")
		report(2, false)
		report(2, false)
		count(1, "unwell")
		report(2, true)
		report(2, true)
		count(2, "well again")
		c.tell("web1", "a", 3, 6)
		report(3, false)
		count(3, "unwell with the next version at once")
	})
}

// What could not be made durable is said again with the next report.
func TestReportIsRepeatedAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCore()
		down := errors.New("the store is away")
		c.acknowledge = func(key.Name, []rotation.Ack) error { return down }
		h := start(t, c, hub.Config{})
		c.tell("web1", "a", 2, 5) // it polls: there is no session
		bad := engine.Sample{Presenter: "web1", Attempts: 1, AuthFailures: 1}
		if err := h.Report(t.Context(), "a", 2, bad); !errors.Is(err, down) {
			t.Fatal(err)
		}
		c.acknowledge = nil
		if err := h.Report(t.Context(), "a", 2, bad); err != nil || len(c.acks()) != 2 {
			t.Errorf("%v, %d answers", err, len(c.acks()))
		}
	})
}

func TestReportsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCore()
		h := start(t, c, hub.Config{})
		if err := h.Report(t.Context(), "a", 1, engine.Sample{Presenter: "stranger", Healthy: true}); !errors.Is(err, engine.ErrNotFound) {
			t.Errorf("a stranger's report: %v", err)
		}
		c.tell("web1", "a", 1, 1)
		began := time.Now()
		for v := key.Version(1); v <= 100; v++ {
			for range 100 {
				if err := h.Report(t.Context(), "a", v, engine.Sample{Presenter: "web1", Attempts: 1, Healthy: true}); err != nil {
					t.Fatal(err)
				}
			}
		}
		kept := 0
		for v := key.Version(1); v <= 100; v++ {
			kept += samples(t, h, "a", v, began)
		}
		if kept != 4*32 {
			t.Errorf("%d samples are kept", kept)
		}
		if n := samples(t, h, "a", 100, time.Now().Add(time.Second)); n != 0 {
			t.Errorf("%d samples of the future", n)
		}
		if err := h.Leave(t.Context(), operator, "web1", "test"); err != nil {
			t.Fatal(err)
		}
		if n := samples(t, h, "a", 100, began); n != 0 {
			t.Errorf("%d samples of a party that left", n)
		}
	})
}

// samples is how many samples the hub has.
func samples(t *testing.T, h *hub.Hub, name key.Name, v key.Version, since time.Time) int {
	t.Helper()
	list, err := h.Samples(t.Context(), name, v, since)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
