package rotation

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/key"
)

// declare marks versions compromised and makes the open rotations fit. One of
// them becomes the emergency, or a new one is begun.
func (m *machine) declare(id key.RotationID, body Declare) error {
	if err := m.checkNew(id, body.Plan); err != nil {
		return err
	}
	if body.Plan.Strategy == 0 {
		return fmt.Errorf("%w: an emergency needs a strategy", ErrInvalid)
	}
	if len(body.Compromised) == 0 {
		return fmt.Errorf("%w: an emergency names at least one compromised version", ErrInvalid)
	}
	for _, number := range body.Compromised {
		if _, ok := m.Version(number); !ok {
			return fmt.Errorf("%w: %v does not exist or is destroyed", ErrUnknown, number)
		}
	}
	for _, number := range body.Compromised {
		v, _ := m.Version(number)
		v.State = key.Compromised
		v.Contained = v.Contained || body.Plan.Strategy == ContainFirst
	}
	if cut, open := m.CutOver(); open && m.contained(cut.From) && m.compromised(cut.To) {
		// Neither may be presented any more, and there is no third to wait for.
		to, _ := m.Version(cut.To)
		to.Contained = true
	}
	emergency := Rotation{ID: id, Kind: Emergency, Plan: body.Plan, Reason: body.Reason, Actor: body.Actor}
	taken := m.divertCutOvers(emergency)
	if !taken && m.compromised(m.Labelled(key.Current)) {
		emergency.From = m.Labelled(key.Current)
		m.open(emergency)
		taken = true
	}
	m.hastenRetirements(emergency, taken)
	if body.Insist {
		m.insist()
	}
	return nil
}

// insist asks again for refusals of compromised versions that had failed and
// waited for a human.
func (m *machine) insist() {
	for i := range m.Verifiers {
		w := &m.Verifiers[i]
		for _, slot := range w.Slots {
			if slot.Failed && !slot.Acceptance.accepting() && m.compromised(slot.Version) {
				m.updateSlot(w, slot.Version, func(slot *Slot) {
					slot.Acceptance, slot.Contradictions = RefusePending, 0
					slot.Insisted, slot.RetryAt = slot.Trouble, m.Now
				})
			}
		}
	}
}

// compromised reports whether v exists and is compromised.
func (m *machine) compromised(v key.Version) bool {
	version, ok := m.Version(v)
	return ok && version.State == key.Compromised
}

// contained reports whether v exists and is to be refused at once.
func (m *machine) contained(v key.Version) bool {
	version, ok := m.Version(v)
	return ok && version.Contained
}

// stranded reports whether a verifier that presenters may reach refuses v, and is not
// asked to accept it, or cannot: after a restore the version to return to may be
// accepted in some places only.
func (m *machine) stranded(v key.Version) bool {
	return v != 0 && !m.Gap && !m.contained(v) && slices.ContainsFunc(m.Verifiers, func(w Verifier) bool {
		slot, asked := w.Slot(v)
		return w.Admitted && (!asked || slot.Failed || !slot.Acceptance.accepting())
	})
}

// divertCutOvers makes rotations that are not yet retiring fit the compromised
// versions, and reports whether one of them became the emergency.
func (m *machine) divertCutOvers(emergency Rotation) (taken bool) {
	for i := range m.Rotations {
		r := &m.Rotations[i]
		fromBad, toBad := m.compromised(r.From), m.compromised(r.To)
		if !fromBad && !toBad {
			continue
		}
		switch r.Phase {
		case Planned, Minting:
			m.end(r, Superseded)
		case Accepting, Presenting:
			switch {
			case !toBad:
				m.takeOver(r, emergency)
				taken = true
			case m.foreign(r.From) && r.Phase == Accepting:
				to, _ := m.Version(r.To)
				to.Contained = true
				m.end(r, Superseded)
			case m.foreign(r.From), r.Phase == Presenting && m.stranded(r.From):
				m.keepForward(r)
			case r.From == 0 && (r.Phase == Presenting || !m.unused(r.To)):
				// There is nothing to return to: what was being brought in counts as
				// current, and the emergency replaces it.
				m.relabel(r)
				m.end(r, Superseded)
			case fromBad:
				m.rollBack(r, Superseded)
			default:
				m.takeOver(r, emergency)
				m.rollBack(r, RolledBack)
				taken = true
			}
		case RollingBack:
			if fromBad && toBad {
				if !m.unused(r.To) && m.stranded(r.From) {
					m.keepForward(r)
				}
				continue
			}
			m.takeOver(r, emergency)
			taken = true
			if fromBad {
				// The version that was being given up is the only good one.
				r.Hold, r.Exit, r.RecoveredAt = Hold{}, 0, time.Time{}
				m.enter(r, Accepting)
			}
		case Draining, Revoking, Quarantine, Destroying, Done, RolledBack, Failed, Cancelled, Superseded:
		}
	}
	return taken
}

// keepForward retires the old version of r, which nobody can be told, as if the cut-over
// were complete: the emergency replaces what was being brought in.
func (m *machine) keepForward(r *Rotation) {
	m.relabel(r)
	r.CutOverAt = m.Now
	m.enter(r, Draining)
}

// hastenRetirements puts retirements of compromised versions under the
// emergency's plan. Where no other rotation is the emergency, the first of them
// becomes it.
func (m *machine) hastenRetirements(emergency Rotation, taken bool) {
	for i := range m.Rotations {
		r := &m.Rotations[i]
		if !r.Phase.Retiring() || !m.compromised(r.From) {
			continue
		}
		if !taken {
			m.takeOver(r, emergency)
			taken = true
		}
		if r.Plan.Strategy == 0 || emergency.Plan.Grace < r.Plan.Grace {
			r.Plan.Grace = emergency.Plan.Grace
		}
		r.Plan.Strategy = max(r.Plan.Strategy, emergency.Plan.Strategy)
		r.MeasureAt = m.Now
		if r.Phase == Quarantine {
			// What is compromised is not restorable.
			m.forget(r)
		}
	}
	if !taken {
		emergency.Phase, emergency.StartedAt, emergency.PhaseSince = Done, m.Now, m.Now
		m.Ended = append(m.Ended, emergency)
	}
}

// takeOver ends r as superseded and goes on with its versions, from where it
// stands, as the emergency.
func (m *machine) takeOver(r *Rotation, emergency Rotation) {
	ended := *r
	ended.Phase, ended.PhaseSince, ended.Hold, ended.Task = Superseded, m.Now, Hold{}, Task{}
	ended.Trail = append(slices.Clone(r.Trail), Superseded)
	m.Ended = append(m.Ended, ended)
	r.Trail = []Phase{r.Phase}
	r.ID, r.Kind, r.Plan = emergency.ID, emergency.Kind, emergency.Plan
	r.Reason, r.Actor, r.StartedAt = emergency.Reason, emergency.Actor, m.Now
	r.Approvals = nil
	if r.Hold.Reason != HoldEffect && r.Hold.Reason != HoldContradict {
		r.Hold = Hold{}
	}
	r.Stage = min(r.Stage, len(r.Plan.Stages)-1)
	if r.Phase == Presenting {
		m.enterStage(r, 0)
	}
	r.Task, r.Unreached, r.UnreachedSince = Task{Try: r.Task.Try}, nil, time.Time{}
	r.MeasureAt = time.Time{}
}

// rollBack makes r return to its old version and end in phase exit.
func (m *machine) rollBack(r *Rotation, exit Phase) {
	r.Exit = exit
	r.Hold = Hold{}
	m.enter(r, RollingBack)
	r.StageSince = m.Now
	r.Reason = cmp.Or(r.Reason, "rolled back")
}

// forget decides when the material of r's old version is destroyed.
func (m *machine) forget(r *Rotation) {
	if v, ok := m.Version(r.From); ok {
		if v.State != key.Compromised {
			v.State = key.Deactivated
		}
		v.DestroyAt = m.Now.Add(r.Plan.DestroyAfter)
	}
	m.enter(r, Destroying)
}
