package rotation

import (
	"cmp"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/key"
)

// drive applies the rules of r's phase and reports whether they changed
// something that may let other rules apply.
func (m *machine) drive(r *Rotation) bool {
	if r.Phase == Planned && !r.Plan.NotAfter.IsZero() && m.Now.After(r.Plan.NotAfter) {
		r.Reason = "its window passed before it could begin"
		m.end(r, Cancelled)
		return true
	}
	if r.Hold.Human {
		return false
	}
	switch r.Phase {
	case Planned:
		return m.drivePlanned(r)
	case Minting:
		if !r.Task.Waiting {
			m.mint(r)
		}
		return false
	case Accepting:
		return m.driveAccepting(r)
	case Presenting:
		return m.drivePresenting(r)
	case Draining:
		return m.driveDraining(r)
	case Revoking:
		return m.driveRevoking(r)
	case Quarantine:
		if m.Now.Before(r.PhaseSince.Add(r.Plan.Quarantine)) {
			return false
		}
		m.forget(r)
		return true
	case Destroying:
		if _, there := m.Version(r.From); there {
			return false
		}
		m.end(r, Done)
		return true
	case RollingBack:
		return m.driveRollingBack(r)
	case Done, RolledBack, Failed, Cancelled, Superseded:
	}
	return false
}

func (m *machine) drivePlanned(r *Rotation) bool {
	if m.Now.Before(r.Plan.NotBefore) || len(r.Approvals) < r.Plan.Approvals {
		return false
	}
	if _, open := m.CutOver(); open {
		return false
	}
	if len(m.Verifiers) == 0 {
		r.hold(noVerifier(m.Now))
		return false
	}
	r.clear(HoldNoVerifier)
	if !m.room(r) {
		r.hold(Hold{Reason: HoldNoRoom, Message: fmt.Sprintf("the system holds %d versions already, and no more fit", m.Capacity), Since: m.Now})
		return false
	}
	r.clear(HoldNoRoom)
	switch {
	case r.Task.Kind != Preflight || !r.Task.Waiting && !r.Task.Done:
		m.start(r, Preflight, 0)
		return false
	case r.Task.Waiting:
		return false
	}
	// What was current may have changed since the rotation was planned.
	r.From = m.Labelled(key.Current)
	m.enter(r, Minting)
	m.mint(r)
	return false
}

func noVerifier(now time.Time) Hold {
	return Hold{Reason: HoldNoVerifier, Message: "the key has no verifier that could accept a new version", Since: now}
}

// mint asks for a version under a number that was never used.
func (m *machine) mint(r *Rotation) {
	r.To = m.Next
	m.Next++
	m.start(r, Mint, r.To)
}

func (m *machine) driveAccepting(r *Rotation) bool {
	if m.everywhere(r.To) {
		m.enter(r, Presenting)
		r.Presented = true
		m.enterStage(r, 0)
		return true
	}
	if len(m.Verifiers) == 0 {
		r.hold(noVerifier(m.Now))
		return false
	}
	r.clear(HoldNoVerifier)
	for i := range m.Verifiers {
		if slot, ok := m.Verifiers[i].Slot(r.To); ok && slot.Trouble != "" {
			r.hold(Hold{Reason: HoldTrouble, Message: fmt.Sprintf("%s does not accept %v yet: %s", m.Verifiers[i].ID, r.To, slot.Trouble), Since: m.Now})
			return false
		}
	}
	r.clear(HoldTrouble)
	return false
}

func (m *machine) enterStage(r *Rotation, stage int) {
	r.Stage, r.StageSince = stage, m.Now
	r.BakeSince, r.JudgeAt = time.Time{}, time.Time{}
	r.Task = Task{Try: r.Task.Try}
}

func (m *machine) drivePresenting(r *Rotation) bool {
	stage := r.Plan.Stages[r.Stage]
	last := r.Stage == len(r.Plan.Stages)-1
	members, later, missing := 0, 0, 0
	for i := range m.Presenters {
		p := &m.Presenters[i]
		switch n := stageOf(p, r); {
		case n > r.Stage:
			later++
			continue
		case n == r.Stage:
			members++
		}
		if p.Told == r.To && p.Failed {
			m.stageFailed(r, fmt.Sprintf("%s: %s", p.ID, p.Detail))
			return true
		}
		if !p.Uses(r.To) {
			missing++
		}
	}
	if members == 0 && later > 0 && !stage.SkipEmpty && r.Plan.Strategy == 0 {
		r.hold(Hold{Reason: HoldStageEmpty, Message: fmt.Sprintf("no presenter belongs to stage %s", stage.Name), Since: m.Now})
		return false
	}
	r.clear(HoldStageEmpty)
	if missing > 0 {
		if stage.AckTimeout > 0 && !m.Now.Before(r.StageSince.Add(stage.AckTimeout)) {
			r.hold(Hold{Reason: HoldStageLate, Message: fmt.Sprintf("%d presenters have not acknowledged %v in stage %s", missing, r.To, stage.Name), Since: m.Now})
		}
		if r.Task.Kind == Judge {
			// The stage is complete no more, and will have to be judged anew.
			r.Task.Done = false
		}
		return false
	}
	r.clear(HoldStageLate)
	if members > 0 && !m.baked(r, stage) {
		return false
	}
	if last {
		m.complete(r)
		return true
	}
	m.enterStage(r, r.Stage+1)
	return true
}

// baked reports whether the stage, which all its presenters acknowledged, has
// been well for long enough.
func (m *machine) baked(r *Rotation, stage Stage) bool {
	if r.BakeSince.IsZero() {
		r.BakeSince = m.Now
	}
	if m.Now.Before(r.BakeSince.Add(stage.Bake)) {
		return false
	}
	if !r.Plan.Judged || r.Task.Kind == Judge && r.Task.Done {
		return true
	}
	if !r.Task.Waiting && !m.Now.Before(r.JudgeAt) {
		m.start(r, Judge, r.To)
	}
	return false
}

// relabel makes r's new version the current one.
func (m *machine) relabel(r *Rotation) {
	for i := range m.Versions {
		switch v := &m.Versions[i]; {
		case v.Number == r.To:
			v.Label, v.CurrentSince = key.Current, m.Now
		case v.Number == r.From:
			v.Label = key.Previous
		case v.Label == key.Previous:
			v.Label = 0
		}
	}
}

// complete ends the cut-over: the new version is current, the old one drains.
func (m *machine) complete(r *Rotation) {
	m.relabel(r)
	r.CutOverAt = m.Now
	if r.From == 0 {
		m.end(r, Done)
		return
	}
	m.enter(r, Draining)
}

func (m *machine) driveDraining(r *Rotation) bool {
	switch {
	case m.contained(r.From), m.Gap:
		m.enter(r, Revoking)
		return true
	case m.drained(r):
		m.enter(r, Revoking)
		return true
	}
	return false
}

// drained reports whether the old version may be revoked.
func (m *machine) drained(r *Rotation) bool {
	earliest := r.PhaseSince.Add(r.Plan.DrainMin)
	if r.Plan.Strategy != 0 {
		earliest = r.PhaseSince
	}
	unused := m.unused(r.From)
	quiet := m.measure(r, r.From, earliest, unused)
	if quiet && unused {
		return true
	}
	if r.Plan.Strategy != 0 && !m.Now.Before(r.PhaseSince.Add(r.Plan.Grace)) {
		// Who uses a compromised version without being registered may be the thief:
		// the emergency waits for registered presenters only.
		if unused {
			return true
		}
		r.hold(Hold{Reason: HoldGraceOver, Message: fmt.Sprintf("registered presenters may still be using the compromised %v", r.From), Since: m.Now})
		return false
	}
	if limit := r.Plan.DrainMax; limit > 0 && !m.Now.Before(r.PhaseSince.Add(limit)) {
		if r.Plan.RevokeAtMax && unused {
			return true
		}
		r.hold(Hold{Reason: HoldDrainMax, Message: fmt.Sprintf("%v is still in use", r.From), Since: m.Now})
	}
	return false
}

func (m *machine) driveRevoking(r *Rotation) bool {
	if m.contained(r.From) || m.Gap || m.unused(r.From) {
		m.refuse(r.From)
	}
	if !m.nowhere(r.From) {
		return false
	}
	v, ok := m.Version(r.From)
	if !ok || v.State == key.Compromised || v.State == key.Deactivated {
		m.forget(r)
		return true
	}
	v.State = key.Suspended
	m.enter(r, Quarantine)
	return true
}

func (m *machine) driveRollingBack(r *Rotation) bool {
	// Where one version excludes the others, a compromised one is refused by now and
	// must not be accepted again: there is nothing to return to.
	abandoned := r.From == 0 || m.contained(r.From) || m.Gap && m.compromised(r.From)
	if !abandoned && !m.unused(r.To) {
		w, slot := m.unproven(r.From)
		if w != nil && (slot.Trouble != "" || r.Hold.Reason == HoldTrouble) {
			why := cmp.Or(slot.Trouble, "it is being asked once more")
			r.hold(Hold{Reason: HoldTrouble, Since: m.Now, Message: fmt.Sprintf(
				"%s does not accept %v, to which presenters shall return: %s; see to it that it does, or declare %v compromised to go on with %v", w.ID, r.From, why, r.From, r.To)})
			return false
		}
		r.clear(HoldTrouble)
		stage := r.Plan.Stages[r.Stage]
		if stage.AckTimeout > 0 && !m.Now.Before(r.StageSince.Add(stage.AckTimeout)) {
			r.hold(Hold{Reason: HoldStageLate, Message: fmt.Sprintf("presenters have not acknowledged the return to %v", r.From), Since: m.Now})
		}
		return false
	}
	r.clear(HoldStageLate)
	r.clear(HoldTrouble)
	if r.RecoveredAt.IsZero() {
		r.RecoveredAt = m.Now
	}
	watched := r.Presented && !abandoned && !m.compromised(r.To) && !m.Gap
	if watched && !m.refusing(r.To) && !m.measure(r, r.To, time.Time{}, true) {
		return false
	}
	m.refuse(r.To)
	if !m.nowhere(r.To) {
		return false
	}
	m.end(r, r.Exit)
	return true
}
