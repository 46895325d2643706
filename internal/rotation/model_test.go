package rotation

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/key"
)

// violation is an invariant that does not hold.
type violation struct {
	invariant string
	detail    string
}

func (v *violation) Error() string { return v.invariant + ": " + v.detail }

func violated(invariant, format string, args ...any) *violation {
	return &violation{invariant: invariant, detail: fmt.Sprintf(format, args...)}
}

// run is one application of a move: the node being changed and what was sent to
// the machine on the way.
type run struct {
	c      *config
	n      node
	events []Event
	err    *violation
	// refused: the machine refused an event of the move, for a good reason.
	refused bool
}

// apply returns the node after the move. ok is false when the move turned out
// to be impossible or to change nothing.
func (c *config) apply(n *node, m move) (next node, ok bool, err *violation) {
	r := run{c: c, n: *n}
	r.n.w.places, r.n.w.parties = slices.Clone(n.w.places), slices.Clone(n.w.parties)
	defer func() {
		if problem := recover(); problem != nil {
			next, ok, err = *n, true, violated("no panic", "%v", problem)
		}
	}()
	switch {
	case m.kind.fault():
		r.n.w.faults--
	case m.kind.churn():
		r.n.w.churn--
	case m.kind.command():
		r.n.w.commands--
	}
	switch k := m.kind; {
	case k == moveSave:
		r.save()
	case k == moveRestore:
		r.restore()
	case k == moveReplace:
		r.settleRestore(Replace)
	case k == moveAsFound:
		r.settleRestore(AsFound)
	case k == moveAsRemembered:
		r.settleRestore(AsRemembered)
	case k == moveLook:
		r.send(Event{Body: Restored{Epoch: n.s.Floor, Next: n.s.Next}})
	case k == moveRenew:
		// There is no version to return to: an empty stage must not keep it waiting.
		plan := r.c.plan
		plan.Stages = slices.Clone(plan.Stages)
		for i := range plan.Stages {
			plan.Stages[i].SkipEmpty = true
		}
		r.send(Event{Rotation: r.newID(), Body: Begin{Kind: Manual, Plan: plan}})
	case k == moveReattach, k == moveForget:
		r.party(m)
	case k <= moveFinish, k == moveAgain, k >= moveStart && k <= moveBad:
		r.effect(m)
	case k <= moveOldTell, k >= moveCannot && k <= moveWipe:
		r.party(m)
	case k == moveTick:
		r.send(Event{At: n.s.Wake(), Body: Tick{}})
	case k == moveQuiet:
		r.n.w.unregistered = 0
	case k == moveAdd, k == moveRemove:
		// Nobody can ask for the refusal of a version whose material is gone, or
		// going: that who comes back so late has forgotten it is left to its operator.
		p := &r.n.w.places[m.a]
		p.known, p.accepts = k == moveAdd, p.accepts&^r.n.w.destroyed
		if r.n.w.restored {
			p.accepts = r.n.known(p.accepts) // nor of one that was never known here
		}
		for i := range n.s.Versions {
			if v := &n.s.Versions[i]; v.Destroy.Waiting {
				p.accepts = p.accepts.without(v.Number)
			}
		}
		r.configure()
	default:
		r.command(m)
	}
	if r.err != nil {
		return r.n, true, r.err
	}
	return r.n, !r.refused, nil
}

// send steps the machine, checks the step and queues the effects.
func (r *run) send(e Event) {
	if e.At.IsZero() {
		e.At = r.n.s.Now
	}
	r.events = append(r.events, e)
	before := r.n.s
	after, effects, err := Step(before, e)
	if err != nil {
		r.refused = true
		if !errors.Is(err, ErrStale) && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrPhase) && !errors.Is(err, ErrCompromised) && !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrRestored) && !errors.Is(err, ErrLockOut) {
			r.err = violated("errors", "%T: %v", e.Body, err)
		}
		return
	}
	r.n.s = after
	if r.c.observe != nil {
		r.c.observe(&before, &after, e)
	}
	if r.err == nil {
		r.err = checkStep(&r.n.w, &before, &after, e, effects)
	}
	for _, effect := range effects {
		if effect.Kind != Tell {
			r.n.w.queue(effect)
		}
	}
	r.settle()
}

// settle forgets what cannot matter any more.
func (r *run) settle() {
	w, s := &r.n.w, &r.n.s
	for i := len(w.lanes) - 1; i >= 0; i-- {
		ref := w.lanes[i].ref()
		if l := w.lanes[i]; l.queued.exists() && !s.Awaits(l.queued.effect.EffectRef) {
			l.queued = job{}
			w.setLane(i, l)
			continue
		}
		if ref.Verifier == "" && ref.Kind != Destroy && ref.Kind != Reconcile {
			if _, open := s.Rotation(ref.Rotation); !open {
				w.setLane(i, lane{})
			}
		}
	}
	for i := range s.Versions {
		if v := &s.Versions[i]; v.Contained {
			w.contained = w.contained.with(v.Number)
		}
	}
	if w.faults == 0 {
		for i := range w.parties {
			if p := &w.parties[i]; p.old.Epoch <= p.seen {
				p.old = Ack{}
			}
		}
	}
	if _, open := s.Rotation(w.judged); !open {
		w.judged, w.judgedStage = key.RotationID{}, 0
	}
}

func (r *run) effect(m move) {
	w := &r.n.w
	if m.kind == moveAgain {
		result := w.twice
		w.twice = Result{}
		r.send(Event{Body: result})
		if !r.refused && r.err == nil {
			r.err = violated("stale", "the result of %s was taken twice", result.Effect.ID())
		}
		r.refused = false
		return
	}
	l := w.lanes[m.a]
	switch m.kind { //nolint:exhaustive // the other kinds need nothing here
	case moveStart:
		l.running, l.queued = l.queued, job{}
		w.setLane(int(m.a), l)
		return
	case moveExecute:
		w.execute(&l.running, r.c.gap)
		l.running.found = r.c.found(&r.n)
		w.setLane(int(m.a), l)
		return
	case moveCrash:
		if !l.queued.exists() {
			l.queued = job{effect: l.running.effect}
		}
		l.running = job{}
		w.setLane(int(m.a), l)
		return
	case moveLose:
		done := l.queued
		w.execute(&done, r.c.gap)
		return
	case moveTrouble:
		r.send(Event{Body: Trouble{Effect: l.queued.effect.EffectRef, Attempt: 1, Detail: "it failed", Verifiers: cutOff(l.queued.effect.EffectRef)}})
		return
	case moveLater:
		r.send(Event{Body: Trouble{Effect: l.queued.effect.EffectRef, Attempt: 1, Detail: "it takes its time", Waits: true}})
		return
	case moveFinish:
		done := l.running
		l.running = job{}
		w.setLane(int(m.a), l)
		r.deliver(done, m.kind)
		return
	}
	done := l.queued
	if m.kind != moveLie && m.kind != moveBroken {
		w.execute(&done, r.c.gap)
		done.found = r.c.found(&r.n)
	}
	l.queued = job{}
	w.setLane(int(m.a), l)
	r.deliver(done, m.kind)
}

// cutOff are the verifiers at which an effect that concerns all fails: those of
// one region.
func cutOff(ref EffectRef) []string {
	if ref.Kind != Preflight && ref.Kind != Measure {
		return nil
	}
	return []string{placeID(1)}
}

// deliver sends the result of a job that ended in the given way.
func (r *run) deliver(done job, how moveKind) {
	if done.effect.Kind == Reconcile {
		r.send(Event{Body: Reconciled{Effect: done.effect.EffectRef, Listed: !r.c.unlisted, Found: done.found}})
		r.refused = false
		return
	}
	result := Result{Effect: done.effect.EffectRef, Outcome: OK, Uses: done.uses}
	switch how { //nolint:exhaustive // the other kinds need nothing here
	case moveBroken, moveHalf:
		result.Outcome, result.Detail = Broken, "it is broken"
	case moveNoData:
		result.Outcome, result.Uses, result.Verifiers = NoData, 0, cutOff(result.Effect)
	case moveBad:
		result.Outcome, result.Detail = Contradicted, "too many failures"
	case moveLie:
	default:
		if !done.good {
			result.Outcome = Contradicted
		}
	}
	refusing := result.Effect.Kind == Refuse || result.Effect.Kind == ProbeRefuse
	result.Insist = refusing && (result.Outcome == Broken || result.Outcome == Contradicted)
	w := &r.n.w
	if result.Outcome == OK && result.Effect.Verifier != "" {
		p := &w.places[placeIndex(result.Effect.Verifier)]
		switch result.Effect.Kind { //nolint:exhaustive // the other kinds need nothing here
		case ProbeRefuse:
			p.proven = p.proven.with(result.Effect.Version)
		case ProbeAccept:
			p.proven = p.proven.without(result.Effect.Version)
		}
	}
	if result.Effect.Kind == Judge {
		w.judged, w.judgedStage = key.RotationID{}, 0
		if result.Outcome == OK {
			w.judged, w.judgedStage = result.Effect.Rotation, done.effect.Stage
		}
	}
	r.send(Event{Rotation: result.Effect.Rotation, Body: result})
	// A result that nobody waited for is dropped together with its effect.
	r.refused = false
	if how == moveTwice {
		w.twice = result
	}
}

func (r *run) party(m move) {
	w := &r.n.w
	p := &w.parties[m.a]
	id := partyID(int(m.a))
	known, _ := r.n.s.Presenter(id)
	switch m.kind { //nolint:exhaustive // the other kinds need nothing here
	case moveApply:
		p.seen, p.told, p.using, p.sick, p.stranger = known.Epoch, known.Told, known.Told, false, false
	case moveCannot:
		p.seen, p.told, p.sick = known.Epoch, known.Told, true
	case moveRetry:
		p.using, p.sick, p.stranger = p.told, false, false
	case moveOldTell:
		p.seen, p.told, p.using, p.sick, p.stranger = p.old.Epoch, p.old.Using, p.old.Using, false, false
		p.old = Ack{}
	case moveDelayTell:
		p.old = Ack{Epoch: known.Epoch, Using: known.Told}
	case moveSicken:
		p.sick = true
	case moveAck:
		overtakes := p.late.Epoch == p.seen && (p.heardOf != p.seen || p.late.Order > p.heard)
		r.acked(p, p.answer(id))
		if overtakes && known != nil && p.heardOf == known.Epoch {
			r.refused = false // that it was heard matters, even if it is no news
		}
	case moveDelayAck:
		p.late = p.answer(id)
	case moveLateAck:
		late := p.late
		p.late = Ack{}
		r.acked(p, late)
		r.refused = false
	case moveLeave:
		*p = party{answers: p.answers}
		r.send(Event{Body: Left{ID: id}})
	case moveJoin:
		*p = party{here: true, answers: p.answers}
		r.join(m, id)
	case moveJoinWith:
		*p = party{here: true, using: key.Version(m.b), answers: p.answers}
		p.stranger = r.n.s.refusedAnywhere(p.using)
		r.join(m, id)
	case moveReconnect:
		r.join(m, id)
	case moveReattach:
		w.detached &^= 1 << m.a
		r.join(m, id)
	case moveForget:
		r.send(Event{Body: Left{ID: id}})
	case moveWipe:
		*p = party{here: true, old: p.old, late: p.late, answers: p.answers}
		r.join(m, id)
	}
	if p.old.Epoch <= p.seen {
		p.old = Ack{}
	}
}

// acked delivers an answer. One that was overtaken by a later one is not taken.
func (r *run) acked(p *party, ack Ack) {
	overtaken := ack.Epoch == p.heardOf && ack.Order < p.heard
	if !overtaken {
		p.heard, p.heardOf = ack.Order, ack.Epoch
	}
	r.send(Event{Body: Acked{Acks: []Ack{ack}}})
	if overtaken && !r.refused && r.err == nil {
		r.err = violated("order", "an answer of presenter %s was taken after a later one", ack.ID)
	}
}

// answer is what the party says now.
func (p *party) answer(id string) Ack {
	p.answers++
	ack := Ack{ID: id, Epoch: p.seen, Order: p.answers, OK: p.using == p.told && !p.sick, Using: p.using}
	if !ack.OK {
		ack.Detail = "not well"
	}
	return ack
}

// refusedAnywhere reports whether any verifier was asked to refuse v.
func (s *State) refusedAnywhere(v key.Version) bool {
	return slices.ContainsFunc(s.Verifiers, func(w Verifier) bool {
		slot, ok := w.Slot(v)
		return !ok || !slot.Acceptance.accepting()
	})
}

func (r *run) join(m move, id string) {
	p := &r.n.w.parties[m.a]
	stage := r.c.stages[m.a]
	body := Joined{ID: id, Region: [2]string{"west", "east"}[m.a%2], Stage: stage, Holding: p.using, Epoch: p.seen}
	if m.a%2 == 1 {
		r.send(Event{Body: Arrived{Joins: []Joined{body}}})
		return
	}
	r.send(Event{Body: body})
}

func (r *run) configure() {
	body := Configured{Capacity: r.c.capacity, Gap: r.c.gap}
	for i := range r.n.w.places {
		if r.n.w.places[i].known {
			body.Verifiers = append(body.Verifiers, VerifierRef{ID: placeID(i), Region: [2]string{"west", "east"}[i%2]})
		}
	}
	r.send(Event{Body: body})
}

func (r *run) newID() key.RotationID {
	r.n.w.begun++
	return key.RotationID{15: r.n.w.begun}
}

func (r *run) command(m move) {
	var id key.RotationID
	if m.kind != moveBegin && m.kind != moveDeclare {
		id = r.n.s.Rotations[m.a].ID
	}
	switch m.kind { //nolint:exhaustive // the other kinds need nothing here
	case moveBegin:
		r.send(Event{Rotation: r.newID(), Body: Begin{Kind: Scheduled, Plan: r.c.plan}})
	case moveDeclare:
		body := Declare{Compromised: r.n.s.target(int(m.b)), Plan: r.c.emergencies[m.a], Insist: true}
		r.send(Event{Rotation: r.newID(), Body: body})
	case moveRevert:
		r.send(Event{Rotation: r.newID(), Body: Revert{Of: id, Plan: r.c.back}})
	case movePause:
		r.send(Event{Rotation: id, Body: Pause{}})
	case moveCancel, moveGiveUp:
		r.send(Event{Rotation: id, Body: Cancel{}})
	case moveResume:
		r.send(Event{Rotation: id, Body: Resume{}})
	case moveApprove:
		n := 0
		if rotation, ok := r.n.s.Rotation(id); ok {
			n = len(rotation.Approvals)
		}
		r.send(Event{Rotation: id, Body: Approve{Actor: [3]string{"ann", "bob", "cyd"}[n]}})
	}
}

// start is the node at which the exploration begins.
func (c *config) start() (node, *violation) {
	r := run{c: c}
	r.n.s.Now = epoch0()
	r.n.w.places, r.n.w.parties = make([]place, c.places), make([]party, len(c.stages))
	for i := range c.verifiers {
		r.n.w.places[i].known = true
	}
	r.configure()
	for i := range c.presenters {
		r.n.w.parties[i].here = true
		r.join(move{a: uint8(i)}, partyID(i))
	}
	for range c.rotated {
		plan := Plan{Stages: []Stage{{Name: "all"}}, MeasureEvery: time.Minute}
		r.send(Event{Rotation: r.newID(), Body: Begin{Kind: Manual, Plan: plan}})
		if err := r.calm(moveQuiet, moveResume, moveGiveUp); err != nil {
			return r.n, err
		}
	}
	r.n.w.faults, r.n.w.churn, r.n.w.commands = c.faults, c.churn, c.commands
	if c.unregistered {
		r.n.w.unregistered = r.n.s.Labelled(key.Current)
	}
	return r.n, r.err
}

// calm lets everything under way come to its end, one thing after the other, by
// free moves that are not excepted.
func (r *run) calm(except ...moveKind) *violation {
	for range 20_000 {
		moved := false
		now := r.n
		r.c.moves(&now, func(m move) {
			if moved || r.err != nil || !m.kind.free() || slices.Contains(except, m.kind) {
				return
			}
			if next, ok, err := r.c.apply(&now, m); ok {
				r.n, r.err, moved = next, err, true
			}
		})
		if !moved || r.err != nil {
			return r.err
		}
	}
	return violated("liveness", "it does not come to rest: %s", describeNode(&r.n))
}
