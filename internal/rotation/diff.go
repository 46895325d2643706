package rotation

import (
	"cmp"
	"strconv"

	"github.com/keyturn/keyturn/key"
)

// Transition is one visible change from one state to the next: what the audit
// log records, what a timeline shows, what metrics count.
type Transition struct {
	Kind     TransitionKind
	Rotation key.RotationID
	Version  key.Version
	// Subject is the verifier or presenter concerned, if any.
	Subject string
	// From and To are names of phases, states, labels, acceptances or holds.
	From string
	To   string
	// Reason is machine-readable, Message for humans; both may be empty.
	Reason  string
	Message string
}

// TransitionKind says what changed; it is stable and machine-readable.
type TransitionKind string

// The kinds.
const (
	RotationPhase  TransitionKind = "rotation.phase"
	RotationHold   TransitionKind = "rotation.hold"
	RotationStage  TransitionKind = "rotation.stage"
	RotationBegun  TransitionKind = "rotation.begun"
	VersionState   TransitionKind = "version.state"
	VersionLabel   TransitionKind = "version.label"
	VerifierChange TransitionKind = "verifier.acceptance"
	VerifierGone   TransitionKind = "verifier.gone"
	PresenterTold  TransitionKind = "presenter.told"
	PresenterAcked TransitionKind = "presenter.acked"
	PresenterLeft  TransitionKind = "presenter.left"
	KeyRecovery    TransitionKind = "key.recovery"
)

// Diff lists the transitions between two states that follow one another, in a
// fixed order: recovery, rotations, versions, verifiers, presenters.
func Diff(before, after State) []Transition {
	var list []Transition
	add := func(t Transition) { list = append(list, t) }
	diffRecovery(&before, &after, add)
	diffRotations(&before, &after, add)
	diffVersions(&before, &after, add)
	diffVerifiers(&before, &after, add)
	diffPresenters(&before, &after, add)
	return list
}

// The names of Recovery's steps in a Transition.
const (
	// RecoveryRestored: the key stands still and is being reconciled.
	RecoveryRestored = "restored"
	// RecoveryDiffers: it stands still and waits for a human.
	RecoveryDiffers = "differs"
	// RecoveryOver: it goes on.
	RecoveryOver = "over"
)

func (s *State) recoveryStep() string {
	switch {
	case !s.Standing():
		return ""
	case s.Recovery.Task.Done:
		return RecoveryDiffers
	}
	return RecoveryRestored
}

func diffRecovery(before, after *State, add func(Transition)) {
	from, to := before.recoveryStep(), after.recoveryStep()
	if from == to && (to != RecoveryRestored || before.Recovery.Task.Trouble == after.Recovery.Task.Trouble) {
		return
	}
	t := Transition{Kind: KeyRecovery, From: from, To: to}
	if to == "" {
		t.To = RecoveryOver
	} else {
		t.Message = after.WhyStanding()
	}
	add(t)
}

func diffRotations(before, after *State, add func(Transition)) {
	rotations := make([]Rotation, 0, len(after.Ended)+len(after.Rotations))
	rotations = append(append(rotations, after.Ended...), after.Rotations...)
	for i := range rotations {
		r := &rotations[i]
		old, known := before.Rotation(r.ID)
		if !known {
			old = &Rotation{}
			add(Transition{Kind: RotationBegun, Rotation: r.ID, Version: r.From, To: r.Kind.String(), Reason: r.Actor, Message: r.Reason})
		}
		diffPhases(old, r, add)
		if r.Phase == Presenting && (old.Phase != Presenting || old.Stage != r.Stage) {
			add(Transition{Kind: RotationStage, Rotation: r.ID, Version: r.To, To: r.Plan.Stages[r.Stage].Name})
		}
		if old.Hold.Reason != r.Hold.Reason || old.Hold.Message != r.Hold.Message {
			add(Transition{
				Kind: RotationHold, Rotation: r.ID, From: string(old.Hold.Reason), To: string(r.Hold.Reason),
				Reason: humanHold(r.Hold.Human), Message: r.Hold.Message,
			})
		}
	}
}

// diffPhases tells every phase that a rotation went through, also those that it
// left again within the same event.
func diffPhases(old, r *Rotation, add func(Transition)) {
	trail := r.Trail
	if len(trail) == 0 && old.Phase != r.Phase {
		trail = []Phase{r.Phase}
	}
	from := old.Phase
	for _, phase := range trail {
		t := Transition{Kind: RotationPhase, Rotation: r.ID, Version: r.To, To: phase.String()}
		if from != 0 {
			t.From = from.String()
		}
		if phase == RollingBack || phase.Ended() && phase != Done {
			t.Message = r.Reason
		}
		add(t)
		from = phase
	}
}

func humanHold(human bool) string {
	if human {
		return "waits-for-human"
	}
	return ""
}

func diffVersions(before, after *State, add func(Transition)) {
	for i := range after.Versions {
		v := &after.Versions[i]
		old, known := before.Version(v.Number)
		if !known {
			old = &Version{}
		}
		if old.State != v.State {
			t := Transition{Kind: VersionState, Rotation: v.Rotation, Version: v.Number, To: v.State.String()}
			if known {
				t.From = old.State.String()
			}
			add(t)
		}
		if old.Label != v.Label {
			add(Transition{Kind: VersionLabel, Rotation: v.Rotation, Version: v.Number, From: old.Label.String(), To: v.Label.String()})
		}
	}
	for i := range before.Versions {
		v := &before.Versions[i]
		if _, there := after.Version(v.Number); !there {
			add(Transition{Kind: VersionState, Rotation: v.Rotation, Version: v.Number, From: v.State.String(), To: key.Destroyed.String()})
		}
	}
}

func diffVerifiers(before, after *State, add func(Transition)) {
	for i := range after.Verifiers {
		w := &after.Verifiers[i]
		old, known := before.Verifier(w.ID)
		for _, slot := range w.Slots {
			t := Transition{Kind: VerifierChange, Version: slot.Version, Subject: w.ID, To: slot.Acceptance.String(), Message: cmp.Or(slot.Trouble, slot.Waits)}
			if r, ok := (&machine{State: *after}).owner(slot.Version); ok {
				t.Rotation = r.ID
			}
			if known {
				was, ok := old.Slot(slot.Version)
				if ok && was.Acceptance == slot.Acceptance && was.Trouble == slot.Trouble && was.Waits == slot.Waits {
					continue
				}
				if ok {
					t.From = was.Acceptance.String()
				}
			}
			add(t)
		}
	}
	for i := range before.Verifiers {
		if _, there := after.Verifier(before.Verifiers[i].ID); !there {
			add(Transition{Kind: VerifierGone, Subject: before.Verifiers[i].ID})
		}
	}
}

// diffPresenters goes through both lists at once: they are sorted, and long.
func diffPresenters(before, after *State, add func(Transition)) {
	var rotation key.RotationID
	if cut, open := after.CutOver(); open {
		rotation = cut.ID
	}
	var left []string
	olds, none := before.Presenters, Presenter{}
	for i := range after.Presenters {
		p := &after.Presenters[i]
		for len(olds) > 0 && olds[0].ID < p.ID {
			left, olds = append(left, olds[0].ID), olds[1:]
		}
		old := &none
		if len(olds) > 0 && olds[0].ID == p.ID {
			old, olds = &olds[0], olds[1:]
		}
		if old.Epoch != p.Epoch {
			add(Transition{Kind: PresenterTold, Rotation: rotation, Version: p.Told, Subject: p.ID, To: "epoch " + strconv.FormatUint(p.Epoch, 10)})
		}
		if p.Acked && (!old.Acked || old.Failed != p.Failed || old.Epoch != p.Epoch) {
			t := Transition{Kind: PresenterAcked, Rotation: rotation, Version: p.Told, Subject: p.ID, To: "applied"}
			if p.Failed {
				t.To, t.Message = "failed", p.Detail
			}
			add(t)
		}
	}
	for i := range olds {
		left = append(left, olds[i].ID)
	}
	for _, id := range left {
		add(Transition{Kind: PresenterLeft, Subject: id})
	}
}
