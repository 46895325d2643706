package rotation

import (
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/key"
)

// advance applies the rules of the protocol until none applies any more.
func (m *machine) advance() {
	if !m.Standing() {
		for m.round() {
		}
		m.tell()
	}
	m.Rotations = slices.DeleteFunc(m.Rotations, func(r Rotation) bool {
		if r.Phase.Ended() {
			m.Ended = append(m.Ended, r)
		}
		return r.Phase.Ended()
	})
	for i := range m.Rotations {
		m.holdInsisted(&m.Rotations[i])
	}
}

// round applies every rule once and reports whether another round is due.
func (m *machine) round() bool {
	again := m.contain()
	m.retry()
	again = m.converge() || again
	m.admit()
	for i := range m.Rotations {
		again = m.drive(&m.Rotations[i]) || again
	}
	m.destroy()
	return again
}

// contain refuses contained versions everywhere, whoever uses them.
func (m *machine) contain() bool {
	again := false
	for i := range m.Versions {
		if v := &m.Versions[i]; v.Contained {
			again = m.refuse(v.Number) || again
		}
	}
	return again
}

// refuse asks every verifier that accepts v to refuse it, and reports whether
// any was asked.
func (m *machine) refuse(v key.Version) bool {
	asked := false
	for i := range m.Verifiers {
		w := &m.Verifiers[i]
		if slot, ok := w.Slot(v); ok && slot.Acceptance.accepting() {
			m.ask(w, v, RefusePending)
			asked = true
		}
	}
	return asked
}

// retry asks again for effects whose time to be retried has come.
func (m *machine) retry() {
	for i := range m.Verifiers {
		w := &m.Verifiers[i]
		for _, slot := range w.Slots {
			if !slot.Failed {
				continue
			}
			if r, owned := m.owner(slot.Version); slot.RetryAt.IsZero() && (!owned || !r.Hold.Human) {
				// The hold that a human could have ended is over by itself.
				m.updateSlot(w, slot.Version, func(slot *Slot) { slot.RetryAt = m.Now.Add(retryFailed) })
			}
			if !slot.RetryAt.IsZero() && !m.Now.Before(slot.RetryAt) {
				m.ask(w, slot.Version, slot.Acceptance)
			}
		}
	}
}

// holdInsisted says of r that refusing a compromised version keeps failing.
func (m *machine) holdInsisted(r *Rotation) {
	for i := range m.Verifiers {
		for _, slot := range m.Verifiers[i].Slots {
			if slot.Insisted == "" {
				continue
			}
			if owner, ok := m.owner(slot.Version); ok && owner.ID == r.ID {
				if r.Hold.Reason == "" || r.Hold.Reason == HoldRefusal {
					r.hold(Hold{Reason: HoldRefusal, Message: slot.Insisted, Since: m.Now})
				}
				return
			}
		}
	}
	r.clear(HoldRefusal)
}

// converge asks verifiers to accept what is wanted and they do not accept.
func (m *machine) converge() bool {
	asked := false
	for _, v := range m.wanted() {
		for i := range m.Verifiers {
			w := &m.Verifiers[i]
			slot, ok := w.Slot(v)
			if ok && (slot.Acceptance.accepting() || m.compromised(v)) || m.foreign(v) {
				continue
			}
			if m.Gap && !m.settled(w, v) {
				continue
			}
			m.ask(w, v, AcceptPending)
			asked = true
		}
	}
	return asked
}

// settled reports whether no effect is under way that could undo at w, where one
// version excludes the others, what accepting v does. A pending acceptance of
// another version is turned into a refusal, whose proof is then waited for.
func (m *machine) settled(w *Verifier, v key.Version) bool {
	for _, other := range w.Slots {
		if other.Version == v {
			continue
		}
		if other.Acceptance == AcceptPending {
			m.ask(w, other.Version, RefusePending)
			return false
		}
		if other.Acceptance == RefusePending {
			return false
		}
	}
	return true
}

// wanted returns the versions that every verifier should accept.
func (m *machine) wanted() []key.Version {
	var wanted []key.Version
	add := func(v key.Version) {
		if v != 0 && !m.contained(v) && !slices.Contains(wanted, v) {
			wanted = append(wanted, v)
		}
	}
	cut, open := m.CutOver()
	forward := open && (cut.Phase == Accepting && !cut.Hold.Human || cut.Phase == Presenting)
	if m.Gap {
		// One at a time: during a cut-over its new version, else the current one.
		switch {
		case forward:
			add(cut.To)
		case !open || cut.Phase != Accepting:
			add(m.Labelled(key.Current))
		}
		return wanted
	}
	add(m.Labelled(key.Current))
	if forward || open && cut.Phase == RollingBack && !m.refusing(cut.To) {
		add(cut.To)
	}
	for i := range m.Rotations {
		if r := &m.Rotations[i]; r.Phase == Draining {
			add(r.From)
		}
	}
	for i := range m.Presenters {
		p := &m.Presenters[i]
		for _, list := range [][]key.Version{p.Maybe, p.Also} {
			for _, v := range list {
				if !slices.Contains(wanted, v) && m.inService(v) {
					add(v)
				}
			}
		}
	}
	return wanted
}

// inService reports whether verifiers were asked to accept v and none to refuse it.
func (m *machine) inService(v key.Version) bool {
	return m.maybeAccepted(v) && !m.refusing(v)
}

// refusing reports whether any verifier was asked to refuse v.
func (m *machine) refusing(v key.Version) bool {
	for i := range m.Verifiers {
		if slot, ok := m.Verifiers[i].Slot(v); ok && !slot.Acceptance.accepting() {
			return true
		}
	}
	return false
}

// admit lets presenters reach verifiers that accept all that is wanted and
// refuse all that is not.
func (m *machine) admit() {
	if !slices.ContainsFunc(m.Verifiers, func(w Verifier) bool { return !w.Admitted }) || m.strange() {
		return
	}
	wanted := m.wanted()
	for i := range m.Verifiers {
		w := &m.Verifiers[i]
		if w.Admitted {
			continue
		}
		w.Admitted = !slices.ContainsFunc(wanted, func(v key.Version) bool { return !accepts(w, v) }) &&
			!slices.ContainsFunc(w.Slots, func(s Slot) bool { return s.Acceptance != Refused && !slices.Contains(wanted, s.Version) })
	}
}

// strange reports whether a presenter may be using a version that is not known here,
// since a restore: no verifier can be asked to accept it.
func (m *machine) strange() bool {
	return slices.ContainsFunc(m.Presenters, func(p Presenter) bool {
		return slices.ContainsFunc(p.Maybe, func(v key.Version) bool { _, known := m.Version(v); return !known })
	})
}

// accepts reports whether w is proven to accept v.
func accepts(w *Verifier, v key.Version) bool {
	slot, ok := w.Slot(v)
	return ok && slot.Acceptance == Accepted
}

// unproven returns a verifier that presenters may reach and that is not proven to
// accept v, nil if there is none.
func (s *State) unproven(v key.Version) (*Verifier, Slot) {
	for i := range s.Verifiers {
		if w := &s.Verifiers[i]; w.Admitted && !accepts(w, v) {
			slot, _ := w.Slot(v)
			return w, slot
		}
	}
	return nil, Slot{}
}

// everywhere reports whether every verifier is proven to accept v.
func (m *machine) everywhere(v key.Version) bool {
	for i := range m.Verifiers {
		if !accepts(&m.Verifiers[i], v) {
			return false
		}
	}
	return len(m.Verifiers) > 0
}

// nowhere reports whether every verifier is proven to refuse v, or never heard of it.
func (m *machine) nowhere(v key.Version) bool { return !m.maybeAccepted(v) }

// unused reports whether no presenter may be using v.
func (m *machine) unused(v key.Version) bool {
	for i := range m.Presenters {
		if m.Presenters[i].MayUse(v) {
			return false
		}
	}
	return true
}

// tell gives every presenter the version it should use, once every verifier it
// may reach accepts that version.
func (m *machine) tell() {
	if len(m.Presenters) == 0 {
		return
	}
	base := m.Labelled(key.Current)
	baseReady, toReady := m.tellable(base), false
	cut, open := m.CutOver()
	if open && cut.Phase == Presenting {
		toReady = m.tellable(cut.To)
	}
	for i := range m.Presenters {
		p := &m.Presenters[i]
		v, ready := base, baseReady
		// Who may be using the new version already is not sent back and forth.
		if open && cut.Phase == Presenting && (stageOf(p, cut) <= cut.Stage || slices.Contains(p.Maybe, cut.To)) {
			v, ready = cut.To, toReady
		}
		if v == p.Told || !ready {
			continue
		}
		m.Epoch++
		p.Told, p.Epoch, p.Heard = v, m.Epoch, 0
		p.Acked, p.Failed, p.Detail = false, false, ""
		if !slices.Contains(p.Maybe, v) {
			p.Maybe = append(slices.Clone(p.Maybe), v)
		}
		effect := Effect{EffectRef: EffectRef{Kind: Tell, Version: v}, Presenter: p.ID, Epoch: p.Epoch}
		if open {
			effect.Rotation = cut.ID
		}
		m.effects = append(m.effects, effect)
	}
}

// tellable reports whether presenters may be told to use v.
func (m *machine) tellable(v key.Version) bool {
	if v == 0 || m.contained(v) || m.foreign(v) {
		return false
	}
	w, _ := m.unproven(v)
	return w == nil && len(m.Verifiers) > 0
}

// stageOf is the index of the presenter's stage in the rotation's plan.
func stageOf(p *Presenter, r *Rotation) int { return min(p.Stage, len(r.Plan.Stages)-1) }

// destroy shreds versions whose time has come and that nothing accepts.
func (m *machine) destroy() {
	for i := range m.Versions {
		v := &m.Versions[i]
		due := !v.DestroyAt.IsZero() && !m.Now.Before(v.DestroyAt)
		final := v.State == key.Deactivated || v.State == key.Compromised
		if !due || !final || v.Destroy.Waiting || v.Label == key.Current || !m.nowhere(v.Number) {
			continue
		}
		v.Destroy = Task{Kind: Destroy, Try: v.Destroy.Try + 1, Waiting: true}
		ref := EffectRef{Kind: Destroy, Version: v.Number, Try: v.Destroy.Try, Rotation: v.Rotation}
		if r, ok := m.owner(v.Number); ok {
			ref.Rotation = r.ID
		}
		m.effects = append(m.effects, Effect{EffectRef: ref})
	}
}

// room reports whether the system can take a further version. Where it cannot,
// quarantines are ended if the rotation may do so.
func (m *machine) room(r *Rotation) bool {
	fits := func() bool { return m.Gap || m.Capacity == 0 || len(m.Live()) < m.Capacity }
	for i := range m.Rotations {
		if fits() || !r.Plan.EndQuarantineEarly && r.Plan.Strategy == 0 {
			break
		}
		if q := &m.Rotations[i]; q.Phase == Quarantine && (!q.Hold.Human || r.Plan.Strategy != 0) {
			m.forget(q)
		}
	}
	return fits()
}

// measure keeps measurements of v going and reports whether its use has been
// zero for long enough, by an answer that has just come. unused says that nothing
// else is waited for.
func (m *machine) measure(r *Rotation, v key.Version, earliest time.Time, unused bool) bool {
	quietAt := r.QuietSince.Add(r.Plan.DrainQuiet)
	if earliest.After(quietAt) {
		quietAt = earliest
	}
	quiet := !r.QuietSince.IsZero() && !m.Now.Before(quietAt)
	if quiet && m.fresh == r.ID {
		return true
	}
	switch {
	case r.QuietSince.IsZero():
	case !quiet && quietAt.Before(r.MeasureAt):
		r.MeasureAt = quietAt
	case quiet && unused:
		r.MeasureAt = m.Now
	}
	if !r.Task.Waiting && !m.Now.Before(r.MeasureAt) {
		m.start(r, Measure, v)
	}
	return false
}

// stageFailed rolls back, or holds where that is not possible or not wanted.
func (m *machine) stageFailed(r *Rotation, detail string) {
	message := fmt.Sprintf("stage %s failed: %s", r.Plan.Stages[r.Stage].Name, detail)
	if err := m.checkBack(r); err == nil && !r.Plan.HoldOnFailure {
		if err = m.checkReturn(r); err == nil {
			r.Reason = message
			m.rollBack(r, RolledBack)
			return
		}
		message += "; it is not rolled back: " + err.Error()
	}
	r.hold(Hold{Reason: HoldStageFailed, Message: message, Human: true, Since: m.Now})
}
