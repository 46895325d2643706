package signals_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/signals"
)

// selling is a source that knows of late partners.
type selling struct {
	*source
	mu   sync.Mutex
	late []signals.LatePartner
}

func (s *selling) LatePartners(context.Context, int) ([]signals.LatePartner, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.late), nil
}

// TestLatePartners: a partner that still uses its old key is a ticket, as is one whose
// key ends, one that is refused a page; they say its name and who shows the key, once,
// until it has changed.
func TestLatePartners(t *testing.T) {
	h := newHook(t, false)
	config := paging(h, signals.Generic)
	config.Every = time.Millisecond
	clock := newClock()
	config.Now = clock.Now
	since := clock.Now().Add(-time.Second)
	s := &selling{source: &source{}, late: []signals.LatePartner{
		{Key: "partners/acme", Client: "ACME Ltd.", Version: 1, Since: since, Message: "ACME Ltd. still uses v1", Callers: []string{"billing at 192.0.2.7"}},
		{Key: "partners/umbrella", Client: "Umbrella", Version: 2, Refused: true, Since: since, Message: "v2 of Umbrella is refused"},
		{Key: "partners/initech", Client: "Initech", Version: 4, Expiring: true, Since: since, Message: "the key of Initech ends"},
	}}
	f := begin(t, config, s)
	h.until(t, func() bool { return len(h.pages) > 2 })
	for i, want := range []struct{ id, severity, message, parties string }{
		{"target partners/acme v1/partner-late", "ticket", "ACME Ltd. still uses v1; shown by billing at 192.0.2.7", "billing at 192.0.2.7"},
		{"target partners/umbrella v2/partner-refused", "page", "v2 of Umbrella is refused", ""},
		{"target partners/initech/api-key-expiring", "ticket", "the key of Initech ends", ""},
	} {
		p := &h.pages[i]
		if p.ID != want.id || p.Severity != want.severity || p.Message != want.message || strings.Join(p.Parties, " ") != want.parties || p.Runbook != signals.DefaultRunbooks+string(p.Reason)+".md" {
			t.Errorf("%+v, want %+v", p, want)
		}
	}
	f.eventually(func() bool {
		late, _ := f.value(`keyturn_partners_late{state="late"}`)
		refused, _ := f.value(`keyturn_partners_late{state="refused"}`)
		expiring, _ := f.value(`keyturn_partners_late{state="expiring"}`)
		return late == 1 && refused == 1 && expiring == 1
	})
	s.mu.Lock()
	s.late = nil
	s.mu.Unlock()
	clock.pass(time.Minute)
	h.until(t, func() bool { return len(h.pages) > 5 })
	for _, p := range h.pages[3:] {
		if p.Status != "resolved" {
			t.Errorf("another page: %+v", p)
		}
	}
	f.end()
}
