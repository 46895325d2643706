package signals

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// repeat is how often an open page is sent again: Alertmanager takes an alert
// that it has not heard of for five minutes as resolved.
const repeat = time.Minute

// Page tells humans that a rotation is on hold, or that it goes on.
type Page struct {
	// ID is the same for every message about the same hold: "ROTATION/REASON", or
	// about the same silent target, or the server's store: "target TARGET/REASON".
	// Receivers deduplicate by it.
	ID string `json:"id"`
	// Status is "firing" or "resolved".
	Status string `json:"status"`
	// Severity is "page" (somebody must look now) or "ticket".
	Severity string         `json:"severity"`
	Key      key.Name       `json:"key"`
	Rotation key.RotationID `json:"rotation"`
	// Kind is the rotation's kind, for example "scheduled".
	Kind    string              `json:"kind,omitempty"`
	Reason  rotation.HoldReason `json:"reason"`
	Message string              `json:"message"`
	// Target is the host that does not answer, "store" on pages about a full store,
	// and "restore" on those about keys that stand still; these have no key and no
	// rotation. It is "RULE KEY" on those about what a rule found, the
	// key and its version on those about a leaked secret, or a late partner, the key on
	// those about one that ends.
	Target string `json:"target,omitempty"`
	// Human says that only a human can end the hold.
	Human bool `json:"human"`
	// Parties are the names of those that the rotation waits for, at most 20.
	Parties []string `json:"parties,omitempty"`
	// Regions are those that the rotation waits for, longest first, at most 20.
	Regions []PageRegion `json:"regions,omitempty"`
	// Runbook is the address of the page that says what to do.
	Runbook    string    `json:"runbook"`
	StartedAt  time.Time `json:"startedAt"`
	ResolvedAt time.Time `json:"resolvedAt,omitzero"`
}

// hold is a rotation on hold.
type hold struct {
	key      key.Name
	rotation key.RotationID
	kind     string
	reason   rotation.HoldReason
	message  string
	human    bool
	since    time.Time
	parties  []string
	late     []engine.LateRegion
	target   string
}

// severity says whether somebody must be woken: recovery needs a human, something
// is late, or an emergency does not go on. A pause was somebody's wish.
func (h *hold) severity() string {
	switch {
	case h.reason == rotation.HoldOperator:
		return "ticket"
	case h.human, late(h.reason), h.reason == RegionBehind, h.reason == TargetSilent, h.reason == StoreFull, h.reason == KeysStanding, h.reason == Anomaly, h.reason == SecretLeaked, h.reason == PartnerRefused, h.kind == rotation.Emergency.String():
		return "page"
	}
	return "ticket"
}

// pager turns holds into pages, one per rotation and reason, and hands them to
// the webhooks. raise, resolve and reconcile are called by one goroutine.
type pager struct {
	runbooks string
	now      func() time.Time
	outboxes []*outbox
	open     map[pageKey]*openPage
	// ended is when pages were resolved, lest a sweep that began before raises them again.
	ended   map[pageKey]time.Time
	cancel  context.CancelFunc
	running sync.WaitGroup
}

type pageKey struct {
	rotation key.RotationID
	reason   rotation.HoldReason
	target   string
}

type openPage struct {
	page Page
	sent time.Time
}

func newPager(config Config, m *metrics) (*pager, error) {
	runbooks, err := url.Parse(config.Runbooks)
	if err != nil || runbooks.Host == "" {
		return nil, fmt.Errorf("%w: Runbooks %q is not an address; write for example %s", ErrConfig, config.Runbooks, DefaultRunbooks)
	}
	p := &pager{runbooks: config.Runbooks, now: config.Now, open: map[pageKey]*openPage{}, ended: map[pageKey]time.Time{}}
	names := map[string]bool{}
	for _, hook := range config.Webhooks {
		if names[hook.Name] {
			return nil, fmt.Errorf("%w: two Webhooks are called %q; give them different names", ErrConfig, hook.Name)
		}
		names[hook.Name] = true
		box, err := newOutbox(hook, m, config.Logger, config.Ledger)
		if err != nil {
			return nil, err
		}
		p.outboxes = append(p.outboxes, box)
	}
	return p, nil
}

func (p *pager) start(ctx context.Context) {
	ctx, p.cancel = context.WithCancel(ctx)
	for _, box := range p.outboxes {
		p.running.Go(func() { box.run(ctx) })
	}
}

// stop ends the delivery, and then tries once more to deliver what is left.
func (p *pager) stop(ctx context.Context) error {
	if p.cancel == nil {
		return nil
	}
	p.cancel()
	p.running.Wait()
	var errs []error
	for _, box := range p.outboxes {
		errs = append(errs, box.flush(ctx))
	}
	return errors.Join(errs...)
}

// raise sends a page unless the same one is open. What it says is kept up to date
// for later repetitions.
func (p *pager) raise(h hold) {
	if len(p.outboxes) == 0 {
		return
	}
	id := pageKey{h.rotation, h.reason, h.target}
	page := p.page(&h)
	if known, is := p.open[id]; is {
		page.StartedAt = known.page.StartedAt
		known.page = page
		return
	}
	if len(p.open) >= maxTracks {
		return // the metrics tell of so many holds
	}
	p.open[id] = &openPage{page: page, sent: p.now()}
	p.send(page)
}

// resolve ends the page of a rotation for a reason, or all of them for "".
func (p *pager) resolve(id key.RotationID, reason string, at time.Time) {
	if reason != "" {
		p.end(pageKey{rotation: id, reason: rotation.HoldReason(reason)}, at)
		return
	}
	for _, reason := range append(HoldReasons(), RegionBehind) {
		if _, is := p.open[pageKey{rotation: id, reason: reason}]; is {
			p.end(pageKey{rotation: id, reason: reason}, at)
		}
	}
}

func (p *pager) end(id pageKey, at time.Time) {
	if len(p.ended) < maxTracks && len(p.outboxes) > 0 {
		p.ended[id] = p.now()
	}
	known, is := p.open[id]
	if !is {
		return
	}
	delete(p.open, id)
	known.page.Status, known.page.ResolvedAt = "resolved", at
	p.send(known.page)
}

// reconcile compares the open pages with the holds that were found at a time: it
// raises what a restart or another server node left unsaid, resolves what ended
// unheard, and repeats what is still open.
func (p *pager) reconcile(holds []hold, at time.Time) {
	held := map[pageKey]bool{}
	for i := range holds {
		id := pageKey{holds[i].rotation, holds[i].reason, holds[i].target}
		if ended, is := p.ended[id]; is && !ended.Before(at) {
			continue
		}
		held[id] = true
		p.raise(holds[i])
	}
	for id, ended := range p.ended {
		if ended.Before(at) {
			delete(p.ended, id)
		}
	}
	for id, open := range p.open {
		if !held[id] && open.page.StartedAt.Before(at) && open.sent.Before(at) {
			p.end(id, at)
		}
	}
	now := p.now()
	for _, open := range p.open {
		if now.Sub(open.sent) >= repeat {
			open.sent = now
			for _, box := range p.outboxes {
				if box.hook.Format == Alertmanager {
					box.put(open.page)
				}
			}
		}
	}
}

func (p *pager) send(page Page) {
	for _, box := range p.outboxes {
		box.put(page)
	}
}

func (p *pager) page(h *hold) Page {
	id := h.rotation.String()
	if h.target != "" {
		id = "target " + h.target
	}
	return Page{
		ID: id + "/" + string(h.reason), Status: "firing", Severity: h.severity(),
		Key: h.key, Rotation: h.rotation, Kind: h.kind, Reason: h.reason, Message: clip(withRegions(h)), Target: h.target, Human: h.human,
		Parties: h.parties, Regions: pageRegions(h.late), Runbook: p.runbooks + string(h.reason) + ".md", StartedAt: h.since,
	}
}
