package signals_test

import (
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/signals"
)

// pagedOnce waits until the page with an ID that was fired is resolved, and wants
// it to have fired once.
func pagedOnce(t *testing.T, h *hook, id string) {
	t.Helper()
	h.until(t, func() bool { return len(h.pages) > 0 && h.pages[len(h.pages)-1].Status == "resolved" })
	firing := 0
	for _, p := range h.pages {
		if p.ID != id {
			t.Errorf("another page: %+v", p)
		}
		if p.Status == "firing" {
			firing++
		}
	}
	if firing != 1 {
		t.Errorf("paged %d times: %+v", firing, h.pages)
	}
}

// TestStoreFull: a store that takes no writes is paged for at once and once, until
// it takes them again.
func TestStoreFull(t *testing.T) {
	h := newHook(t, false)
	config := paging(h, signals.Generic)
	config.Every = time.Millisecond
	clock := newClock()
	config.Now = clock.Now
	s := &source{refusal: engine.StoreRefusal{Since: clock.Now().Add(-3 * time.Second), Cause: "no space left on device"}}
	f := begin(t, config, s)
	h.until(t, func() bool { return len(h.pages) > 0 })
	page := h.pages[0]
	if page.ID != "target store/store-full" || page.Severity != "page" || page.Status != "firing" || page.Human ||
		page.Runbook != signals.DefaultRunbooks+"store-full.md" || !strings.Contains(page.Message, "no space left") {
		t.Errorf("%+v", page)
	}
	if v, _ := f.value("keyturn_store_full_seconds"); v != 3 {
		t.Errorf("full for %v s", v)
	}
	s.mu.Lock()
	s.refusal = engine.StoreRefusal{}
	s.mu.Unlock()
	clock.pass(time.Minute)
	pagedOnce(t, h, "target store/store-full")
	if v, there := f.value("keyturn_store_full_seconds"); !there || v != 0 {
		t.Errorf("full for %v s although it takes writes", v)
	}
	f.end()
}

// TestKeysStanding: keys that go on by themselves after a restore page nobody;
// when some stand still for minutes, one page tells so, until the last goes on.
func TestKeysStanding(t *testing.T) {
	h := newHook(t, false)
	config := paging(h, signals.Generic)
	config.Every = time.Millisecond
	clock := newClock()
	config.Now = clock.Now
	var state rotation.State
	state.Recovery.Since = clock.Now()
	s := &source{keys: []engine.KeyView{viewOf("a", state), viewOf("b", state)}}
	f := begin(t, config, s)
	f.eventually(func() bool { v, _ := f.value("keyturn_keys_standing"); return v == 2 })
	clock.pass(time.Minute)
	swept, _ := f.value("keyturn_sweep_timestamp_seconds")
	f.eventually(func() bool { v, _ := f.value("keyturn_sweep_timestamp_seconds"); return v > swept })
	h.mu.Lock()
	early := len(h.pages)
	h.mu.Unlock()
	if early > 0 {
		t.Errorf("paged after a minute: %+v", h.pages)
	}
	clock.pass(5 * time.Minute)
	h.until(t, func() bool { return len(h.pages) > 0 })
	page := h.pages[0]
	if page.ID != "target restore/keys-standing" || page.Severity != "page" || page.Status != "firing" ||
		page.Runbook != signals.DefaultRunbooks+"keys-standing.md" || !strings.Contains(page.Message, "2 keys") {
		t.Errorf("%+v", page)
	}
	s.mu.Lock()
	s.keys = nil
	s.mu.Unlock()
	clock.pass(time.Minute)
	pagedOnce(t, h, "target restore/keys-standing")
	f.end()
}
