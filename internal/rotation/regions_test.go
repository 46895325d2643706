package rotation

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/key"
)

// regional: no region is promoted past another's readiness, and what an open
// rotation waits for is said of the region where it is.
func (c *config) regional(n *node) *violation {
	s := &n.s
	for i := range s.Rotations {
		r := &s.Rotations[i]
		verifiers, presenters, lateVerifiers, latePresenters := 0, 0, 0, 0
		for _, p := range s.Regions(r) {
			verifiers, presenters = verifiers+p.Verifiers, presenters+p.Presenters
			lateVerifiers, latePresenters = lateVerifiers+len(p.LateVerifiers), latePresenters+len(p.LatePresenters)
			failing := slices.ContainsFunc(p.LateVerifiers, func(id string) bool { w, _ := s.Verifier(id); return !w.takesTime() })
			if late := failing || len(p.LatePresenters) > 0; late == p.Since.IsZero() {
				return violated("regions", "rotation %d: region %s is late since %v", r.ID[15], p.Region, p.Since)
			}
		}
		if verifiers != len(s.Verifiers) || presenters != len(s.Presenters) {
			return violated("regions", "rotation %d: %d verifiers and %d presenters are in no region", r.ID[15], len(s.Verifiers)-verifiers, len(s.Presenters)-presenters)
		}
		if err := c.promoted(s, r); err != nil {
			return err
		}
		if r.Hold.Human {
			continue
		}
		ready := !slices.ContainsFunc(s.Verifiers, func(w Verifier) bool { return !accepts(&w, r.To) })
		if r.Phase == Accepting && len(s.Verifiers) > 0 && (ready || lateVerifiers == 0) {
			return violated("regions", "rotation %d waits in accepting for no region", r.ID[15])
		}
		for i := range s.Verifiers {
			w := &s.Verifiers[i]
			if r.Phase != Accepting || accepts(w, r.To) {
				continue
			}
			if !slices.ContainsFunc(s.Regions(r), func(p RegionProgress) bool {
				return p.Region == w.Region && slices.Contains(p.LateVerifiers, w.ID)
			}) {
				return violated("regions", "rotation %d waits for %s, which region %s does not tell", r.ID[15], w.ID, w.Region)
			}
		}
		if r.Phase == Revoking && lateVerifiers+latePresenters == 0 {
			return violated("regions", "rotation %d waits in revoking for no region", r.ID[15])
		}
	}
	return nil
}

// promoted: while a version is being presented, the verifiers of every region
// that presenters may reach accept it. A system with a gap is excepted.
func (c *config) promoted(s *State, r *Rotation) *violation {
	if v, ok := s.Version(r.To); c.gap || r.Phase != Presenting || ok && v.Contained {
		return nil
	}
	for i := range s.Verifiers {
		if w := &s.Verifiers[i]; w.Admitted && !accepts(w, r.To) {
			return violated("regions", "rotation %d presents %v, which %s in region %s does not accept", r.ID[15], r.To, w.ID, w.Region)
		}
	}
	return nil
}

// fold steps the machine and fails the test on an error.
func fold(t *testing.T, s State, at time.Time, id key.RotationID, bodies ...Body) (State, []Effect) {
	t.Helper()
	var effects []Effect
	for _, body := range bodies {
		var more []Effect
		var err error
		if s, more, err = Step(s, Event{At: at, Rotation: id, Body: body}); err != nil {
			t.Fatalf("%T: %v", body, err)
		}
		effects = append(effects, more...)
	}
	return s, effects
}

// answer carries the effects out until none is left; those at the verifier in
// cut, and tellings of the presenter in cut, get no answer.
func answer(t *testing.T, s State, at time.Time, effects []Effect, cut ...string) (State, []Effect) {
	t.Helper()
	var unanswered []Effect
	for len(effects) > 0 {
		e := effects[0]
		effects = effects[1:]
		if slices.Contains(cut, e.Verifier) || slices.Contains(cut, e.Presenter) {
			unanswered = append(unanswered, e)
			continue
		}
		if e.Kind != Tell && !s.Awaits(e.EffectRef) {
			continue
		}
		var body Body = Result{Effect: e.EffectRef, Outcome: OK}
		if e.Kind == Tell {
			body = Acked{Acks: []Ack{{ID: e.Presenter, Epoch: e.Epoch, OK: true, Using: e.Version}}}
		}
		var more []Effect
		s, more = fold(t, s, at, e.Rotation, body)
		effects = append(effects, more...)
	}
	return s, unanswered
}

// late returns the regions that the newest rotation waits for.
func late(s *State) []string {
	if len(s.Rotations) == 0 {
		return nil
	}
	var names []string
	for _, p := range s.Regions(&s.Rotations[len(s.Rotations)-1]) {
		if p.Late() {
			names = append(names, p.Region)
		}
	}
	return names
}

// TestRegionsNamesTheOneThatIsCutOff walks a rotation through all phases with
// one region cut off in each of them: that region is named, with since when, no
// presenter anywhere is told past it, and healing leads on.
func TestRegionsNamesTheOneThatIsCutOff(t *testing.T) {
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	at := start
	id := func(n byte) key.RotationID { return key.RotationID{15: n} }
	plan := Plan{Stages: []Stage{{Name: "all", AckTimeout: time.Minute}}, MeasureEvery: time.Minute}
	s, effects := fold(
		t, State{}, at, key.RotationID{},
		Configured{Verifiers: []VerifierRef{{ID: "db-eu", Region: "eu"}, {ID: "db-us", Region: "us"}}},
		Joined{ID: "app-eu", Region: "eu"}, Joined{ID: "app-us", Region: "us"},
	)
	s, _ = answer(t, s, at, effects)
	s, effects = fold(t, s, at, id(1), Begin{Kind: Manual, Plan: plan})
	if s, _ = answer(t, s, at, effects); s.Labelled(key.Current) != 1 {
		t.Fatalf("the first version is not current: %+v", s)
	}
	us := []string{"db-us", "app-us"}
	step := func(name string, want Phase, more []Effect) []Effect {
		t.Helper()
		since := at
		at = at.Add(time.Second)
		var waiting []Effect
		s, waiting = answer(t, s, at, more, us...)
		r := &s.Rotations[len(s.Rotations)-1]
		if r.Phase != want {
			t.Fatalf("%s: it is %v, not %v", name, r.Phase, want)
		}
		if got := late(&s); !slices.Equal(got, []string{"us"}) {
			t.Fatalf("%s: it waits for regions %v", name, got)
		}
		for _, p := range s.Regions(r) {
			if p.Region == "us" && (p.Since.Before(since) || p.Since.After(at)) {
				t.Errorf("%s: us is late since %v, not since %v to %v", name, p.Since, since, at)
			}
		}
		if named := s.Explain(r); !slices.ContainsFunc(named, func(w Waiting) bool { return w.Region == "us" }) {
			t.Errorf("%s: what it waits for does not name the region: %+v", name, named)
		}
		return waiting
	}
	heal := func(waiting []Effect) []Effect {
		t.Helper()
		// The next of what was cut off gets through; what follows it is cut off again.
		cut := us
		us = nil
		defer func() { us = cut }()
		var more []Effect
		for _, e := range waiting {
			if e.Kind == Tell {
				s, effects = fold(t, s, at, e.Rotation, Acked{Acks: []Ack{{ID: e.Presenter, Epoch: e.Epoch, OK: true, Using: e.Version}}})
			} else {
				s, effects = fold(t, s, at, e.Rotation, Result{Effect: e.EffectRef, Outcome: OK})
			}
			more = append(more, effects...)
		}
		return more
	}
	s, effects = fold(t, s, at, id(2), Begin{Kind: Manual, Plan: plan})
	s, effects = fold(t, s, at, id(2), Trouble{Effect: effects[0].EffectRef, Attempt: 1, Detail: "no route", Verifiers: []string{"db-us"}})
	if got := late(&s); !slices.Equal(got, []string{"us"}) || s.Rotations[0].Phase != Planned {
		t.Fatalf("the preflight waits for regions %v", got)
	}
	s, effects = fold(t, s, at, id(2), Result{Effect: EffectRef{Kind: Preflight, Rotation: id(2), Try: s.Rotations[0].Task.Try}, Outcome: OK})

	waiting := step("accept", Accepting, effects)
	if p, _ := s.Presenter("app-eu"); p.MayUse(2) {
		t.Fatal("eu is promoted before us accepts")
	}
	waiting = step("try", Accepting, heal(waiting))
	waiting = step("present", Presenting, heal(waiting))
	if s.Labelled(key.Current) != 1 {
		t.Fatal("the labels moved before us uses the new version")
	}
	at = at.Add(2 * time.Minute)
	s, _ = fold(t, s, at, key.RotationID{}, Tick{})
	if r := s.Rotations[0]; r.Hold.Reason != HoldStageLate || r.Phase != Presenting {
		t.Fatalf("a late region leads to %v in %v; it must hold and change nothing", r.Hold, r.Phase)
	}
	more := heal(waiting)
	measure := more[len(more)-1]
	if measure.Kind != Measure {
		t.Fatalf("after the cut-over comes %v", measure.Kind)
	}
	s, _ = fold(t, s, at, id(2), Result{Effect: measure.EffectRef, Outcome: NoData, Detail: "no route", Verifiers: []string{"db-us"}})
	if got := late(&s); !slices.Equal(got, []string{"us"}) || s.Rotations[0].Phase != Draining {
		t.Fatalf("the measurement waits for regions %v in %v", got, s.Rotations[0].Phase)
	}
	at = at.Add(2 * time.Minute)
	s, effects = fold(t, s, at, key.RotationID{}, Tick{})
	waiting = step("revoke", Revoking, effects)
	waiting = step("try the refusal", Revoking, heal(waiting))
	s, _ = answer(t, s, at, heal(waiting))
	if len(s.Rotations) != 0 || s.Labelled(key.Current) != 2 {
		t.Fatalf("healing does not lead to the end: %+v", s.Rotations)
	}
}

// TestContainmentIsWaitedForFirst: while a contained version is accepted somewhere, that
// is the first thing that its rotation waits for, whatever phase it is in.
func TestContainmentIsWaitedForFirst(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	id := func(n byte) key.RotationID { return key.RotationID{15: n} }
	plan := Plan{Stages: []Stage{{Name: "all", AckTimeout: time.Minute}}, MeasureEvery: time.Minute}
	s, effects := fold(
		t, State{}, at, key.RotationID{},
		Configured{Verifiers: []VerifierRef{{ID: "db-eu", Region: "eu"}, {ID: "db-us", Region: "us"}}}, Joined{ID: "app", Region: "eu"},
	)
	s, _ = answer(t, s, at, effects)
	s, effects = fold(t, s, at, id(1), Begin{Kind: Manual, Plan: plan})
	s, _ = answer(t, s, at, effects)
	plan.Strategy = ContainFirst
	s, effects = fold(t, s, at, id(2), Declare{Compromised: []key.Version{1}, Plan: plan})
	isRefusalAtUS := func(e *Effect) bool { return e.Verifier == "db-us" && e.Version == 1 }
	for len(effects) > 0 { // all is answered, but for what concerns the old version in us
		e := effects[0]
		effects = effects[1:]
		r := &s.Rotations[len(s.Rotations)-1]
		first := s.Explain(r)
		refusal := func(w Waiting) bool {
			return strings.Contains(w.Message, "refuse v1") && slices.Contains(w.Names, "db-us")
		}
		if len(first) == 0 || !strings.Contains(first[0].Message, "refuse v1") || !slices.ContainsFunc(first, refusal) {
			t.Fatalf("%v waits for %+v", r.Phase, first)
		}
		if isRefusalAtUS(&e) {
			continue
		}
		var body Body = Result{Effect: e.EffectRef, Outcome: OK}
		if e.Kind == Tell {
			body = Acked{Acks: []Ack{{ID: e.Presenter, Epoch: e.Epoch, OK: true, Using: e.Version}}}
		}
		var more []Effect
		s, more = fold(t, s, at, e.Rotation, body)
		effects = append(effects, more...)
	}
	if r := &s.Rotations[len(s.Rotations)-1]; r.Phase < Presenting || s.Labelled(key.Current) != 2 {
		t.Fatalf("it came to %v only", r.Phase)
	}
}
