package rotation

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/key"
)

// Step folds one event into the state of a key and returns the new state and
// the effects to carry out, in the order in which they were decided. It changes
// neither argument. On an error the returned state is s, and nothing happened;
// see the Err variables for the causes. Step may be called concurrently.
func Step(s State, e Event) (State, []Effect, error) {
	m := machine{State: s.clone()}
	if e.At.After(m.Now) {
		m.Now = e.At
	}
	if err := m.apply(e); err != nil {
		return s, nil, err
	}
	m.advance()
	m.Seq++
	return m.State, m.effects, nil
}

// machine is a State being changed.
type machine struct {
	State
	effects []Effect
	// fresh is the rotation whose measurement the event in hand answers with zero.
	fresh key.RotationID
}

func (m *machine) apply(e Event) error {
	if m.Next == 0 {
		if _, ok := e.Body.(Configured); !ok {
			return fmt.Errorf("%w: the first event of a key tells its configuration", ErrInvalid)
		}
		m.Next = 1
	}
	if m.Standing() && !whileStanding(e.Body) {
		return fmt.Errorf("%w: %s; settle it with keyturn reconcile", ErrRestored, m.WhyStanding())
	}
	switch body := e.Body.(type) {
	case Configured:
		return m.configure(body)
	case Joined:
		return m.join([]Joined{body})
	case Arrived:
		return m.join(body.Joins)
	case Left:
		return m.leave(body)
	case Begin:
		return m.begin(e.Rotation, body)
	case Declare:
		return m.declare(e.Rotation, body)
	case Revert:
		return m.revert(e.Rotation, body)
	case Approve:
		return m.approve(e.Rotation, body)
	case Pause:
		return m.pause(e.Rotation, body)
	case Resume:
		return m.resume(e.Rotation)
	case Cancel:
		return m.cancel(e.Rotation, body)
	case Acked:
		return m.acked(body)
	case Result:
		return m.result(body)
	case Trouble:
		return m.trouble(body)
	case Tick:
		return nil
	case Restored:
		return m.restored(body)
	case Reconciled:
		return m.reconciled(body)
	case Resolve:
		return m.resolve(e.Rotation, body)
	}
	return fmt.Errorf("%w: body %T", ErrInvalid, e.Body)
}

// whileStanding reports whether an event is taken while the key stands still:
// facts about presenters and the configuration, what reconciles it, and results,
// of which only that of the reconciliation is awaited.
func whileStanding(body Body) bool {
	switch body.(type) {
	case Begin, Declare, Revert, Approve, Pause, Resume, Cancel:
		return false
	}
	return true
}

func (m *machine) configure(body Configured) error {
	var verifiers []Verifier
	for _, ref := range body.Verifiers {
		if ref.ID == "" {
			return fmt.Errorf("%w: a verifier without ID", ErrInvalid)
		}
		if slices.ContainsFunc(verifiers, func(w Verifier) bool { return w.ID == ref.ID }) {
			return fmt.Errorf("%w: verifier %q is named twice", ErrInvalid, ref.ID)
		}
		w := Verifier{ID: ref.ID, Region: ref.Region}
		if known, ok := m.Verifier(ref.ID); ok {
			w = *known
			w.Region = ref.Region
		}
		verifiers = append(verifiers, w)
	}
	slices.SortFunc(verifiers, func(a, b Verifier) int { return cmp.Compare(a.ID, b.ID) })
	before := m.Verifiers
	m.Verifiers, m.Capacity, m.Gap = verifiers, body.Capacity, body.Gap
	if m.Standing() {
		m.reconcile()
		return nil
	}
	m.tryNew(before)
	return nil
}

// tryNew tries every version that is not wanted at the verifiers that were not
// there before: one that comes back may accept what was revoked meanwhile. None
// can be asked to accept a foreign version, so that it must refuse it.
func (m *machine) tryNew(before []Verifier) {
	wanted := m.wanted()
	for i := range m.Verifiers {
		w := &m.Verifiers[i]
		if slices.ContainsFunc(before, func(old Verifier) bool { return old.ID == w.ID }) {
			continue
		}
		for j := range m.Versions {
			v := &m.Versions[j]
			if v.State != key.PreActivation && !v.Destroy.Waiting && (v.Foreign || !slices.Contains(wanted, v.Number)) {
				m.ask(w, v.Number, RefuseProbing)
			}
		}
	}
}

func (m *machine) join(joins []Joined) error {
	if len(joins) == 0 {
		return fmt.Errorf("%w: nobody arrived", ErrInvalid)
	}
	var unknown []Presenter
	for _, j := range joins {
		if j.ID == "" || j.Stage < 0 {
			return fmt.Errorf("%w: a presenter needs an ID and a stage", ErrInvalid)
		}
		if _, known := m.Presenter(j.ID); !known {
			unknown = append(unknown, Presenter{ID: j.ID})
		}
	}
	// One pass puts all of them in their places, however many there are.
	byID := func(a, b Presenter) int { return cmp.Compare(a.ID, b.ID) }
	slices.SortFunc(unknown, byID)
	unknown = slices.CompactFunc(unknown, func(a, b Presenter) bool { return a.ID == b.ID })
	m.Presenters = merge(m.Presenters, unknown, byID)
	for _, j := range joins {
		p, _ := m.Presenter(j.ID)
		m.joined(p, j)
	}
	return nil
}

// merge returns the elements of two sorted lists in one.
func merge[T any](a, b []T, order func(T, T) int) []T {
	if len(b) == 0 {
		return a
	}
	out := make([]T, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if order(a[0], b[0]) <= 0 {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

func (m *machine) joined(p *Presenter, body Joined) {
	m.Epoch = max(m.Epoch, body.Epoch)
	p.Region, p.Stage, p.Silent = body.Region, body.Stage, false
	if _, there := m.Version(body.Holding); !there && m.Standing() && body.Holding < m.Recovery.Next {
		body.Holding = 0 // it was destroyed before the store was cut off
	}
	if body.Holding != 0 && !slices.Contains(p.Maybe, body.Holding) {
		p.Maybe = append(slices.Clone(p.Maybe), body.Holding)
		p.Acked = false
	}
	if body.Epoch > p.Epoch && body.Epoch <= m.Floor {
		// What it was told last belongs to a time that is missing.
		m.widenOne(p)
	}
	if body.Holding != p.Told || body.Epoch > p.Epoch {
		// Whatever was told before did not arrive: advance tells it anew.
		p.Told, p.Acked, p.Failed, p.Detail = 0, false, false, ""
	}
}

func (m *machine) leave(body Left) error {
	before := len(m.Presenters)
	m.Presenters = slices.DeleteFunc(m.Presenters, func(p Presenter) bool { return p.ID == body.ID })
	if len(m.Presenters) == before {
		return fmt.Errorf("%w: presenter %q left already", ErrStale, body.ID)
	}
	return nil
}

func (m *machine) begin(id key.RotationID, body Begin) error {
	if err := m.checkNew(id, body.Plan); err != nil {
		return err
	}
	if body.Kind != Scheduled && body.Kind != Manual {
		return fmt.Errorf("%w: a rotation of kind %v is not begun by Begin", ErrInvalid, body.Kind)
	}
	for i := range m.Rotations {
		if r := &m.Rotations[i]; !r.Phase.Retiring() {
			return fmt.Errorf("%w: rotation %v is %v; wait for it, or cancel it", ErrBusy, r.ID, r.Phase)
		}
	}
	m.assign(body.Stages)
	m.open(Rotation{ID: id, Kind: body.Kind, Plan: body.Plan, Reason: body.Reason, Actor: body.Actor, From: m.Labelled(key.Current)})
	return nil
}

func (m *machine) assign(stages []StageOf) {
	for _, a := range stages {
		if p, ok := m.Presenter(a.ID); ok && a.Stage >= 0 {
			p.Stage = a.Stage
		}
	}
}

func (m *machine) checkNew(id key.RotationID, plan Plan) error {
	if id.IsZero() {
		return fmt.Errorf("%w: a new rotation needs an ID", ErrInvalid)
	}
	if _, ok := m.Rotation(id); ok {
		return fmt.Errorf("%w: rotation %v was begun already", ErrStale, id)
	}
	if len(plan.Stages) == 0 {
		return fmt.Errorf("%w: a plan needs at least one stage", ErrInvalid)
	}
	return nil
}

// open adds a rotation in phase planned.
func (m *machine) open(r Rotation) {
	r.Phase, r.StartedAt, r.PhaseSince = Planned, m.Now, m.Now
	r.Trail = []Phase{Planned}
	m.Rotations = append(m.Rotations, r)
}

func (m *machine) revert(id key.RotationID, body Revert) error {
	of, ok := m.Rotation(body.Of)
	if !ok {
		return fmt.Errorf("%w rotation %v: it has ended, or never was; only rotations whose old version is not destroyed can be rolled back", ErrUnknown, body.Of)
	}
	if err := m.checkBack(of); err != nil {
		return err
	}
	switch of.Phase {
	case Accepting, Presenting:
		if err := m.checkReturn(of); err != nil {
			return err
		}
		of.Reason = cmp.Or(body.Reason, of.Reason)
		m.rollBack(of, RolledBack)
		return nil
	case RollingBack:
		return fmt.Errorf("%w: rotation %v is being rolled back already", ErrStale, of.ID)
	case Planned, Minting:
		return fmt.Errorf("%w: rotation %v has changed nothing yet; cancel it", ErrPhase, of.ID)
	case Draining, Revoking, Quarantine:
		return m.revertRetired(id, of, body)
	case Destroying:
		return fmt.Errorf("%w: the quarantine of %v is over; begin a new rotation", ErrPhase, of.From)
	case Done, RolledBack, Failed, Cancelled, Superseded:
	}
	return fmt.Errorf("%w: rotation %v has ended", ErrPhase, of.ID)
}

// checkBack reports whether r's old version may be presented again.
func (m *machine) checkBack(r *Rotation) error {
	from, ok := m.Version(r.From)
	if !ok {
		return fmt.Errorf("%w: rotation %v brought in the key's first version; there is none before it", ErrPhase, r.ID)
	}
	if from.State == key.Compromised {
		return fmt.Errorf("%w: %v is never brought back; begin a new rotation instead", ErrCompromised, r.From)
	}
	if from.Foreign {
		return fmt.Errorf("%w: the material of %v is not here, it was lost with a restore; go on, or declare %v compromised", ErrPhase, r.From, r.To)
	}
	return nil
}

// checkReturn reports whether presenters that may be using r's new version can return
// to the old one: after a restore a verifier may have been found to refuse that, and
// perhaps cannot accept it again.
func (m *machine) checkReturn(r *Rotation) error {
	if m.Gap || m.unused(r.To) {
		return nil
	}
	if w, slot := m.unproven(r.From); w != nil {
		why := cmp.Or(slot.Trouble, "it is being asked to")
		return fmt.Errorf("%w: verifier %s does not accept %v, and presenters of %v could not return to it: %s; see to it that %s accepts %v, or let the rotation go on",
			ErrPhase, w.ID, r.From, r.To, why, w.ID, r.From)
	}
	return nil
}

func (m *machine) revertRetired(id key.RotationID, of *Rotation, body Revert) error {
	if err := m.checkNew(id, body.Plan); err != nil {
		return err
	}
	for i := range m.Rotations {
		switch r := &m.Rotations[i]; {
		case r.Phase.Retiring():
		case r.Phase == Planned && r.Kind != Emergency:
			// It has changed nothing yet, and would have replaced what is given up.
			m.end(r, Superseded)
		default:
			return fmt.Errorf("%w: rotation %v is %v; roll that one back first", ErrBusy, r.ID, r.Phase)
		}
	}
	if m.Labelled(key.Current) != of.To {
		return fmt.Errorf("%w: %v is not the current version any more; roll back the rotation after it", ErrPhase, of.To)
	}
	back, _ := m.Version(of.From)
	r := Rotation{ID: id, Kind: Rollback, Plan: body.Plan, Reason: body.Reason, Actor: body.Actor, From: of.To, To: of.From}
	m.end(of, RolledBack)
	back.State, back.Label = key.Active, key.Pending
	m.open(r)
	m.enter(&m.Rotations[len(m.Rotations)-1], Accepting)
	return nil
}

func (m *machine) approve(id key.RotationID, body Approve) error {
	r, ok := m.Rotation(id)
	if !ok {
		return fmt.Errorf("%w rotation %v", ErrUnknown, id)
	}
	if r.Phase != Planned {
		return fmt.Errorf("%w: rotation %v is %v, approvals are over", ErrPhase, id, r.Phase)
	}
	if body.Actor == "" {
		return fmt.Errorf("%w: an approval needs a name", ErrInvalid)
	}
	if slices.Contains(r.Approvals, body.Actor) {
		return fmt.Errorf("%w: %s has approved already", ErrStale, body.Actor)
	}
	r.Approvals = append(slices.Clone(r.Approvals), body.Actor)
	return nil
}

func (m *machine) pause(id key.RotationID, body Pause) error {
	r, ok := m.Rotation(id)
	if !ok {
		return fmt.Errorf("%w rotation %v", ErrUnknown, id)
	}
	r.hold(Hold{Reason: HoldOperator, Message: cmp.Or(body.Reason, "paused"), Human: true, Since: m.Now})
	return nil
}

func (m *machine) resume(id key.RotationID) error {
	r, ok := m.Rotation(id)
	if !ok {
		return fmt.Errorf("%w rotation %v", ErrUnknown, id)
	}
	if !r.Hold.Human {
		return fmt.Errorf("%w: rotation %v does not wait for a human", ErrPhase, id)
	}
	if r.Hold.Reason == HoldStageFailed {
		m.retell(r.To)
	}
	r.Hold = Hold{}
	r.Task.Failed = false
	for i := range m.Verifiers {
		for _, v := range []key.Version{r.From, r.To} {
			m.updateSlot(&m.Verifiers[i], v, func(slot *Slot) {
				if slot.Failed {
					slot.RetryAt = m.Now
				}
				slot.Contradictions = 0
			})
		}
	}
	return nil
}

// retell makes every presenter that failed with v be told again.
func (m *machine) retell(v key.Version) {
	for i := range m.Presenters {
		if p := &m.Presenters[i]; p.Told == v && p.Failed {
			p.Told, p.Acked, p.Failed, p.Detail = 0, false, false, ""
		}
	}
}

func (m *machine) cancel(id key.RotationID, body Cancel) error {
	r, ok := m.Rotation(id)
	if !ok {
		return fmt.Errorf("%w rotation %v", ErrUnknown, id)
	}
	switch r.Phase {
	case Planned, Minting:
		if r.Kind == Emergency && m.compromised(r.From) {
			return fmt.Errorf("%w: nothing else would replace %v; pause rotation %v if it must wait", ErrCompromised, r.From, id)
		}
		r.Reason = cmp.Or(body.Reason, r.Reason)
		m.end(r, Cancelled)
		return nil
	case Accepting, Presenting:
		if r.From != 0 {
			if err := cmp.Or(m.checkBack(r), m.checkReturn(r)); err != nil {
				return err
			}
		} else if err := m.checkUnused(r); err != nil {
			return err
		}
		r.Reason = cmp.Or(body.Reason, r.Reason)
		m.rollBack(r, RolledBack)
		return nil
	case RollingBack, Draining, Revoking, Quarantine, Destroying:
		return fmt.Errorf("%w: rotation %v is %v; roll it back instead", ErrPhase, id, r.Phase)
	case Done, RolledBack, Failed, Cancelled, Superseded:
	}
	return fmt.Errorf("%w: rotation %v has ended", ErrPhase, id)
}

// checkUnused reports whether the first version of a key can be given up: nobody
// uses it, also not since a time that is missing after a restore.
func (m *machine) checkUnused(r *Rotation) error {
	switch {
	case r.Phase == Presenting:
		return fmt.Errorf("%w: there is no version before %v to return to", ErrPhase, r.To)
	case !m.unused(r.To):
		return fmt.Errorf("%w: %v may be in use since a time that is missing after a restore, and there is no version before it to return to; let the rotation go on", ErrPhase, r.To)
	}
	return nil
}

func (m *machine) acked(body Acked) error {
	news := false
	for _, ack := range body.Acks {
		p, ok := m.Presenter(ack.ID)
		if !ok || ack.Epoch != p.Epoch || p.Told == 0 {
			continue
		}
		if ack.Order != 0 && ack.Order < p.Heard {
			continue // it was overtaken by a later one
		}
		failed, detail := !ack.OK, ack.Detail
		if ack.OK && ack.Using != p.Told {
			failed, detail = true, fmt.Sprintf("it acknowledges %v but uses %v", p.Told, ack.Using)
		}
		// One that could not follow may try again at any time and succeed.
		maybe := []key.Version{p.Told}
		if ack.Using != p.Told && ack.Using != 0 {
			maybe = append(maybe, ack.Using)
		}
		if p.Acked && p.Failed == failed && slices.Equal(p.Maybe, maybe) && len(p.Also) == 0 && ack.Order <= p.Heard {
			continue
		}
		news = true
		p.Heard = max(p.Heard, ack.Order)
		p.Acked, p.Failed, p.Detail, p.Maybe, p.Also = true, failed, detail, maybe, nil
	}
	if !news {
		return fmt.Errorf("%w: no acknowledgement that anybody waits for", ErrStale)
	}
	return nil
}

func (m *machine) trouble(body Trouble) error {
	if body.Effect.Verifier != "" {
		w, slot, ok := m.waitingSlot(body.Effect)
		if !ok {
			return fmt.Errorf("%w: %s", ErrStale, body.Effect.ID())
		}
		m.updateSlot(w, slot.Version, func(slot *Slot) {
			slot.Trouble, slot.Waits = body.Detail, ""
			if body.Waits {
				slot.Trouble, slot.Waits = "", body.Detail
			}
		})
		return nil
	}
	task, ok := m.waitingTask(body.Effect)
	if !ok {
		return fmt.Errorf("%w: %s", ErrStale, body.Effect.ID())
	}
	task.Trouble = body.Detail
	if r, ok := m.Rotation(body.Effect.Rotation); ok && body.Effect.Kind != Destroy {
		m.unreached(r, body.Verifiers)
	}
	return nil
}

// hold puts r on hold, unless it waits for a human already.
func (r *Rotation) hold(h Hold) {
	if r.Hold.Human && !h.Human {
		return
	}
	if r.Hold.Reason == h.Reason && r.Hold.Human == h.Human {
		h.Since = r.Hold.Since
	}
	r.Hold = h
}

// clear ends a hold that needs no human, if it has the given reason.
func (r *Rotation) clear(reason HoldReason) {
	if !r.Hold.Human && r.Hold.Reason == reason {
		r.Hold = Hold{}
	}
}

// enter moves r to another phase.
func (m *machine) enter(r *Rotation, p Phase) {
	r.Phase, r.PhaseSince = p, m.Now
	r.Trail = append(r.Trail, p)
	r.Task = Task{Try: r.Task.Try}
	r.QuietSince, r.MeasureAt = time.Time{}, time.Time{}
	r.Unreached, r.UnreachedSince = nil, time.Time{}
	if !r.Hold.Human {
		r.Hold = Hold{}
	}
}

// end moves r to a final phase. advance removes it from the open ones.
func (m *machine) end(r *Rotation, p Phase) {
	unfinished := r.Phase.CutOver()
	m.enter(r, p)
	r.Hold = Hold{}
	if !unfinished {
		// What it brought in was current once, and may be on its way back.
		return
	}
	// A version that did not become current is of no further use.
	if v, ok := m.Version(r.To); ok && v.Label == key.Pending {
		v.Label = 0
		if v.State == key.PreActivation || v.State == key.Active {
			v.State = key.Deactivated
		}
		v.DestroyAt = m.Now.Add(r.Plan.DestroyAfter)
	}
}
