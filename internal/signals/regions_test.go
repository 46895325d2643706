package signals_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/signals"
	"github.com/keyturn/keyturn/key"
)

// slotted is the verifier us with what it does with v1 and v2.
func slotted(one, two rotation.Acceptance) []rotation.Verifier {
	list := []rotation.Verifier{{ID: "db-eu", Region: "eu"}, {ID: "db-us", Region: "us"}}
	for i := range list {
		if one != 0 {
			list[i].Slots = append(list[i].Slots, rotation.Slot{Version: 1, Acceptance: one})
		}
		if two != 0 {
			list[i].Slots = append(list[i].Slots, rotation.Slot{Version: 2, Acceptance: two})
		}
	}
	// eu has done what us is still asked for.
	for i, slot := range list[0].Slots {
		switch slot.Acceptance {
		case rotation.AcceptPending:
			list[0].Slots[i].Acceptance = rotation.Accepted
		case rotation.RefusePending:
			list[0].Slots[i].Acceptance = rotation.Refused
		case rotation.AcceptProbing, rotation.RefuseProbing, rotation.Accepted, rotation.Refused:
		}
	}
	for i := range list[1].Slots {
		list[1].Slots[i].Trouble = "no route to db-us"
	}
	return list
}

// TestRegionBehind: whatever phase a rotation is in, a region that it waits for
// longer than RegionBehind is named by a page, by the hold's where one pages
// already, and by the metrics.
func TestRegionBehind(t *testing.T) {
	h := newHook(t, false)
	config := paging(h, signals.Generic)
	config.Every, config.RegionBehind = time.Millisecond, 5*time.Minute
	clock := newClock()
	config.Now = clock.Now
	now := clock.Now()
	views, want := []engine.KeyView{}, map[string]string{}
	add := func(name string, age time.Duration, reason rotation.HoldReason, state rotation.State, r rotation.Rotation) {
		since := now.Add(-age)
		r.ID, r.From, r.To = key.RotationID{byte(len(views) + 1)}, 1, 2
		r.StartedAt, r.PhaseSince, r.StageSince, r.UnreachedSince = since, since, since, since
		r.Plan.Stages = []rotation.Stage{{Name: "all"}}
		if r.Kind == 0 {
			r.Kind = rotation.Scheduled
		}
		state.Rotations = []rotation.Rotation{r}
		views = append(views, viewOf(name, state))
		if reason != "" {
			want[r.ID.String()+"/"+string(reason)] = name
		}
	}
	const long, brief = 10 * time.Minute, 2 * time.Minute
	parties := func(v key.Version) []rotation.Presenter {
		return []rotation.Presenter{
			{ID: "app-eu", Region: "eu", Told: 2, Acked: true, Maybe: []key.Version{2}}, {ID: "app-us", Region: "us", Told: 2, Maybe: []key.Version{v, 2}},
		}
	}
	unreached := rotation.Rotation{Unreached: []string{"db-us"}, Task: rotation.Task{Trouble: "no route to db-us"}}
	planned, draining := unreached, unreached
	planned.Phase, draining.Phase = rotation.Planned, rotation.Draining
	draining.Hold = rotation.Hold{Reason: rotation.HoldNoData, Message: "no data", Since: now}
	add("a-planned", long, signals.RegionBehind, rotation.State{Verifiers: slotted(0, 0)}, planned)
	add("b-accepting", long, signals.RegionBehind, rotation.State{Verifiers: slotted(rotation.Accepted, rotation.AcceptPending)}, rotation.Rotation{Phase: rotation.Accepting})
	add("c-presenting", long, signals.RegionBehind, rotation.State{Verifiers: slotted(rotation.Accepted, rotation.Accepted), Presenters: parties(1)}, rotation.Rotation{Phase: rotation.Presenting})
	add("d-late", long, rotation.HoldStageLate, rotation.State{Presenters: parties(1)}, rotation.Rotation{Phase: rotation.Presenting, Hold: rotation.Hold{Reason: rotation.HoldStageLate, Message: "late", Since: now}})
	add("e-draining", long, signals.RegionBehind, rotation.State{Verifiers: slotted(rotation.Accepted, rotation.Accepted)}, draining)
	want[key.RotationID{5}.String()+"/no-data"] = "e-draining" // the ticket stays
	add("f-revoking", long, signals.RegionBehind, rotation.State{Verifiers: slotted(rotation.RefusePending, rotation.Accepted)}, rotation.Rotation{Phase: rotation.Revoking})
	add("g-rolling-back", long, signals.RegionBehind, rotation.State{Verifiers: slotted(rotation.Accepted, rotation.RefusePending)}, rotation.Rotation{Phase: rotation.RollingBack})
	contained := rotation.State{Verifiers: slotted(rotation.RefusePending, rotation.Accepted), Versions: []rotation.Version{{Number: 1, Contained: true, State: key.Compromised}}}
	add("h-contained", brief, signals.RegionBehind, contained, rotation.Rotation{Kind: rotation.Emergency, Phase: rotation.Minting})
	add("i-in-time", brief, "", rotation.State{Verifiers: slotted(rotation.Accepted, rotation.AcceptPending)}, rotation.Rotation{Phase: rotation.Accepting})
	add("j-paused", long, rotation.HoldOperator, rotation.State{Verifiers: slotted(rotation.Accepted, rotation.AcceptPending)}, rotation.Rotation{Phase: rotation.Accepting, Hold: rotation.Hold{Reason: rotation.HoldOperator, Human: true}})

	from := &source{keys: views}
	f := begin(t, config, from)
	h.until(t, func() bool { return len(h.pages) >= len(want) })
	for _, p := range h.pages {
		name, wanted := want[p.ID]
		if !wanted || p.Status != "firing" || string(p.Key) != name {
			t.Errorf("page %s of %s is %s", p.ID, p.Key, p.Status)
		}
		delete(want, p.ID)
		if p.Reason == rotation.HoldOperator {
			continue
		}
		if len(p.Regions) != 1 || p.Regions[0].Region != "us" || p.Regions[0].Verifiers+p.Regions[0].Presenters != 1 || p.Regions[0].Since.IsZero() {
			t.Errorf("%s: regions %+v", name, p.Regions)
		}
		if !strings.HasPrefix(p.Message, "region us: 1 ") || p.Reason != rotation.HoldNoData && p.Severity != "page" {
			t.Errorf("%s: %s: %s", name, p.Severity, p.Message)
		}
		if p.Regions[0].Verifiers > 0 && p.Reason == signals.RegionBehind && !strings.Contains(p.Message, "no route to db-us") {
			t.Errorf("%s: the page does not say why: %s", name, p.Message)
		}
		if p.Reason == signals.RegionBehind && p.Runbook != signals.DefaultRunbooks+"region-behind.md" {
			t.Errorf("%s: runbook %s", name, p.Runbook)
		}
	}
	if len(want) > 0 {
		t.Errorf("no page for %v", want)
	}
	f.want(map[string]float64{
		`keyturn_region_lag_seconds{region="us"}`:                   long.Seconds(),
		`keyturn_region_lag_seconds{region="eu"}`:                   0,
		`keyturn_region_late{region="us",role="verifier"}`:          7,
		`keyturn_region_late{region="us",role="presenter"}`:         2,
		`keyturn_region_late{region="eu",role="presenter"}`:         0,
		`keyturn_held_rotations{human="false",reason="stage-late"}`: 1,
	})

	// What was in time is not any more; what was behind has caught up.
	clock.pass(4 * time.Minute)
	from.mu.Lock()
	from.keys = slices.Clone(views[8:9])
	from.mu.Unlock()
	h.until(t, func() bool {
		last := map[string]string{}
		for _, p := range h.pages {
			last[string(p.Key)] = p.Status
		}
		return last["i-in-time"] == "firing" && last["a-planned"] == "resolved" && last["h-contained"] == "resolved"
	})
	f.end()
}

// TestRegionsAreBounded: parties name their regions themselves; however many they
// invent, the series are bounded.
func TestRegionsAreBounded(t *testing.T) {
	var state rotation.State
	since := newClock().Now().Add(-time.Minute)
	for i := range 1000 {
		state.Presenters = append(state.Presenters, rotation.Presenter{ID: fmt.Sprintf("app-%04d", i), Region: fmt.Sprintf("region-%04d", i), Told: 2})
	}
	state.Rotations = []rotation.Rotation{{ID: key.RotationID{1}, Kind: rotation.Manual, Phase: rotation.Presenting, To: 2, StageSince: since, Plan: rotation.Plan{Stages: []rotation.Stage{{Name: "all"}}}}}
	f := begin(t, signals.Config{}, &source{keys: []engine.KeyView{viewOf("prod/db", state)}})
	f.eventually(func() bool { _, there := f.value("keyturn_sweep_timestamp_seconds"); return there })
	if n := strings.Count(f.scrape(), "\nkeyturn_region_lag_seconds{"); n < 50 || n > 52 {
		t.Errorf("%d series of the lag by region", n)
	}
	f.want(map[string]float64{`keyturn_region_lag_seconds{region="region-0007"}`: 60, `keyturn_region_lag_seconds{region="other"}`: 60})
	f.end()
}
