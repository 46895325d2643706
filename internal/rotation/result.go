package rotation

import (
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/key"
)

// retryFailed is after how long an effect that failed for good is tried again
// when no rotation is there that a human could resume.
const retryFailed = time.Minute

// asks is the effect whose answer an acceptance waits for, 0 for none.
func (a Acceptance) asks() EffectKind {
	switch a {
	case AcceptPending:
		return Accept
	case AcceptProbing:
		return ProbeAccept
	case RefusePending:
		return Refuse
	case RefuseProbing:
		return ProbeRefuse
	case Accepted, Refused:
	}
	return 0
}

// accepting reports whether the verifier is on its way to accept, or there.
func (a Acceptance) accepting() bool {
	return a == AcceptPending || a == AcceptProbing || a == Accepted
}

// waitingSlot finds the slot that waits for ref.
func (m *machine) waitingSlot(ref EffectRef) (*Verifier, Slot, bool) {
	w, ok := m.Verifier(ref.Verifier)
	if !ok || m.Standing() {
		return nil, Slot{}, false
	}
	slot, ok := w.Slot(ref.Version)
	if !ok || slot.Failed || slot.Try != ref.Try || slot.Acceptance.asks() != ref.Kind {
		return nil, Slot{}, false
	}
	return w, slot, true
}

// waitingTask finds the task that waits for ref.
func (m *machine) waitingTask(ref EffectRef) (*Task, bool) {
	var task *Task
	switch {
	case m.Standing() != (ref.Kind == Reconcile):
		return nil, false
	case ref.Kind == Reconcile:
		task = &m.Recovery.Task
	case ref.Kind == Destroy:
		v, ok := m.Version(ref.Version)
		if !ok {
			return nil, false
		}
		task = &v.Destroy
	default:
		r, ok := m.Rotation(ref.Rotation)
		if !ok {
			return nil, false
		}
		task = &r.Task
	}
	if !task.Waiting || task.Kind != ref.Kind || task.Try != ref.Try {
		return nil, false
	}
	return task, true
}

// Awaits reports whether a result of the effect would be taken. An effect that
// nobody awaits any more must not be started: what it would do may contradict
// what was decided since.
func (s *State) Awaits(ref EffectRef) bool {
	m := machine{State: *s}
	if ref.Verifier != "" {
		_, _, ok := m.waitingSlot(ref)
		return ok
	}
	_, ok := m.waitingTask(ref)
	return ok
}

// updateSlot changes the slot of v at w, if there is one, in a copy of the slots.
func (m *machine) updateSlot(w *Verifier, v key.Version, change func(*Slot)) {
	for i := range w.Slots {
		if w.Slots[i].Version == v {
			w.Slots = slices.Clone(w.Slots)
			change(&w.Slots[i])
			return
		}
	}
}

// ask moves the slot of v at w to another acceptance and asks for its effect.
func (m *machine) ask(w *Verifier, v key.Version, a Acceptance) {
	if _, ok := w.Slot(v); !ok {
		w.Slots = append(slices.Clone(w.Slots), Slot{Version: v})
	}
	m.updateSlot(w, v, func(slot *Slot) {
		m.Tries++
		slot.Acceptance, slot.Try = a, m.Tries
		slot.Failed, slot.RetryAt, slot.Trouble, slot.Waits = false, time.Time{}, "", ""
		if a.accepting() {
			slot.Insisted = ""
		}
		ref := EffectRef{Kind: a.asks(), Version: v, Verifier: w.ID, Try: slot.Try}
		if r, ok := m.owner(v); ok {
			ref.Rotation = r.ID
		}
		m.effects = append(m.effects, Effect{EffectRef: ref})
	})
	if version, ok := m.Version(v); ok && version.State == key.PreActivation {
		version.State = key.Active
	}
}

// owner is the rotation that brings v in, retires it, or was begun because it is
// compromised.
func (m *machine) owner(v key.Version) (*Rotation, bool) {
	for i := range m.Rotations {
		r := &m.Rotations[i]
		if r.Phase.CutOver() && r.To == v || r.From == v && (r.Phase.Retiring() || r.Kind == Emergency) {
			return r, true
		}
	}
	return nil, false
}

func (m *machine) result(body Result) error {
	if body.Effect.Verifier != "" {
		return m.slotResult(body)
	}
	task, ok := m.waitingTask(body.Effect)
	if !ok {
		return fmt.Errorf("%w: %s", ErrStale, body.Effect.ID())
	}
	if body.Effect.Kind == Destroy {
		return m.destroyed(task, body)
	}
	r, _ := m.Rotation(body.Effect.Rotation)
	m.unreached(r, body.Verifiers)
	switch body.Effect.Kind {
	case Preflight:
		return m.preflighted(r, body)
	case Mint:
		return m.minted(r, body)
	case Judge:
		return m.judged(r, body)
	case Measure:
		return m.measured(r, body)
	case Accept, ProbeAccept, Refuse, ProbeRefuse, Destroy, Tell, Reconcile:
	}
	return fmt.Errorf("%w: effect %v has no result of this kind", ErrInvalid, body.Effect.Kind)
}

func (m *machine) slotResult(body Result) error {
	w, slot, ok := m.waitingSlot(body.Effect)
	if !ok {
		return fmt.Errorf("%w: %s", ErrStale, body.Effect.ID())
	}
	v := slot.Version
	switch body.Outcome {
	case OK:
		m.updateSlot(w, v, func(slot *Slot) { slot.Trouble, slot.Waits = "", "" })
		m.answered(w, slot)
		return nil
	case Contradicted:
		return m.contradicted(w, slot, body.Insist)
	case Broken:
		m.fail(w, v, HoldEffect, body.Insist, fmt.Sprintf("%v %v at %s: %s", body.Effect.Kind, v, w.ID, body.Detail))
		return nil
	case NoData:
	}
	return fmt.Errorf("%w: outcome %v of %s", ErrInvalid, body.Outcome, body.Effect.ID())
}

// answered moves a slot on after a good answer.
func (m *machine) answered(w *Verifier, slot Slot) {
	v := slot.Version
	settle := func(a Acceptance) {
		m.updateSlot(w, v, func(slot *Slot) { slot.Acceptance, slot.Contradictions, slot.Insisted = a, 0, "" })
	}
	switch slot.Acceptance {
	case AcceptPending:
		m.ask(w, v, AcceptProbing)
		if m.Gap {
			// Accepting v made the verifier refuse every other version; prove it.
			for _, other := range w.Slots {
				if other.Version != v && other.Acceptance.accepting() {
					m.ask(w, other.Version, RefuseProbing)
				}
			}
		}
	case AcceptProbing:
		settle(Accepted)
	case RefusePending:
		m.ask(w, v, RefuseProbing)
		if m.Gap {
			// Had accepting v taken effect, the verifier would refuse every other version.
			for _, other := range w.Slots {
				if other.Version != v && other.Acceptance.accepting() && !m.foreign(other.Version) {
					m.ask(w, other.Version, AcceptPending)
				}
			}
		}
	case RefuseProbing:
		settle(Refused)
	case Accepted, Refused:
	}
}

// contradicted asks a verifier again whose probe gave it the lie, a few times.
func (m *machine) contradicted(w *Verifier, slot Slot, insist bool) error {
	again := AcceptPending
	switch slot.Acceptance {
	case AcceptProbing:
	case RefuseProbing:
		again = RefusePending
	case AcceptPending, RefusePending, Accepted, Refused:
		return fmt.Errorf("%w: only a probe can be contradicted", ErrInvalid)
	}
	m.updateSlot(w, slot.Version, func(slot *Slot) { slot.Contradictions++ })
	if slot.Contradictions+1 >= MaxTries {
		m.fail(w, slot.Version, HoldContradict, insist, fmt.Sprintf("%s says one thing about %v and does another", w.ID, slot.Version))
		return nil
	}
	m.ask(w, slot.Version, again)
	return nil
}

// fail records that an effect at a verifier failed for good. Refusing a
// compromised version is insisted on: nobody need do anything for it to be asked
// for again, and what else the emergency does goes on.
func (m *machine) fail(w *Verifier, v key.Version, reason HoldReason, insist bool, message string) {
	if slot, _ := w.Slot(v); insist && m.compromised(v) && !slot.Acceptance.accepting() {
		m.updateSlot(w, v, func(slot *Slot) {
			slot.Acceptance, slot.Contradictions = RefusePending, 0
			slot.Failed, slot.Trouble, slot.Waits, slot.Insisted = true, message, "", message
			slot.RetryAt = m.Now.Add(retryFailed)
		})
		return
	}
	m.updateSlot(w, v, func(slot *Slot) {
		slot.Failed, slot.Trouble, slot.Waits = true, message, ""
		if _, owned := m.owner(v); !owned {
			slot.RetryAt = m.Now.Add(retryFailed)
		}
	})
	if r, ok := m.owner(v); ok {
		r.hold(Hold{Reason: reason, Message: message, Human: true, Since: m.Now})
	}
}

// start asks for the rotation's own effect.
func (m *machine) start(r *Rotation, kind EffectKind, v key.Version) {
	r.Task = Task{Kind: kind, Try: r.Task.Try + 1, Waiting: true}
	ref := EffectRef{Kind: kind, Rotation: r.ID, Version: v, Try: r.Task.Try}
	m.effects = append(m.effects, Effect{EffectRef: ref, Stage: r.Stage})
}

func (m *machine) preflighted(r *Rotation, body Result) error {
	r.Task.Waiting = false
	switch body.Outcome {
	case OK:
		r.Task.Done = true
		return nil
	case Broken:
		r.Task.Failed, r.Task.Trouble = true, body.Detail
		r.hold(Hold{Reason: HoldEffect, Message: "preflight: " + body.Detail, Human: true, Since: m.Now})
		return nil
	case Contradicted, NoData:
	}
	return fmt.Errorf("%w: outcome %v of a preflight", ErrInvalid, body.Outcome)
}

func (m *machine) minted(r *Rotation, body Result) error {
	switch body.Outcome {
	case OK:
		m.Versions = append(m.Versions, Version{
			Number: r.To, State: key.PreActivation, Label: key.Pending, Rotation: r.ID, MintedAt: m.Now,
		})
		m.enter(r, Accepting)
		return nil
	case Broken:
		if r.Kind == Emergency {
			// Nobody else would replace the compromised version.
			r.Task.Waiting, r.Task.Failed, r.Task.Trouble = false, true, body.Detail
			r.hold(Hold{Reason: HoldEffect, Message: "minting: " + body.Detail, Human: true, Since: m.Now})
			return nil
		}
		r.Reason = "minting failed: " + body.Detail
		m.end(r, Failed)
		return nil
	case Contradicted, NoData:
	}
	return fmt.Errorf("%w: outcome %v of minting", ErrInvalid, body.Outcome)
}

func (m *machine) judged(r *Rotation, body Result) error {
	r.Task.Waiting = false
	switch body.Outcome {
	case OK:
		r.Task.Done = true
		r.clear(HoldNoData)
	case Contradicted:
		if !r.Hold.Human {
			m.stageFailed(r, body.Detail)
		}
	case NoData, Broken:
		r.JudgeAt = m.Now.Add(r.Plan.JudgeEvery)
		r.hold(Hold{Reason: HoldNoData, Message: "no data to judge stage " + r.Plan.Stages[r.Stage].Name + ": " + body.Detail, Since: m.Now})
	default:
		return fmt.Errorf("%w: outcome %v of a judgement", ErrInvalid, body.Outcome)
	}
	return nil
}

func (m *machine) measured(r *Rotation, body Result) error {
	r.Task.Waiting = false
	r.MeasureAt = m.Now.Add(r.Plan.MeasureEvery)
	switch {
	case body.Outcome == OK && body.Uses == 0:
		if r.QuietSince.IsZero() {
			r.QuietSince = m.Now
		}
		m.fresh = r.ID
		r.clear(HoldNoData)
	case body.Outcome == OK && body.Uses > 0:
		r.QuietSince = time.Time{}
		r.clear(HoldNoData)
	case body.Outcome == NoData || body.Outcome == Broken:
		r.QuietSince = time.Time{}
		r.hold(Hold{Reason: HoldNoData, Message: "use could not be measured: " + body.Detail, Since: m.Now})
	default:
		return fmt.Errorf("%w: outcome %v with %d uses of a measurement", ErrInvalid, body.Outcome, body.Uses)
	}
	return nil
}

func (m *machine) destroyed(task *Task, body Result) error {
	v := body.Effect.Version
	switch body.Outcome {
	case OK:
		m.Versions = slices.DeleteFunc(m.Versions, func(x Version) bool { return x.Number == v })
		for i := range m.Verifiers {
			w := &m.Verifiers[i]
			w.Slots = slices.DeleteFunc(slices.Clone(w.Slots), func(s Slot) bool { return s.Version == v })
		}
		for i := range m.Presenters {
			// Who may still have used it was locked out when it was contained.
			if p := &m.Presenters[i]; p.MayUse(v) {
				p.Maybe = slices.DeleteFunc(slices.Clone(p.Maybe), func(x key.Version) bool { return x == v })
				p.Also = slices.DeleteFunc(slices.Clone(p.Also), func(x key.Version) bool { return x == v })
			}
		}
		return nil
	case Broken:
		task.Waiting, task.Trouble = false, body.Detail
		version, _ := m.Version(v)
		version.DestroyAt = m.Now.Add(retryFailed)
		return nil
	case Contradicted, NoData:
	}
	return fmt.Errorf("%w: outcome %v of a destruction", ErrInvalid, body.Outcome)
}
