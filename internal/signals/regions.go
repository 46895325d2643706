package signals

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// RegionBehind is the reason of pages about a region that a rotation waits for
// longer than Config.RegionBehind while no hold of the rotation pages already.
// The machine knows no such hold: the rotation goes on when the region does.
const RegionBehind rotation.HoldReason = "region-behind"

// maxRegionsSeen bounds the regions of a sweep; parties name theirs themselves.
const maxRegionsSeen = 10_000

// regionSeen is what a sweep found of one region.
type regionSeen struct {
	verifiers, presenters int
	// since is when the longest wait for it began; zero when nothing waits.
	since time.Time
}

// regionsSeen are the regions that verifiers and presenters are in, by name.
type regionsSeen map[string]*regionSeen

// of returns what is known of a region; nil when there are too many.
func (r regionsSeen) of(name string) *regionSeen {
	seen := r[name]
	if seen == nil && len(r) < maxRegionsSeen {
		seen = &regionSeen{}
		r[name] = seen
	}
	return seen
}

// show puts the gauges of each region.
func (r regionsSeen) show(now time.Time, put put) {
	bound := newBound(maxRegions)
	sums := map[string]*regionSeen{}
	for _, name := range slices.Sorted(maps.Keys(r)) {
		label := bound.of(orNone(name))
		if sums[label] == nil {
			sums[label] = &regionSeen{}
		}
		sum, seen := sums[label], r[name]
		sum.verifiers += seen.verifiers
		sum.presenters += seen.presenters
		sum.wait(seen.since)
	}
	for label, sum := range sums {
		lag := 0.0
		if !sum.since.IsZero() {
			lag = max(0, now.Sub(sum.since).Seconds())
		}
		put(descRegionLag, lag, label)
		put(descRegionLate, float64(sum.verifiers), label, "verifier")
		put(descRegionLate, float64(sum.presenters), label, "presenter")
	}
}

// wait notes since when the region is waited for; the earliest counts.
func (s *regionSeen) wait(since time.Time) {
	if s.since.IsZero() || !since.IsZero() && since.Before(s.since) {
		s.since = since
	}
}

// takeRegions notes the regions that an open rotation waits for, and pages when
// that takes too long and nothing else pages.
func (v *view) takeRegions(name key.Name, state *rotation.State, r *rotation.Rotation) {
	for _, p := range state.Regions(r) {
		if seen := v.regions.of(p.Region); seen != nil {
			seen.verifiers += len(p.LateVerifiers)
			seen.presenters += len(p.LatePresenters)
			seen.wait(p.Since)
		}
	}
	late := engine.LateRegions(state, r)
	patience := v.patience
	if r.Kind == rotation.Emergency {
		patience /= 5
	}
	var behind []engine.LateRegion
	for _, l := range late {
		due := l.Since.Add(patience)
		switch {
		case l.Region == "":
			// Without names of regions a page would say no more than the hold does.
		case due.After(v.began):
			if v.next.IsZero() || due.Before(v.next) {
				v.next = due
			}
		default:
			behind = append(behind, l)
		}
	}
	held := hold{reason: r.Hold.Reason, human: r.Hold.Human, kind: r.Kind.String()}
	if len(behind) == 0 || r.Hold.Reason != "" && held.severity() == "page" {
		return
	}
	message := fmt.Sprintf("the rotation is %v and waits", r.Phase)
	if trouble := behind[0].Trouble; trouble != "" {
		message += ": " + trouble
	}
	v.holds = append(v.holds, hold{
		key: name, rotation: r.ID, kind: r.Kind.String(), reason: RegionBehind, message: message,
		since: behind[0].Since, parties: parties(state.Explain(r)), late: behind,
	})
}

// soon returns when to sweep again, at the latest: when a region becomes late, and
// while rotations are open before one could. That it fell silent is no news.
func (v *view) soon(every time.Duration) time.Duration {
	if !v.next.IsZero() {
		every = min(every, v.next.Sub(v.began))
	}
	if len(v.open) > 0 {
		every = min(every, v.patience)
	}
	return every
}

// PageRegion is a region that a rotation waits for.
type PageRegion struct {
	Region string `json:"region"`
	// Verifiers and Presenters are how many of them are waited for.
	Verifiers  int `json:"verifiers,omitempty"`
	Presenters int `json:"presenters,omitempty"`
	// Trouble is the last error of one of them.
	Trouble string `json:"trouble,omitempty"`
	// Since is when the rotation began to wait for them.
	Since time.Time `json:"since"`
}

func pageRegions(late []engine.LateRegion) []PageRegion {
	var list []PageRegion
	for _, l := range late {
		list = append(list, PageRegion{Region: l.Region, Verifiers: l.Verifiers, Presenters: l.Presenters, Trouble: clip(l.Trouble), Since: l.Since})
	}
	return list
}

func (p *Page) regionNames() []string {
	var names []string
	for _, r := range p.Regions {
		if r.Region != "" {
			names = append(names, r.Region)
		}
	}
	return names
}

// withRegions is what a page says: which regions it is about, before the rest,
// which may be cut off.
func withRegions(h *hold) string {
	var parts []string
	for _, l := range h.late {
		if l.Region == "" {
			continue
		}
		var whom []string
		if l.Verifiers > 0 {
			whom = append(whom, fmt.Sprintf("%d verifiers", l.Verifiers))
		}
		if l.Presenters > 0 {
			whom = append(whom, fmt.Sprintf("%d presenters", l.Presenters))
		}
		parts = append(parts, fmt.Sprintf("region %s: %s since %s", l.Region, strings.Join(whom, " and "), l.Since.UTC().Format(time.TimeOnly)))
	}
	if len(parts) == 0 {
		return h.message
	}
	return strings.Join(parts, ", ") + "; " + h.message
}
