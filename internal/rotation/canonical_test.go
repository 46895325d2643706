package rotation

import (
	"bytes"
	"slices"
	"time"

	"github.com/keyturn/keyturn/key"
)

// far is the number of minutes beyond which the past is all one; every duration
// of an explored plan is shorter.
const far = 6

// encoder writes states so that two that behave alike are written alike: times
// relative to Now and clamped, epochs by rank within a presenter, tries by
// whether they are waited for, rotations by order, verifiers and presenters
// (which differ by nothing but their names) sorted.
type encoder struct {
	buf    []byte
	blocks [][]byte
	raw    []byte
	ends   []int
	n      *node
	// plain: equal parts are told apart, since a backup is compared with them.
	plain bool
}

func (e *encoder) u8(bytes ...uint8) { e.buf = append(e.buf, bytes...) }

func (e *encoder) flags(flags ...bool) {
	var b, bit uint8 = 0, 1
	for _, f := range flags {
		if f {
			b |= bit
		}
		bit <<= 1
	}
	e.buf = append(e.buf, b)
}

func (e *encoder) at(t time.Time) {
	if t.IsZero() {
		e.u8(255)
		return
	}
	minutes := t.Sub(e.n.s.Now) / time.Minute
	e.u8(uint8(min(max(minutes, -far), 100) + far))
}

// due writes a time that matters only as far as it lies in the future.
func (e *encoder) due(t time.Time) {
	if !t.IsZero() && t.Before(e.n.s.Now) {
		t = e.n.s.Now
	}
	e.at(t)
}

func (e *encoder) task(t *Task) {
	e.u8(uint8(t.Kind))
	e.flags(t.Waiting, t.Done, t.Failed, t.Trouble != "")
}

// encode writes n into the encoder's buffer, which is valid until the next call.
func (e *encoder) encode(n *node) []byte {
	e.buf, e.n = e.buf[:0], n
	s, w := &n.s, &n.w
	e.u8(uint8(s.Next), uint8(w.stored), uint8(w.destroyed), uint8(w.contained), uint8(w.unregistered))
	e.u8(w.faults, w.churn, w.commands)
	for i := range s.Versions {
		v := &s.Versions[i]
		e.u8(uint8(v.Number), uint8(v.State), uint8(v.Label))
		e.flags(v.Contained, v.Foreign)
		e.due(v.DestroyAt)
		e.task(&v.Destroy)
		e.lane(EffectRef{Kind: Destroy, Version: v.Number})
	}
	e.u8(254)
	for i := range s.Rotations {
		e.rotation(&s.Rotations[i])
	}
	e.u8(253)
	e.sorted(len(w.places), e.place)
	e.sorted(len(w.parties), e.party)
	if ref := w.twice.Effect; ref.Kind != 0 && ref.Verifier == "" {
		e.twice(ref)
	}
	e.recovery()
	return e.buf
}

// recovery writes what only a restore brings about.
func (e *encoder) recovery() {
	s, w := &e.n.s, &e.n.w
	e.flags(s.Standing(), s.Recovery.Task.Waiting, s.Recovery.Task.Done, s.Recovery.Task.Trouble != "", w.restored)
	if s.Standing() {
		e.u8(uint8(s.Recovery.Next), uint8(w.detached))
		e.lane(EffectRef{Kind: Reconcile})
	}
	if w.saved == nil {
		return
	}
	e.at(w.saved.s.Now)
	e.buf = append(e.buf, w.saved.code...)
}

// sorted writes the blocks of n parts in the order of their bytes.
func (e *encoder) sorted(n int, part func(int)) {
	start := len(e.buf)
	e.ends = e.ends[:0]
	for i := range n {
		part(i)
		e.ends = append(e.ends, len(e.buf))
	}
	e.blocks = e.blocks[:0]
	e.raw = append(e.raw[:0], e.buf[start:]...)
	from := 0
	for i := range n {
		e.blocks = append(e.blocks, e.raw[from:e.ends[i]-start])
		from = e.ends[i] - start
	}
	if !e.plain && e.n.w.saved == nil {
		slices.SortFunc(e.blocks, bytes.Compare)
	}
	e.buf = e.buf[:start]
	for _, b := range e.blocks {
		e.buf = append(e.buf, b...)
	}
}

// order is the place of a rotation among the open ones, counted from 1.
func (e *encoder) order(id key.RotationID) uint8 {
	for i := range e.n.s.Rotations {
		if e.n.s.Rotations[i].ID == id {
			return uint8(i + 1)
		}
	}
	return 0
}

func (e *encoder) rotation(r *Rotation) {
	e.u8(252, uint8(r.Kind), uint8(r.Phase), uint8(r.From), uint8(r.To), uint8(r.Stage), uint8(r.Exit), uint8(len(r.Approvals)))
	e.u8(uint8(r.Plan.Strategy), uint8(r.Plan.Grace/time.Minute), uint8(len(r.Plan.Stages)), uint8(r.Plan.DrainMin/time.Minute))
	e.times(r)
	e.task(&r.Task)
	e.flags(r.Presented, r.Hold.Human, !r.RecoveredAt.IsZero(), e.n.w.judged == r.ID && e.n.w.judgedStage == r.Stage)
	e.u8(uint8(len(r.Hold.Reason)))
	if r.Hold.Reason != "" {
		e.u8(r.Hold.Reason[0], r.Hold.Reason[len(r.Hold.Reason)-1])
	}
	e.lane(EffectRef{Kind: Measure, Rotation: r.ID})
}

// times writes the times that matter in r's phase.
func (e *encoder) times(r *Rotation) {
	if r.Phase == Draining || r.Phase == Quarantine {
		e.at(r.PhaseSince)
	}
	if r.Phase == Presenting || r.Phase == RollingBack {
		e.at(r.StageSince)
	}
	if r.Phase == Presenting {
		e.at(r.BakeSince)
		e.due(r.JudgeAt)
	}
	if r.Phase == Draining || r.Phase == RollingBack {
		e.at(r.QuietSince)
		e.due(r.MeasureAt)
	}
}

// lane writes what is under way in the lane of ref.
func (e *encoder) lane(ref EffectRef) {
	for i := range e.n.w.lanes {
		l := &e.n.w.lanes[i]
		if sameLane(l.ref(), ref) {
			e.u8(251)
			e.job(&l.running)
			e.job(&l.queued)
		}
	}
}

func (e *encoder) job(j *job) {
	if !j.exists() {
		e.u8(0)
		return
	}
	e.u8(uint8(j.effect.Kind), uint8(j.uses), uint8(j.effect.Stage))
	e.flags(j.executed, j.good, e.n.s.Awaits(j.effect.EffectRef))
}

func (e *encoder) twice(ref EffectRef) {
	e.u8(249, uint8(ref.Kind), uint8(ref.Version), uint8(ref.Try), e.order(ref.Rotation))
}

func (e *encoder) place(i int) {
	p := &e.n.w.places[i]
	e.flags(p.known)
	e.u8(uint8(p.accepts), uint8(p.proven))
	w, ok := e.n.s.Verifier(placeID(i))
	if !ok {
		w = &Verifier{}
	}
	var found versions
	for _, f := range e.n.s.Recovery.Found {
		if f.Verifier == placeID(i) && f.Accepted {
			found = found.with(f.Version)
		}
	}
	e.u8(uint8(found))
	e.flags(w.Admitted)
	for v := key.Version(1); v < e.n.s.Next; v++ {
		slot, ok := w.Slot(v)
		if ok {
			e.u8(uint8(v), uint8(slot.Acceptance), uint8(slot.Contradictions))
			e.flags(slot.Failed, slot.Trouble != "", slot.Waits != "", slot.Insisted != "")
			e.due(slot.RetryAt)
		}
		e.lane(EffectRef{Kind: Accept, Version: v, Verifier: placeID(i)})
	}
	if ref := e.n.w.twice.Effect; ref.Verifier == placeID(i) {
		e.twice(ref)
	}
	e.u8(250)
}

func (e *encoder) party(i int) {
	p := &e.n.w.parties[i]
	known, ok := e.n.s.Presenter(partyID(i))
	if !ok {
		known = &Presenter{}
	}
	e.u8(uint8(known.Stage), uint8(known.Told))
	e.flags(ok, known.Acked, known.Failed, p.here, p.sick, p.stranger, known.Silent, e.n.w.detached&(1<<i) != 0)
	var maybe versions
	for _, v := range known.Maybe {
		maybe = maybe.with(v)
	}
	var also versions
	for _, v := range known.Also {
		also = also.with(v)
	}
	e.u8(uint8(maybe), uint8(also), uint8(p.using), uint8(p.told))
	epochs := []uint64{0, known.Epoch, p.seen, p.old.Epoch, p.late.Epoch}
	if e.n.s.Floor > 0 {
		epochs = append(epochs, e.n.s.Floor)
	}
	if e.n.w.saved != nil {
		if then, ok := e.n.w.saved.s.Presenter(partyID(i)); ok {
			epochs = append(epochs, then.Epoch)
		}
	}
	ranks := slices.Clone(epochs)
	slices.Sort(ranks)
	ranks = slices.Compact(ranks)
	for _, epoch := range epochs[1:] {
		e.u8(uint8(slices.Index(ranks, epoch)))
	}
	e.u8(uint8(p.old.Using), uint8(p.late.Using))
	late := p.late.Epoch != 0
	e.flags(p.late.OK, late && p.late.Order < known.Heard, late && p.late.Epoch == p.heardOf && p.late.Order < p.heard)
}
