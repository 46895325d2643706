package signals_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/signals"
)

// leaky is a source that knows of leaks.
type leaky struct {
	*source
	mu    sync.Mutex
	leaks []engine.OpenLeak
}

func (l *leaky) OpenLeaks(context.Context, string, int) ([]engine.OpenLeak, string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.leaks), "", nil
}

// TestSecretLeaked: a leaked version pages at once and once, until nothing accepts it.
func TestSecretLeaked(t *testing.T) {
	h := newHook(t, false)
	config := paging(h, signals.Generic)
	config.Every = time.Millisecond
	clock := newClock()
	config.Now = clock.Now
	s := &leaky{source: &source{}, leaks: []engine.OpenLeak{{Key: "prod/db", Version: 3, First: clock.Now().Add(-time.Second), Place: "a.env:2"}}}
	f := begin(t, config, s)
	f.eventually(func() bool { v, _ := f.value("keyturn_secrets_exposed"); return v == 1 })
	h.until(t, func() bool { return len(h.pages) > 0 })
	page := h.pages[0]
	if page.ID != "target prod/db v3/secret-leaked" || page.Severity != "page" || page.Key != "prod/db" ||
		page.Runbook != signals.DefaultRunbooks+"secret-leaked.md" || !strings.Contains(page.Message, "a.env:2") {
		t.Errorf("%+v", page)
	}
	s.mu.Lock()
	s.leaks = nil
	s.mu.Unlock()
	clock.pass(time.Minute)
	pagedOnce(t, h, "target prod/db v3/secret-leaked")
	f.eventually(func() bool { v, there := f.value("keyturn_secrets_exposed"); return there && v == 0 })
	f.end()
}
