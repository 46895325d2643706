package signals_test

import (
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/signals"
)

// TestTargetSilent: a host that does not answer is paged for once, whatever waits
// for it, until it answers again.
func TestTargetSilent(t *testing.T) {
	h := newHook(t, false)
	config := paging(h, signals.Generic)
	config.Every = time.Millisecond
	clock := newClock()
	config.Now = clock.Now
	now := clock.Now()
	s := &source{silent: []engine.SilentTarget{
		{Name: "db1:5432", Since: now.Add(-2 * time.Minute), Cause: "connection refused", Abandoned: 4},
		{Name: "db2:5432", Since: now.Add(-time.Second), Cause: "timeout"}, // not for long
	}}
	f := begin(t, config, s)
	h.until(t, func() bool { return len(h.pages) > 0 })
	page := h.pages[0]
	if page.ID != "target db1:5432/target-silent" || page.Severity != "page" || page.Status != "firing" || page.Target != "db1:5432" ||
		page.Runbook != signals.DefaultRunbooks+"target-silent.md" || !strings.Contains(page.Message, "connection refused") || !strings.Contains(page.Message, "4 calls") {
		t.Errorf("%+v", page)
	}
	if v, _ := f.value("keyturn_targets_silent"); v != 2 {
		t.Errorf("%v targets are silent", v)
	}
	if v, there := f.value(`keyturn_target_silence_seconds{target="db1:5432"}`); !there || v < 120 {
		t.Errorf("silent for %v s", v)
	}
	s.mu.Lock()
	s.silent = nil
	s.mu.Unlock()
	clock.pass(time.Minute)
	h.until(t, func() bool { return h.pages[len(h.pages)-1].Status == "resolved" })
	f.end()
	firing := 0
	for _, p := range h.pages {
		if p.Status == "firing" {
			firing++
		}
	}
	if firing != 1 {
		t.Errorf("paged %d times: %+v", firing, h.pages)
	}
}
