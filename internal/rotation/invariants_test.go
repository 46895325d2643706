package rotation

import (
	"errors"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/key"
)

// check tests what must hold in every state, most of it against the truth.
func (c *config) check(n *node) *violation {
	for _, rule := range []func(*node) *violation{
		c.noLockout, noLoss, revoked, shape, c.room, explained, c.reversible, c.regional, insisted, heard, patient,
	} {
		if err := rule(n); err != nil {
			return err
		}
	}
	return nil
}

// noLockout: what a presenter really uses is really accepted by every verifier
// it may reach. Contained versions and systems with a gap are excepted, and
// strangers: see party.
func (c *config) noLockout(n *node) *violation {
	if c.gap {
		return nil
	}
	for i := range n.w.parties {
		p := &n.w.parties[i]
		if !p.here || p.using == 0 || p.stranger || n.w.contained.has(p.using) {
			continue
		}
		for j := range n.w.places {
			w, ok := n.s.Verifier(placeID(j))
			if ok && w.Admitted && !n.w.places[j].accepts.has(p.using) {
				return violated("no lockout", "presenter %s uses %v, which verifier %s refuses", partyID(i), p.using, w.ID)
			}
		}
	}
	return nil
}

// noLoss: nothing is accepted that is not stored, or no more.
func noLoss(n *node) *violation {
	for i := range n.w.places {
		accepts := n.w.places[i].accepts
		if lost := accepts &^ n.w.stored; lost != 0 {
			return violated("no loss", "verifier %s accepts %v, which was never stored", placeID(i), lost)
		}
		if _, ok := n.s.Verifier(placeID(i)); ok && accepts&n.w.destroyed != 0 {
			return violated("no loss", "verifier %s accepts %v, which is destroyed", placeID(i), accepts&n.w.destroyed)
		}
	}
	for i := range n.s.Versions {
		v := &n.s.Versions[i]
		if n.w.destroyed.has(v.Number) && v.Label == key.Current {
			return violated("no loss", "%v is current and destroyed", v.Number)
		}
		if !n.w.stored.has(v.Number) {
			return violated("no loss", "%v was never stored", v.Number)
		}
	}
	return nil
}

// revoked: what counts as revoked is really refused.
func revoked(n *node) *violation {
	if n.s.Standing() {
		return nil
	}
	for i := range n.s.Versions {
		v := &n.s.Versions[i]
		if v.State != key.Suspended && v.State != key.Deactivated && !retired(&n.s, v.Number) {
			continue
		}
		for j := range n.w.places {
			w, ok := n.s.Verifier(placeID(j))
			if ok && n.w.restored {
				// What was found accepted after a restore is on its way out.
				slot, _ := w.Slot(v.Number)
				ok = slot.Acceptance == Refused
			}
			if ok && w.Admitted && n.w.places[j].accepts.has(v.Number) {
				return violated("revoked", "%v is %v, and verifier %s accepts it", v.Number, v.State, w.ID)
			}
		}
	}
	return nil
}

// retired reports whether a rotation has v in quarantine or waits for its destruction.
func retired(s *State, v key.Version) bool {
	return slices.ContainsFunc(s.Rotations, func(r Rotation) bool {
		return r.From == v && (r.Phase == Quarantine || r.Phase == Destroying)
	})
}

// patient: where nothing failed, no rotation is on hold for trouble.
func patient(n *node) *violation {
	for i := range n.s.Verifiers {
		for _, slot := range n.s.Verifiers[i].Slots {
			switch {
			case slot.Trouble != "" && slot.Waits != "":
				return violated("patience", "%s both fails and takes its time about %v", n.s.Verifiers[i].ID, slot.Version)
			case slot.Trouble != "":
				return nil
			}
		}
	}
	for i := range n.s.Rotations {
		if r := &n.s.Rotations[i]; r.Phase == Accepting && r.Hold.Reason == HoldTrouble {
			return violated("patience", "%v is on hold, and nothing failed: %s", r.ID, r.Hold.Message)
		}
	}
	return nil
}

// insisted: that a compromised version is refused never waits for a human, and
// its rotation says so while it fails.
func insisted(n *node) *violation {
	m := machine{State: n.s}
	for i := range n.s.Verifiers {
		w := &n.s.Verifiers[i]
		for _, slot := range w.Slots {
			if !slot.Failed || slot.Acceptance.accepting() || !m.compromised(slot.Version) {
				continue
			}
			if slot.RetryAt.IsZero() {
				return violated("insisted", "%s may accept the compromised %v until a human acts", w.ID, slot.Version)
			}
			if r, owned := m.owner(slot.Version); owned && r.Hold.Reason == "" {
				return violated("insisted", "nobody is told that %s may accept the compromised %v", w.ID, slot.Version)
			}
		}
	}
	return nil
}

// shape: what the state alone must satisfy.
func shape(n *node) *violation {
	s := &n.s
	open, planned := 0, 0
	for i := range s.Rotations {
		r := &s.Rotations[i]
		switch {
		case r.Phase.CutOver():
			open++
		case r.Phase == Planned:
			planned++
		}
		if r.Phase.Ended() || r.Phase == 0 {
			return violated("shape", "a rotation is open and %v", r.Phase)
		}
		if to, ok := s.Version(r.To); ok && to.State == key.Compromised && (r.Phase == Accepting || r.Phase == Presenting) {
			return violated("exposure", "compromised %v is being brought in", r.To)
		}
	}
	if open > 1 || planned > 1 {
		return violated("one cut-over", "%d cut-overs and %d plans are open", open, planned)
	}
	labels := [4]int{}
	for i := range s.Versions {
		v := &s.Versions[i]
		labels[v.Label]++
		if v.Number >= s.Next || i > 0 && s.Versions[i-1].Number >= v.Number {
			return violated("shape", "version numbers out of order")
		}
		if v.Label == key.Current && v.State != key.Active && v.State != key.Compromised {
			return violated("shape", "the current version is %v", v.State)
		}
	}
	for label := key.Pending; label <= key.Previous; label++ {
		if labels[label] > 1 {
			return violated("labels", "%d versions are %v", labels[label], label)
		}
	}
	for i := range s.Verifiers {
		for _, slot := range s.Verifiers[i].Slots {
			if v, ok := s.Version(slot.Version); ok && v.Contained && slot.Acceptance.accepting() {
				return violated("contained", "verifier %s may still accept contained %v", s.Verifiers[i].ID, v.Number)
			}
		}
	}
	if wake := s.Wake(); !wake.IsZero() && !wake.After(s.Now) {
		return violated("wake", "Wake %v is not after Now", wake)
	}
	return nil
}

// room: no verifier holds more versions than it can.
func (c *config) room(n *node) *violation {
	if c.capacity == 0 {
		return nil
	}
	for i := range n.w.places {
		w, ok := n.s.Verifier(placeID(i))
		if ok && w.Admitted && bits.OnesCount64(uint64(n.w.places[i].accepts)) > c.capacity {
			return violated("capacity", "verifier %s accepts %v", w.ID, n.w.places[i].accepts)
		}
	}
	return nil
}

// explained: every open rotation can say what it waits for.
func explained(n *node) *violation {
	for i := range n.s.Rotations {
		if r := &n.s.Rotations[i]; len(n.s.Explain(r)) == 0 {
			return violated("explain", "rotation %d in %v does not say what it waits for", r.ID[15], r.Phase)
		}
	}
	return nil
}

// reversible: until the quarantine is over, the version before can be brought
// back, unless it is compromised, was replaced since, or never was.
func (c *config) reversible(n *node) *violation {
	s := &n.s
	if s.Standing() {
		return nil
	}
	for i := range s.Rotations {
		r := &s.Rotations[i]
		from, ok := s.Version(r.From)
		if r.Phase < Accepting || r.Phase > Quarantine || !ok || from.State == key.Compromised || from.Foreign {
			continue
		}
		if r.Phase.Retiring() && (s.Labelled(key.Current) != r.To || slices.ContainsFunc(s.Rotations, func(o Rotation) bool {
			return o.Phase.CutOver() || o.Phase == Planned && o.Kind == Emergency
		})) {
			continue
		}
		after, _, err := Step(*s, Event{At: s.Now, Rotation: key.RotationID{1}, Body: Revert{Of: r.ID, Plan: c.back}})
		if w, _ := s.unproven(r.From); n.w.restored && w != nil && r.Phase <= Presenting && errors.Is(err, ErrPhase) && strings.Contains(err.Error(), w.ID+" accepts") {
			continue // it may be impossible to return to what was found refused after a restore
		}
		if err != nil {
			return violated("reversible", "rotation %d in %v: %v", r.ID[15], r.Phase, err)
		}
		cut, open := after.CutOver()
		switch {
		case r.Phase.Retiring() && !(open && cut.To == r.From || after.Labelled(key.Current) == r.From):
			return violated("reversible", "rotation %d in %v: the revert does not bring %v back", r.ID[15], r.Phase, r.From)
		case !r.Phase.Retiring() && open && cut.Phase != RollingBack:
			return violated("reversible", "rotation %d in %v does not roll back", r.ID[15], r.Phase)
		}
	}
	return nil
}

// checkStep tests what must hold of every step of the machine.
func checkStep(w *world, before, after *State, e Event, effects []Effect) *violation {
	if after.Next < before.Next || after.Epoch < before.Epoch || after.Seq != before.Seq+1 || after.Now.Before(before.Now) {
		return violated("growth", "a number went back")
	}
	if err := versionSteps(before, after, e); err != nil {
		return err
	}
	if err := stands(before, after, effects); err != nil {
		return err
	}
	transitions := Diff(*before, *after)
	for i := range before.Rotations {
		old := &before.Rotations[i]
		now := after.find(old.ID)
		if now == nil {
			return violated("diff", "rotation %d is gone without having ended", old.ID[15])
		}
		// Every phase on the way is listed: the links form a chain from old to now.
		at := old.Phase.String()
		for _, t := range transitions {
			if t.Kind == RotationPhase && t.Rotation == old.ID {
				if t.From != at {
					return violated("diff", "rotation %d goes on from %s, having reached %s", old.ID[15], t.From, at)
				}
				at = t.To
			}
		}
		if at != now.Phase.String() {
			return violated("diff", "rotation %d from %v to %v is not listed", old.ID[15], old.Phase, now.Phase)
		}
		if err := rotationStep(w, before, after, old, now, e); err != nil {
			return err
		}
	}
	return effectsAllowed(before, after, e, effects)
}

// find returns a rotation that is open or ended just now.
func (s *State) find(id key.RotationID) *Rotation {
	for i := range s.Ended {
		if s.Ended[i].ID == id {
			return &s.Ended[i]
		}
	}
	if r, ok := s.Rotation(id); ok {
		return r
	}
	return nil
}

func versionSteps(before, after *State, e Event) *violation {
	for i := range before.Versions {
		old := &before.Versions[i]
		next, state := key.Destroyed, key.Label(0)
		if now, ok := after.Version(old.Number); ok {
			next, state = now.State, now.Label
			if old.Contained && !now.Contained {
				return violated("exposure", "%v is not contained any more", old.Number)
			}
		}
		if !old.State.CanBecome(next) {
			return violated("version states", "%v from %v to %v", old.Number, old.State, next)
		}
		if state == key.Current && old.Label != key.Current && next == key.Compromised {
			// The first version of a key has none before it to return to, and nobody can
			// be told one whose material was lost.
			current, _ := before.Version(before.Labelled(key.Current))
			if _, declared := e.Body.(Declare); !declared || current != nil && !current.Foreign {
				return violated("exposure", "compromised %v became current", old.Number)
			}
		}
	}
	return nil
}

// rotationStep tests one rotation's way from one phase, or stage, to another.
func rotationStep(w *world, before, after *State, old, now *Rotation, e Event) *violation {
	moved := old.Phase != now.Phase || old.Stage != now.Stage
	if !moved {
		return nil
	}
	emergency := old.Plan.Strategy != 0 || now.Plan.Strategy != 0
	if old.Hold.Human {
		switch e.Body.(type) {
		case Resume, Cancel, Revert, Declare, Resolve, Reconciled:
		default:
			// That a version was minted is a fact; nothing follows from it yet.
			if !(old.Phase == Minting && now.Phase <= Accepting) && now.Phase != Cancelled && now.Phase != Failed && !(old.Phase == Quarantine && needsRoom(after)) {
				return violated("held", "rotation %d went from %v to %v by %T although it waits for a human", old.ID[15], old.Phase, now.Phase, e.Body)
			}
		}
	}
	if now.Phase == RollingBack && old.Phase == Presenting {
		if err := returns(after, now, e); err != nil {
			return err
		}
	}
	if now.Phase == Superseded || now.Phase == RollingBack || now.Phase == RolledBack && old.Phase != RollingBack {
		return nil
	}
	switch old.Phase { //nolint:exhaustive // the other kinds need nothing here
	case Planned:
		if now.Phase == Minting && (len(now.Approvals) < now.Plan.Approvals || after.Now.Before(now.Plan.NotBefore)) {
			return violated("planned", "rotation %d began without its approvals or before its time", old.ID[15])
		}
	case Presenting:
		if from, ok := before.Version(old.From); ok && from.Foreign {
			if _, declared := e.Body.(Declare); declared {
				return nil // there is no version to return to
			}
		}
		return stagePassed(w, before, after, old, now)
	case Draining:
		return drainPassed(w, after, old, e, emergency)
	case Revoking:
		if from, ok := before.Version(old.From); ok && from.State == key.Deactivated {
			return nil // its quarantine was over before it was found accepted after a restore
		}
		if v, ok := after.Version(old.From); now.Phase == Destroying && (!ok || v.State != key.Compromised) && old.Plan.Quarantine > 0 && !needsRoom(after) {
			return violated("quarantine", "rotation %d skips it", old.ID[15])
		}
	case Quarantine:
		v, ok := after.Version(old.From)
		early := ok && v.State == key.Compromised || needsRoom(after)
		if now.Phase == Destroying && !early && after.Now.Before(old.PhaseSince.Add(old.Plan.Quarantine)) {
			return violated("quarantine", "rotation %d ended it early", old.ID[15])
		}
	}
	return nil
}

// returns: presenters are to return only to what every verifier that they may reach is
// proven to accept.
func returns(after *State, now *Rotation, e Event) *violation {
	if _, declared := e.Body.(Declare); declared || after.Gap {
		return nil
	}
	for i := range after.Verifiers {
		w := &after.Verifiers[i]
		for j := range after.Presenters {
			if p := &after.Presenters[j]; w.Admitted && p.MayUse(now.To) && !accepts(w, now.From) {
				return violated("return", "presenter %s is to return to %v, which %s does not provenly accept", p.ID, now.From, w.ID)
			}
		}
	}
	return nil
}

// needsRoom reports whether a rotation is about to begin that may end a
// quarantine to make room.
func needsRoom(s *State) bool {
	return s.Capacity > 0 && slices.ContainsFunc(s.Rotations, func(r Rotation) bool {
		return (r.Plan.Strategy != 0 || r.Plan.EndQuarantineEarly) && (r.Phase == Planned || r.Phase == Minting)
	})
}

// stagePassed: a stage passes when all of its presenters, and all of those
// before, really use the new version, it baked, and it was judged good.
func stagePassed(w *world, before, after *State, old, now *Rotation) *violation {
	if now.Phase == Accepting || now.Phase == Presenting && now.Stage <= old.Stage {
		return nil
	}
	members := 0
	for i := range after.Presenters {
		p := &after.Presenters[i]
		if stageOf(p, old) > old.Stage && now.Phase == Presenting {
			continue
		}
		if truth := &w.parties[partyIndex(p.ID)]; truth.using != old.To {
			return violated("staged", "rotation %d left stage %d while presenter %s uses %v", old.ID[15], old.Stage, p.ID, truth.using)
		}
		if known, ok := before.Presenter(p.ID); ok && stageOf(known, old) == old.Stage {
			members++
		}
	}
	if members == 0 {
		return nil
	}
	bake := old.Plan.Stages[old.Stage].Bake
	if bake > 0 && (old.BakeSince.IsZero() || after.Now.Before(old.BakeSince.Add(bake))) {
		return violated("baked", "rotation %d left stage %d early", old.ID[15], old.Stage)
	}
	if old.Plan.Judged && (w.judged != old.ID || w.judgedStage != old.Stage) {
		return violated("judged", "rotation %d left stage %d without a good judgement", old.ID[15], old.Stage)
	}
	return nil
}

// drainPassed: the old version is revoked when a measurement has just found it
// unused for long enough, or in the cases in which the plan says otherwise; in
// no case while a presenter really uses it.
func drainPassed(w *world, after *State, old *Rotation, e Event, emergency bool) *violation {
	if after.Gap || w.contained.has(old.From) {
		return nil
	}
	if v, ok := after.Version(old.From); ok && v.Contained {
		return nil
	}
	for i := range w.parties {
		if p := &w.parties[i]; p.here && p.using == old.From && !p.stranger {
			return violated("drained", "rotation %d left draining while presenter %s uses %v", old.ID[15], partyID(i), old.From)
		}
	}
	if emergency {
		return nil
	}
	if old.Plan.RevokeAtMax && old.Plan.DrainMax > 0 && !after.Now.Before(old.PhaseSince.Add(old.Plan.DrainMax)) {
		return nil
	}
	result, ok := e.Body.(Result)
	zero := ok && result.Effect.Kind == Measure && result.Outcome == OK && result.Uses == 0
	if _, acked := e.Body.(Acked); acked || !zero {
		return violated("no data", "rotation %d left draining by %T, not by a measurement", old.ID[15], e.Body)
	}
	if w.unregistered == old.From {
		return violated("drained", "rotation %d left draining while somebody uses %v", old.ID[15], old.From)
	}
	if after.Now.Before(old.PhaseSince.Add(old.Plan.DrainMin)) {
		return violated("drained", "rotation %d left draining before the minimum grace", old.ID[15])
	}
	if quiet := old.Plan.DrainQuiet; quiet > 0 && (old.QuietSince.IsZero() || after.Now.Before(old.QuietSince.Add(quiet))) {
		return violated("drained", "rotation %d left draining before the quiet period was over", old.ID[15])
	}
	return nil
}

// effectsAllowed tests the effects of one step.
func effectsAllowed(before, after *State, e Event, effects []Effect) *violation {
	for _, effect := range effects {
		v, ok := after.Version(effect.Version)
		compromised := ok && v.State == key.Compromised
		if ok && v.Foreign && (effect.Kind == Tell || effect.Kind == Accept) {
			return violated("foreign", "%s of %v, whose material is not here", effect.Kind, v.Number)
		}
		switch effect.Kind { //nolint:exhaustive // the other kinds need nothing here
		case Accept:
			if !ok {
				return violated("no loss", "%s of a version that is not stored", effect.ID())
			}
			if compromised && askedToRefuse(before, effect.EffectRef) {
				return violated("exposure", "compromised %v is to be accepted again by %s", effect.Version, effect.Verifier)
			}
		case Tell:
			if err := tellAllowed(before, after, e, effect); err != nil {
				return err
			}
		case Destroy:
			if after.Now.Before(v.DestroyAt) {
				return violated("retention", "%v is destroyed early", effect.Version)
			}
		}
	}
	return nil
}

func askedToRefuse(s *State, ref EffectRef) bool {
	w, ok := s.Verifier(ref.Verifier)
	if !ok {
		return false
	}
	slot, ok := w.Slot(ref.Version)
	return ok && !slot.Acceptance.accepting()
}

// tellAllowed: presenters are told the current version, or, stage by stage, the
// one that is being brought in, and a compromised one only as long as there is
// no other that they use.
func tellAllowed(before, after *State, e Event, effect Effect) *violation {
	v, _ := after.Version(effect.Version)
	p, _ := after.Presenter(effect.Presenter)
	if v == nil || p.Epoch != effect.Epoch || p.Told != effect.Version {
		return violated("shape", "a telling does not fit the state")
	}
	if old, ok := before.Presenter(p.ID); ok && effect.Epoch <= old.Epoch {
		return violated("growth", "the epoch of presenter %s did not grow", p.ID)
	}
	for i := range after.Verifiers {
		if w := &after.Verifiers[i]; w.Admitted && !accepts(w, effect.Version) {
			return violated("accept before present", "presenter %s is told %v, which %s does not provenly accept", p.ID, effect.Version, w.ID)
		}
	}
	cut, open := after.CutOver()
	if v.State == key.Compromised {
		for _, other := range p.Maybe {
			if o, ok := after.Version(other); ok && o.Number != v.Number && o.State == key.Active && open && cut.To == o.Number && (cut.Phase == Presenting || cut.Phase == RollingBack) {
				return violated("exposure", "presenter %s is told compromised %v instead of %v", p.ID, v.Number, other)
			}
		}
	}
	switch {
	case v.Label == key.Current:
	case open && cut.Phase == Presenting && cut.To == effect.Version:
		old, ok := before.Presenter(p.ID)
		if stageOf(p, cut) > cut.Stage && !(ok && old.MayUse(effect.Version)) && !p.says(e, effect.Version) {
			return violated("staged", "presenter %s of stage %d is told %v in stage %d", p.ID, p.Stage, effect.Version, cut.Stage)
		}
	default:
		return violated("shape", "presenter %s is told %v, which is neither current nor being brought in", p.ID, effect.Version)
	}
	return nil
}

// says reports whether the presenter told just now that it uses v.
func (p *Presenter) says(e Event, v key.Version) bool {
	switch body := e.Body.(type) {
	case Joined:
		return body.ID == p.ID && body.Holding == v
	case Arrived:
		return slices.ContainsFunc(body.Joins, func(j Joined) bool { return j.ID == p.ID && j.Holding == v })
	case Acked:
		return slices.ContainsFunc(body.Acks, func(a Ack) bool { return a.ID == p.ID && a.Using == v })
	}
	return false
}

// quietUntil tests that nothing would happen by itself before Wake.
func quietUntil(s *State) *violation {
	at := s.Now.Add(1000 * time.Hour)
	if wake := s.Wake(); !wake.IsZero() {
		at = wake.Add(-time.Nanosecond)
	}
	after, effects, err := Step(*s, Event{At: at, Body: Tick{}})
	if err != nil || len(effects) > 0 || len(Diff(*s, after)) > 0 {
		return violated("wake", "a tick before Wake changes something: %v", Diff(*s, after))
	}
	return nil
}
