package rotation

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/key"
)

// firstVersion is a key whose first version is being accepted, with the effects that
// are under way.
func firstVersion(t *testing.T) (State, []Effect) {
	t.Helper()
	s, _ := fold(t, State{}, epoch0(), key.RotationID{}, Configured{Verifiers: []VerifierRef{{ID: "a"}}}, Joined{ID: "p"})
	s, effects := fold(t, s, epoch0(), key.RotationID{1}, Begin{Kind: Manual, Plan: Plan{Stages: []Stage{{Name: "all"}}}})
	for s.Rotations[0].Phase != Accepting {
		s, effects = fold(t, s, epoch0(), key.RotationID{1}, Result{Effect: effects[0].EffectRef, Outcome: OK})
	}
	return s, effects
}

// back puts a copy of the state back, at which verifier a accepts the versions given.
func back(t *testing.T, s State, listed bool, accepted ...key.Version) (State, []Effect) {
	t.Helper()
	s, effects := fold(t, s, epoch0(), key.RotationID{}, Restored{Epoch: s.Epoch + 1000, Next: s.Next + 1000})
	var found []Found
	for i := range s.Versions {
		v := s.Versions[i].Number
		found = append(found, Found{Verifier: "a", Version: v, Accepted: slices.Contains(accepted, v)})
	}
	return fold(t, s, epoch0(), key.RotationID{}, Reconciled{Effect: effects[len(effects)-1].EffectRef, Listed: listed, Found: found})
}

// TestFirstVersionInUse: in the time that a backup lacks, the first version of a key
// may have been presented. Until that is known it cannot be given up, neither by a
// cancellation nor by an emergency that would replace it first.
func TestFirstVersionInUse(t *testing.T) {
	s, _ := firstVersion(t)
	cancelled, _ := fold(t, s, epoch0(), key.RotationID{1}, Cancel{})
	if phase := cancelled.Rotations[0].Phase; phase != RollingBack {
		t.Fatalf("a first version that nobody can use is not given up: %v", phase)
	}
	s, _ = back(t, s, true, 1)
	if s.Standing() {
		t.Fatal("it stands still, and nothing differs")
	}
	if _, _, err := Step(s, Event{Rotation: key.RotationID{1}, Body: Cancel{}}); !errors.Is(err, ErrPhase) {
		t.Errorf("a version that may be in use is given up: %v", err)
	}
	plan := Plan{Stages: []Stage{{Name: "all"}}, Strategy: ReplaceFirst, Grace: time.Minute}
	s, effects := fold(t, s, epoch0(), key.RotationID{2}, Declare{Compromised: []key.Version{1}, Plan: plan})
	for _, e := range effects {
		if e.Kind == Refuse {
			t.Errorf("%s although nothing has replaced it", e.ID())
		}
	}
	if s.Labelled(key.Current) != 1 {
		t.Errorf("what is to be replaced is not current: %+v", s.Versions)
	}
}

// TestLookingAgain: verifiers are asked once more, and who came back is not forgotten.
func TestLookingAgain(t *testing.T) {
	s, _ := firstVersion(t)
	s, _ = back(t, s, true)
	if !s.Standing() {
		// What was being accepted may be refused: that is no difference.
		s, _ = fold(t, s, epoch0(), key.RotationID{}, Restored{Epoch: s.Epoch + 1000, Next: s.Next + 1000})
	}
	if p, _ := s.Presenter("p"); !p.Silent {
		t.Fatal("a presenter was heard of in no time")
	}
	s, _ = fold(t, s, epoch0(), key.RotationID{}, Joined{ID: "p"})
	again, effects := fold(t, s, epoch0(), key.RotationID{}, Restored{Epoch: s.Floor, Next: s.Next})
	if p, _ := again.Presenter("p"); p.Silent || len(effects) != 1 || effects[0].Kind != Reconcile {
		t.Errorf("looking again: presenter %+v, effects %v", p, effects)
	}
	anew, _ := fold(t, s, epoch0(), key.RotationID{}, Restored{Epoch: s.Floor + 1, Next: s.Next + 1})
	if p, _ := anew.Presenter("p"); !p.Silent {
		t.Error("after another restore who came back before counts as heard of")
	}
}

// TestRestoredWhileMinting: the version that was being minted when the backup was
// taken may be in use. Where only presenters know of it, what one of them says it
// holds is a difference, and no verifier that joins is relied on.
func TestRestoredWhileMinting(t *testing.T) {
	s, _ := fold(t, State{}, epoch0(), key.RotationID{}, Configured{Verifiers: []VerifierRef{{ID: "a"}}}, Joined{ID: "p"})
	s, effects := fold(t, s, epoch0(), key.RotationID{1}, Begin{Kind: Manual, Plan: Plan{Stages: []Stage{{Name: "all"}}}})
	s, _ = fold(t, s, epoch0(), key.RotationID{1}, Result{Effect: effects[0].EffectRef, Outcome: OK})
	if s.Rotations[0].Phase != Minting {
		t.Fatalf("it is %v", s.Rotations[0].Phase)
	}
	s, effects = fold(
		t, s, epoch0(), key.RotationID{}, Restored{Epoch: 1000, Next: 1000}, Joined{ID: "p", Holding: 1},
		Configured{Verifiers: []VerifierRef{{ID: "a"}, {ID: "b"}}},
	)
	s, _ = fold(t, s, epoch0(), key.RotationID{}, Reconciled{Effect: effects[len(effects)-1].EffectRef})
	if d := s.Differences(); len(d) != 1 || d[0].Presenter != "p" || d[0].Version != 1 {
		t.Fatalf("differences: %v", d)
	}
	s, _ = fold(t, s, epoch0(), key.RotationID{2}, Resolve{How: Replace, Plan: Plan{Stages: []Stage{{Name: "all"}}}, Retire: []key.RotationID{{3}}})
	if w, _ := s.Verifier("b"); w.Admitted {
		t.Error("b is relied on, and cannot accept what p uses")
	}
}

// TestOvertakenAnswer: of two answers to one telling the later one counts, however
// they arrive; an answer without an order counts when it arrives.
func TestOvertakenAnswer(t *testing.T) {
	s, acks := fleet(t, 1)
	p := func() *Presenter { p, _ := s.Presenter("0"); return p }
	bad, good := acks[0], acks[0]
	bad.OK, bad.Order, good.Order = false, 5, 6
	s, _ = fold(t, s, time.Time{}, key.RotationID{}, Acked{Acks: []Ack{good}})
	if _, _, err := Step(s, Event{Body: Acked{Acks: []Ack{bad}}}); !errors.Is(err, ErrStale) {
		t.Errorf("an answer that was overtaken is taken: %v", err)
	}
	bad.Order = 7
	if s, _ = fold(t, s, time.Time{}, key.RotationID{}, Acked{Acks: []Ack{bad}}); !p().Failed {
		t.Error("a later answer is not taken")
	}
	good.Order = 0
	if s, _ = fold(t, s, time.Time{}, key.RotationID{}, Acked{Acks: []Ack{good}}); p().Failed || p().Heard != 7 {
		t.Errorf("an answer without an order: %+v", p())
	}
}

// TestCurrentAfterTwoRestores: of several versions that are accepted everywhere, one
// that presenters can be given is current, or they could not leave the others.
func TestCurrentAfterTwoRestores(t *testing.T) {
	m := machine{State: State{
		Versions:  []Version{{Number: 1, State: key.Active}, {Number: 2, State: key.Active, Label: key.Current, Foreign: true}},
		Verifiers: []Verifier{{ID: "a"}},
		Recovery:  Recovery{Found: []Found{{"a", 1, true}, {"a", 2, true}}},
	}}
	if v := m.currentFound(nil); v != 1 {
		t.Errorf("%v is current", v)
	}
	m.Recovery.Found[0].Accepted = false
	if v := m.currentFound([]key.Version{7}); v != 2 {
		t.Errorf("%v is current, although what is remembered is accepted everywhere", v)
	}
}

// TestNothingToReturnTo: after a restore the version before may be refused at a
// verifier. An emergency does not wait for presenters to return to it: it replaces
// what is being presented.
func TestNothingToReturnTo(t *testing.T) {
	for _, test := range []struct {
		old  Acceptance
		want Phase
	}{{Accepted, RollingBack}, {AcceptPending, RollingBack}, {Refused, Draining}} {
		m := machine{State: State{
			Versions:   []Version{{Number: 1, State: key.Compromised, Label: key.Current}, {Number: 2, State: key.Compromised, Label: key.Pending}},
			Verifiers:  []Verifier{{ID: "a", Admitted: true, Slots: []Slot{{Version: 1, Acceptance: test.old}, {Version: 2, Acceptance: Accepted}}}},
			Presenters: []Presenter{{ID: "p", Told: 2, Maybe: []key.Version{2}}},
			Rotations:  []Rotation{{ID: key.RotationID{1}, Kind: Manual, Phase: Presenting, From: 1, To: 2, Plan: Plan{Stages: []Stage{{Name: "all"}}}}},
		}}
		m.divertCutOvers(Rotation{ID: key.RotationID{2}, Kind: Emergency, Plan: Plan{Strategy: ReplaceFirst, Stages: []Stage{{Name: "all"}}}})
		if phase := m.Rotations[0].Phase; phase != test.want {
			t.Errorf("v1 is %v: the cut-over is %v, want %v", test.old, phase, test.want)
		}
		if current := m.Labelled(key.Current); test.want == Draining && current != 2 {
			t.Errorf("v%d is to be replaced, want what is presented", current)
		}
	}
}

// returning is a cut-over whose presenter returns from v2 to v1, which b does not
// accept.
func returning(old Slot) machine {
	return machine{State: State{
		Versions: []Version{{Number: 1, State: key.Active, Label: key.Current}, {Number: 2, State: key.Active, Label: key.Pending}},
		Verifiers: []Verifier{
			{ID: "a", Admitted: true, Slots: []Slot{{Version: 1, Acceptance: Accepted}, {Version: 2, Acceptance: Accepted}}},
			{ID: "b", Region: "east", Admitted: true, Slots: []Slot{old, {Version: 2, Acceptance: Accepted}}},
		},
		Presenters: []Presenter{{ID: "p", Told: 2, Maybe: []key.Version{2}}},
		Rotations:  []Rotation{{ID: key.RotationID{1}, Kind: Manual, Phase: RollingBack, From: 1, To: 2, Exit: RolledBack, Plan: Plan{Stages: []Stage{{Name: "all", AckTimeout: time.Minute}}}}},
	}}
}

// TestWaitsForReturn: where presenters cannot return since a verifier does not accept
// the version before, the rotation names that verifier and both ways out, also while
// it is being asked once more, until it accepts.
func TestWaitsForReturn(t *testing.T) {
	m := returning(Slot{Version: 1, Acceptance: AcceptPending, Failed: true, Trouble: "deleted here"})
	m.Now = epoch0().Add(time.Hour)
	r := &m.Rotations[0]
	for _, trouble := range []string{"deleted here", ""} {
		m.updateSlot(&m.Verifiers[1], 1, func(slot *Slot) { slot.Trouble = trouble })
		m.driveRollingBack(r)
		for _, part := range []string{"b does not accept v1", trouble, "see to it that it does", "declare v1 compromised to go on with v2"} {
			if r.Hold.Reason != HoldTrouble || r.Hold.Human || !strings.Contains(r.Hold.Message, part) {
				t.Errorf("trouble %q: %+v does not say %q", trouble, r.Hold, part)
			}
		}
		waiting := m.Explain(r)
		if i := slices.IndexFunc(waiting, func(w Waiting) bool { return w.Reason == "verifier" }); i < 0 || waiting[i].Message[:len("verifiers to accept v1")] != "verifiers to accept v1" || !slices.Equal(waiting[i].Names, []string{"b"}) {
			t.Errorf("it waits for %+v", waiting)
		}
		for _, region := range m.Regions(r) {
			if late := slices.Equal(region.LateVerifiers, []string{"b"}); late != (region.Region == "east") {
				t.Errorf("region %q: %+v", region.Region, region)
			}
		}
	}
	m.updateSlot(&m.Verifiers[1], 1, func(slot *Slot) { *slot = Slot{Version: 1, Acceptance: Accepted} })
	if m.driveRollingBack(r); r.Hold.Reason != HoldStageLate {
		t.Errorf("b accepts v1, and it is on hold for %+v", r.Hold)
	}
}

// TestNoReturnInAnEmergency: an emergency does not wait for presenters to return to a
// version that a verifier cannot be made to accept, also when they were to already.
func TestNoReturnInAnEmergency(t *testing.T) {
	for _, test := range []struct {
		phase Phase
		old   Slot
		bad   []key.Version
		want  Phase
	}{
		{Presenting, Slot{Version: 1, Acceptance: AcceptPending, Failed: true}, []key.Version{2}, Draining},
		{Presenting, Slot{Version: 1, Acceptance: AcceptPending}, []key.Version{2}, RollingBack},
		{RollingBack, Slot{Version: 1, Acceptance: Refused}, []key.Version{1, 2}, Draining},
		{RollingBack, Slot{Version: 1, Acceptance: Accepted}, []key.Version{1, 2}, RollingBack},
		{RollingBack, Slot{Version: 1, Acceptance: AcceptPending, Failed: true}, []key.Version{1}, Accepting},
	} {
		m := returning(test.old)
		m.Rotations[0].Phase = test.phase
		for _, v := range test.bad {
			version, _ := m.Version(v)
			version.State = key.Compromised
		}
		m.divertCutOvers(Rotation{ID: key.RotationID{2}, Kind: Emergency, Plan: Plan{Strategy: ReplaceFirst, Stages: []Stage{{Name: "all"}}}})
		if phase := m.Rotations[0].Phase; phase != test.want {
			t.Errorf("%v, %+v, %v compromised: the cut-over is %v, want %v", test.phase, test.old, test.bad, phase, test.want)
		}
		if current := m.Labelled(key.Current); test.want == Draining && current != 2 {
			t.Errorf("v%d is to be replaced, want what is presented", current)
		}
	}
}
