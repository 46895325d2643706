package signals_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/signals"
	"github.com/keyturn/keyturn/secret"
)

func paging(h *hook, format signals.Format) signals.Config {
	return signals.Config{Webhooks: []signals.Webhook{{
		Name: "oncall", URL: h.URL, Format: format, Insecure: strings.HasPrefix(h.URL, "http://"), Client: h.Client(),
		Authorization: secret.NewString("Bearer hush-hush"), RetryFirst: 2 * time.Millisecond, RetryMax: 10 * time.Millisecond,
	}}}
}

func TestHoldPagesOnce(t *testing.T) {
	h := newHook(t, true)
	f := begin(t, paging(h, signals.Generic), nil)
	s := newStory(f.clock, "prod/db", rotation.Scheduled)
	s.phase(rotation.Presenting)
	s.hold(rotation.HoldStageLate, false, "2 presenters have not acknowledged v2 in stage canary", "web-7", "web-9")
	since := f.clock.Now()
	s.tell(f)
	h.until(t, func() bool { return len(h.pages) == 1 })
	f.clock.pass(time.Minute)
	s.hold(rotation.HoldStageLate, false, "1 presenters have not acknowledged v2 in stage canary", "web-9")
	s.hold("", false, "")
	s.tell(f)
	h.until(t, func() bool { return len(h.pages) == 2 })
	// A second hold for the same reason is news.
	s.hold(rotation.HoldStageLate, false, "1 presenters", "web-9")
	s.phase(rotation.Draining)
	s.phase(rotation.Done) // the machine tells nothing of the hold when it ends
	s.tell(f)
	f.end()
	h.until(t, func() bool { return h.pages[len(h.pages)-1].Status == "resolved" })

	first, second := h.pages[0], h.pages[1]
	id := s.record.ID.String()
	if first.ID != id+"/stage-late" || first.Status != "firing" || first.Severity != "page" || first.Key != "prod/db" || first.Rotation != s.record.ID ||
		first.Reason != rotation.HoldStageLate || first.Kind != "scheduled" || !first.StartedAt.Equal(since) || first.Human {
		t.Errorf("page: %+v", first)
	}
	if strings.Join(first.Parties, " ") != "web-7 web-9" || first.Runbook != signals.DefaultRunbooks+"stage-late.md" {
		t.Errorf("page: %+v", first)
	}
	if second.ID != first.ID || second.Status != "resolved" || second.ResolvedAt.IsZero() || strings.Join(second.Parties, " ") != "web-9" {
		t.Errorf("resolved: %+v", second)
	}
	if got := h.headers[0].Get("Authorization"); got != "Bearer hush-hush" {
		t.Errorf("Authorization: %q", got)
	}
	for _, text := range []string{f.logs.String(), f.scrape(), string(h.bodies[0])} {
		if strings.Contains(text, "hush-hush") {
			t.Errorf("the credential leaks: %s", text)
		}
	}
}

// TestReceiverComesBack: pages wait for a receiver that is down; of what is said
// about one hold meanwhile only the last is delivered.
func TestReceiverComesBack(t *testing.T) {
	h := newHook(t, false)
	h.set(http.StatusServiceUnavailable)
	f := begin(t, paging(h, signals.Generic), nil)
	a, b := newStory(f.clock, "prod/a", rotation.Scheduled), newStory(f.clock, "prod/bb", rotation.Scheduled)
	a.hold(rotation.HoldEffect, true, "preflight: no")
	a.tell(f)
	b.hold(rotation.HoldNoRoom, false, "full")
	b.tell(f)
	h.until(t, func() bool { return h.tries >= 5 })
	a.hold("", false, "")
	a.tell(f)
	f.eventually(func() bool { return strings.Contains(f.logs.String(), `"rotation goes on"`) })
	h.set(http.StatusOK)
	h.until(t, func() bool { return len(h.pages) >= 2 })
	f.end()
	last := map[string]signals.Page{}
	for _, p := range h.pages {
		last[p.ID] = p
	}
	if p := last[a.record.ID.String()+"/effect-failed"]; p.Status != "resolved" {
		t.Errorf("last page of a: %+v", p)
	}
	if p := last[b.record.ID.String()+"/no-room"]; p.Status != "firing" || p.Severity != "ticket" {
		t.Errorf("last page of b: %+v", p)
	}
	if failed, _ := f.value(`keyturn_pages_total{state="failed",webhook="oncall"}`); failed < 5 {
		t.Errorf("%v failed tries are counted", failed)
	}
	f.want(map[string]float64{`keyturn_pages_waiting{webhook="oncall"}`: 0, `keyturn_pages_total{state="dropped",webhook="oncall"}`: 0})
}

func TestReceiverRefuses(t *testing.T) {
	h := newHook(t, false)
	h.set(http.StatusNotFound)
	f := begin(t, paging(h, signals.Generic), nil)
	s := newStory(f.clock, "prod/a", rotation.Scheduled)
	s.hold(rotation.HoldEffect, true, "no")
	s.tell(f)
	f.eventually(func() bool { return strings.Contains(f.logs.String(), "a page was refused") })
	f.end()
	f.want(map[string]float64{`keyturn_pages_total{state="refused",webhook="oncall"}`: 1, `keyturn_pages_total{state="failed",webhook="oncall"}`: 0})
	if h.tries != 1 {
		t.Errorf("%d tries, want one", h.tries)
	}
}

func TestReceiverGoneAtStop(t *testing.T) {
	h := newHook(t, false)
	config := paging(h, signals.Generic)
	h.Close()
	f := begin(t, config, nil)
	s := newStory(f.clock, "prod/a", rotation.Scheduled)
	s.hold(rotation.HoldEffect, true, "no")
	s.tell(f)
	f.eventually(func() bool { return strings.Contains(f.logs.String(), "could not be delivered; trying again") })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := f.Stop(ctx)
	if err == nil || !strings.Contains(err.Error(), "webhook oncall: 1 pages could not be delivered") {
		t.Errorf("stop: %v", err)
	}
	if strings.Contains(err.Error(), "http://") {
		t.Errorf("the error repeats the address, which may hold a token: %v", err)
	}
}

func TestQueueOfPagesIsBounded(t *testing.T) {
	h := newHook(t, false)
	h.set(http.StatusInternalServerError)
	config := paging(h, signals.Generic)
	config.Webhooks[0].Queue, config.Webhooks[0].RetryFirst = 3, time.Hour
	f := begin(t, config, nil)
	first := newStory(f.clock, "prod/a", rotation.Scheduled)
	first.hold(rotation.HoldEffect, true, "no")
	first.tell(f)
	h.until(t, func() bool { return h.tries == 1 })
	f.eventually(func() bool { v, _ := f.value(`keyturn_pages_waiting{webhook="oncall"}`); return v == 1 })
	for range 5 {
		f.clock.pass(time.Second)
		s := newStory(f.clock, "prod/a", rotation.Scheduled)
		s.hold(rotation.HoldEffect, true, "no")
		s.tell(f)
	}
	f.eventually(func() bool { v, _ := f.value(`keyturn_pages_total{state="dropped",webhook="oncall"}`); return v == 3 })
	h.set(http.StatusOK)
}

func TestAlertmanager(t *testing.T) {
	h := newHook(t, false)
	f := begin(t, paging(h, signals.Alertmanager), nil)
	s := newStory(f.clock, "prod/db", rotation.Emergency)
	s.hold(rotation.HoldGraceOver, false, "registered presenters may still be using the compromised v1", "web-7", "web-8")
	s.hold("", false, "")
	s.tell(f)
	f.end()
	h.until(t, func() bool { return len(h.bodies) > 0 })
	if h.paths[0] != "/api/v2/alerts" {
		t.Errorf("path %s", h.paths[0])
	}
	var alerts []struct {
		Labels, Annotations map[string]string
		StartsAt, EndsAt    time.Time
	}
	if err := json.Unmarshal(h.bodies[len(h.bodies)-1], &alerts); err != nil || len(alerts) != 1 {
		t.Fatalf("%v: %s", err, h.bodies[0])
	}
	a := alerts[0]
	if a.Labels["alertname"] != "KeyturnRotationHeld" || a.Labels["rotation"] != s.record.ID.String() || a.Labels["key"] != "prod/db" ||
		a.Labels["reason"] != "grace-over" || a.Labels["severity"] != "page" {
		t.Errorf("labels %v", a.Labels)
	}
	if a.Annotations["parties"] != "web-7 web-8" || a.Annotations["runbook_url"] != signals.DefaultRunbooks+"grace-over.md" || a.Annotations["description"] == "" {
		t.Errorf("annotations %v", a.Annotations)
	}
	if a.StartsAt.IsZero() || a.EndsAt.IsZero() {
		t.Errorf("times %v %v", a.StartsAt, a.EndsAt)
	}
}

// TestPagesFollowTheEngine: what a restart left unsaid is said, and taken back,
// from the engine's state alone; Alertmanager is reminded.
func TestPagesFollowTheEngine(t *testing.T) {
	h, am := newHook(t, false), newHook(t, false)
	config := paging(h, signals.Generic)
	config.Every = time.Millisecond
	config.Webhooks = append(config.Webhooks, signals.Webhook{Name: "am", URL: am.URL, Format: signals.Alertmanager, Insecure: true})
	clock := newClock()
	since := clock.Now().Add(-time.Hour)
	held := rotation.Rotation{ID: [16]byte{7}, Kind: rotation.Scheduled, Phase: rotation.Presenting, To: 2, Plan: rotation.Plan{Stages: []rotation.Stage{{Name: "all"}}}, Hold: rotation.Hold{
		Reason: rotation.HoldStageLate, Message: "late", Since: since,
	}}
	state := rotation.State{Presenters: []rotation.Presenter{{ID: "web-7", Told: 2}}, Rotations: []rotation.Rotation{held}}
	from := &source{keys: []engine.KeyView{viewOf("prod/db", state)}}
	config.Now = clock.Now
	f := begin(t, config, from)
	h.until(t, func() bool { return len(h.pages) == 1 })
	if p := h.pages[0]; p.Status != "firing" || strings.Join(p.Parties, "") != "web-7" || !p.StartedAt.Equal(since) {
		t.Errorf("page %+v", p)
	}
	clock.pass(2 * time.Minute)
	am.until(t, func() bool { return len(am.bodies) >= 2 })
	from.mu.Lock()
	from.keys = nil
	from.mu.Unlock()
	clock.pass(time.Second)
	h.until(t, func() bool { return len(h.pages) == 2 })
	if p := h.pages[1]; p.Status != "resolved" || p.ID != h.pages[0].ID {
		t.Errorf("page %+v", p)
	}
	f.end()
}

// ledger is kept by two servers together.
type ledger struct {
	mu   *sync.Mutex
	by   map[string]string
	sent map[string]bool
	node string
	down *atomic.Bool
}

func (l ledger) TakePage(_ context.Context, id string) (mine, sent bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down.Load() {
		return false, false, errors.New("the store is away")
	}
	if l.by[id] == "" {
		l.by[id] = l.node
	}
	return l.by[id] == l.node && !l.sent[id], l.sent[id], nil
}

func (l ledger) PageSent(_ context.Context, id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent[id] = true
	return nil
}

// noted reports whether a message whose ID ends so was sent.
func (l ledger) noted(end string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.sent {
		if strings.HasSuffix(id, end) {
			return true
		}
	}
	return false
}

// TestOneOfSeveralServersPages: of two servers that both know of a hold one pages,
// and one says that it is over. Without their common ledger both do.
func TestOneOfSeveralServersPages(t *testing.T) {
	h := newHook(t, true)
	common := ledger{mu: &sync.Mutex{}, by: map[string]string{}, sent: map[string]bool{}, down: &atomic.Bool{}}
	var servers []*fixture
	for _, node := range []string{"a", "b"} {
		config := paging(h, signals.Generic)
		common.node = node
		config.Ledger = common
		servers = append(servers, begin(t, config, nil))
	}
	hold := func() {
		s := newStory(servers[0].clock, "prod/db", rotation.Scheduled)
		s.phase(rotation.Presenting)
		s.hold(rotation.HoldStageLate, false, "1 presenters", "web-9")
		s.hold("", false, "")
		told := s.told
		for _, f := range servers {
			s.told = slices.Clone(told)
			s.tell(f)
		}
	}
	hold()
	h.until(t, func() bool { return len(h.pages) >= 1 && h.pages[len(h.pages)-1].Status == "resolved" })
	// A server that is stopped before it is noted sends it again.
	servers[0].eventually(func() bool { return common.noted("/resolved") })
	servers[1].end()
	before := len(h.pages)
	servers[1] = begin(t, func() signals.Config {
		config := paging(h, signals.Generic)
		config.Ledger = common
		return config
	}(), nil)
	common.down.Store(true)
	servers[0].clock.pass(time.Hour)
	hold()
	for _, f := range servers {
		f.end()
	}
	if resolved := len(slices.DeleteFunc(slices.Clone(h.pages[:before]), func(p signals.Page) bool { return p.Status != "resolved" })); resolved != 1 || before > 2 {
		t.Errorf("%d messages, %d of them that it is over", before, resolved)
	}
	if after := len(h.pages) - before; after < 2 {
		t.Errorf("without the ledger %d messages were sent", after)
	}
}
