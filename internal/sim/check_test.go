package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// committed folds what a transaction wrote, and checks the step it took.
func (w *world) committed(t *witness) {
	w.dirty = true
	if t.fenced != nil {
		w.violate("fenced", "a transaction was committed although its lease was lost: %v", t.fenced)
	}
	for _, job := range t.claimed {
		if w.fences[job.Fence] {
			w.violate("fenced", "fence %d was given out twice, now to %s", job.Fence, job.ID)
		}
		w.fences[job.Fence] = true
	}
	transitions := 0
	for _, event := range t.events {
		transitions += w.fold(event)
	}
	if t.entries < transitions {
		w.violate("audited", "a transaction with %d transitions enters %d of them into the audit log", transitions, t.entries)
	}
}

// fold applies one committed event to the truth and returns how many
// transitions it is.
func (w *world) fold(event store.Event) int {
	k := w.key(event.Key)
	body, err := rotation.UnmarshalBody(event.Type, event.Body)
	if err != nil {
		w.violate("history", "event %d of %s: %v", event.Seq, k.name, err)
		return 0
	}
	before := k.state
	after, _, err := rotation.Step(before, rotation.Event{At: event.At, Rotation: event.Rotation, Body: body})
	if err != nil || after.Seq != event.Seq {
		w.violate("history", "event %d of %s does not follow event %d: %v", event.Seq, k.name, before.Seq, err)
		return 0
	}
	k.state = after
	k.cameLate(&before)
	k.unmarked = k.unmarked && !after.Standing()
	moves := rotation.Diff(before, after)
	w.tale = append(w.tale, line{at: time.Since(w.began), step: w.step, what: string(k.name) + " " + event.Type, moves: moves, seq: event.Seq})
	for i := range after.Versions {
		if v := &after.Versions[i]; v.Contained {
			k.contained[v.Number] = true
		}
	}
	for _, m := range moves {
		if m.Kind == rotation.RotationBegun {
			w.rotations++
			k.begun(m.Rotation)
		}
	}
	switch body := body.(type) {
	case rotation.Acked:
		k.checkAnswers()
	case rotation.Reconciled:
		for _, f := range body.Found {
			k.asked[f.Verifier] = true
		}
	}
	for i := range before.Rotations {
		k.checkPassage(&before.Rotations[i], &after)
	}
	for _, v := range before.Versions {
		now, there := after.Version(v.Number)
		if there && now.Label == key.Current && v.Label != key.Current && v.State == key.Compromised && before.Labelled(key.Current) != 0 {
			w.violate("exposure", "compromised %v of %s became current", v.Number, k.name)
		}
		if !there {
			k.checkDestroyed(v.Number)
		}
	}
	return len(moves)
}

// checkAnswers: what counts as a presenter's answer is the latest that it gave to its
// telling, of those that have arrived. A good report takes a bad answer back.
func (k *keyTruth) checkAnswers() {
	for i := range k.state.Presenters {
		p := &k.state.Presenters[i]
		a := k.w.agent(p.ID)
		if a == nil || !p.Acked {
			continue
		}
		a.mu.Lock()
		said, answered := a.said[telling{k.name, p.Epoch}]
		well := a.well[k.name]
		a.mu.Unlock()
		switch {
		case !answered:
			k.w.violate("answers", "%s counts as having answered to epoch %d of %s, and has not", p.ID, p.Epoch, k.name)
		case p.Failed != said.OK, p.Heard < said.Order, !p.Failed && well == p.Told:
			// It is taken, or on its way, or was taken back by a good report.
		default:
			k.w.violate("answers", "%s answered %v to epoch %d of %s, and counts as if it had not", p.ID, said.OK, p.Epoch, k.name)
		}
	}
}

// begun checks that one request leads to one rotation.
func (k *keyTruth) begun(id key.RotationID) {
	r, ok := k.state.Rotation(id)
	if !ok || !strings.Contains(r.Reason, "'s request ") {
		return
	}
	if other, known := k.requests[r.Reason]; known && other != id {
		k.w.violate("idempotent", "%s led to rotations %v and %v of %s", r.Reason, other, id, k.name)
	}
	k.requests[r.Reason] = id
}

// checkPassage compares a rotation's way out of a phase with the truth.
func (k *keyTruth) checkPassage(old *rotation.Rotation, after *rotation.State) {
	now, open := after.Rotation(old.ID)
	if !open {
		for i := range after.Ended {
			if after.Ended[i].ID == old.ID {
				now = &after.Ended[i]
			}
		}
		if now == nil {
			k.w.violate("history", "rotation %v of %s is gone", old.ID, k.name)
			return
		}
	}
	if old.Phase == rotation.Draining && now.Phase == rotation.Revoking && k.kind != oneUser && !k.contained[old.From] {
		if last := k.measured[old.From]; now.Plan.Strategy == 0 && (!last.answered || last.sessions > 0) {
			k.w.violate("no data", "%v of %s is revoked although its use was last measured as %+v", old.From, k.name, last)
		}
		for _, a := range k.w.agents {
			if a.uses(k.name).version == old.From && !a.stranger[k.name] {
				k.w.violate("drained", "%v of %s is revoked while %s uses it", old.From, k.name, a.id)
			}
		}
	}
	passed := old.Phase == rotation.Presenting && (now.Phase.Retiring() || now.Phase == rotation.Done || now.Phase == rotation.Presenting && now.Stage > old.Stage)
	if to, ok := after.Version(old.To); passed && ok && to.State == key.Compromised {
		passed = false // there was none to return to: it counts as current, to be replaced
	}
	if passed {
		for i := range after.Presenters {
			p := &after.Presenters[i]
			if now.Phase == rotation.Presenting && min(p.Stage, len(old.Plan.Stages)-1) > old.Stage {
				continue
			}
			a := k.w.agent(p.ID)
			if a == nil || a.vanished || a.back[k.name] {
				continue
			}
			if uses := a.uses(k.name).version; uses != old.To {
				k.w.violate("staged", "a stage of %v of %s has passed while %s uses %v", old.To, k.name, a.id, uses)
			}
			if old.Plan.Judged && a.reported[k.name] < old.To {
				k.w.violate("no data", "a stage of %v of %s has passed although %s never reported on it", old.To, k.name, a.id)
			}
		}
	}
}

func (w *world) agent(id string) *agent {
	for _, a := range w.agents {
		if a.id == id {
			return a
		}
	}
	return nil
}

// cameLate notes the endpoints that come back when it has been decided already that a
// version is destroyed that they accept: they are not asked to refuse it any more.
func (k *keyTruth) cameLate(before *rotation.State) {
	for i := range before.Versions {
		v := &before.Versions[i]
		if !v.Destroy.Waiting {
			continue
		}
		for j := range k.state.Verifiers {
			id := k.state.Verifiers[j].ID
			if _, there := before.Verifier(id); there || !k.endpoint(id).holds(v.Number) {
				continue
			}
			if k.left[id] == nil {
				k.left[id] = map[key.Version]bool{}
			}
			k.left[id][v.Number] = true
		}
	}
}

// checkDestroyed: what is destroyed is accepted nowhere.
func (k *keyTruth) checkDestroyed(v key.Version) {
	for _, e := range k.endpoints {
		if !e.holds(v) {
			continue
		}
		if verifier, ok := k.state.Verifier(e.name); ok && verifier.Admitted && !k.left[e.name][v] {
			k.w.violate("no loss", "%v of %s is destroyed while %s accepts it", v, k.name, e.name)
		}
		if k.left[e.name] == nil {
			k.left[e.name] = map[key.Version]bool{}
		}
		k.left[e.name][v] = true
	}
}

// holds reports whether the endpoint accepts the version under some password.
func (e *endpoint) holds(v key.Version) bool {
	for _, a := range e.slots {
		if a.version == v {
			return true
		}
	}
	return false
}

// effect checks what reaches a system: it was decided and leased before.
func (w *world) effect(k *keyTruth, e *endpoint, call provider.Call, what string, v key.Version) {
	if !w.fences[call.Fence] {
		w.violate("intent", "%s %v of %s reached %s under fence %d, which no committed lease has", what, v, k.name, e.name, call.Fence)
	}
	if k.state.Standing() && call.Fence > w.fenceThen {
		w.violate("standing", "%s %v of %s reached %s although the key stands still after a restore", what, v, k.name, e.name)
	}
}

// check compares the truth with the invariants of the protocol.
func (w *world) check() {
	if !w.dirty {
		return
	}
	w.dirty = false
	for _, k := range w.keys {
		k.welcome()
		if !k.unmarked {
			k.noLockout()
			k.vouched()
			k.revoked()
		}
		k.noLoss()
		k.oneCutOver()
	}
	w.unsettledYet = true
}

// welcome ends the exception for endpoints that a restore brought back.
func (k *keyTruth) welcome() {
	for name, floor := range k.returned {
		e := k.endpoint(name)
		_, there := k.state.Verifier(name)
		late := slices.ContainsFunc(k.w.agents, func(a *agent) bool {
			h := a.uses(k.name)
			return h.version != 0 && !a.stranger[k.name] && !e.accepts(h.version, h.password)
		})
		if !there || k.state.Floor > floor && !k.state.Standing() && !late {
			delete(k.returned, name)
		}
	}
}

// noLockout: whatever a live presenter uses is accepted by every verifier that
// it may reach. Excepted are systems that cannot hold two versions, versions
// that were contained, and strangers.
func (k *keyTruth) noLockout() {
	if k.kind == oneUser {
		return
	}
	for _, a := range k.w.agents {
		h := a.uses(k.name)
		if h.version == 0 || a.stranger[k.name] || k.contained[h.version] {
			continue
		}
		if _, registered := k.state.Presenter(a.id); !registered && (!a.owed(telling{k.name, h.epoch}) || a.via.party.stranger[k.name]) {
			a.stranger[k.name] = true
			continue
		}
		for i := range k.state.Verifiers {
			verifier := &k.state.Verifiers[i]
			e := k.endpoint(verifier.ID)
			if k.lost[h.version] && !e.once[h.version] {
				continue // no endpoint that joins after a restore can be made to accept it
			}
			if _, back := k.returned[e.name]; verifier.Admitted && !back && !e.accepts(h.version, h.password) {
				k.w.violate("no lockout", "%s uses %v of %s, which %s refuses", a.id, h.version, k.name, e.name)
			}
		}
	}
}

// noLoss: what is accepted anywhere is stored.
func (k *keyTruth) noLoss() {
	for i := range k.state.Verifiers {
		verifier := &k.state.Verifiers[i]
		e := k.endpoint(verifier.ID)
		for _, a := range e.slots {
			if !verifier.Admitted || k.left[e.name][a.version] || k.lost[a.version] {
				continue
			}
			if _, ok := k.state.Version(a.version); !ok || !k.stored(a.version) {
				k.w.violate("no loss", "%s accepts %v of %s, which is stored nowhere", e.name, a.version, k.name)
			}
		}
	}
}

// stored reports whether the material of a version is in the store.
func (k *keyTruth) stored(v key.Version) bool {
	return k.w.store.View(k.w.ctx, func(tx store.Tx) error {
		_, err := tx.Materials.Get(k.w.ctx, k.name, v)
		return err
	}) == nil
}

// revoked: what counts as revoked is refused by every verifier that presenters
// may reach.
func (k *keyTruth) revoked() {
	if k.state.Standing() {
		return // what was revoked before the restore is being found out
	}
	for i := range k.state.Versions {
		v := &k.state.Versions[i]
		retired := slices.ContainsFunc(k.state.Rotations, func(r rotation.Rotation) bool {
			return r.From == v.Number && (r.Phase == rotation.Quarantine || r.Phase == rotation.Destroying)
		})
		if v.State != key.Suspended && v.State != key.Deactivated && !retired {
			continue
		}
		for j := range k.state.Verifiers {
			verifier := &k.state.Verifiers[j]
			slot, asked := verifier.Slot(v.Number)
			if !verifier.Admitted || !asked || slot.Acceptance != rotation.Refused {
				continue
			}
			// A replica may show for a moment what its primary has taken back since.
			if e := k.endpoint(verifier.ID); e.behind == 0 && e.holds(v.Number) {
				k.w.violate("revoked", "%v of %s is %v, and %s accepts it", v.Number, k.name, v.State, verifier.ID)
			}
		}
	}
}

func (k *keyTruth) oneCutOver() {
	open := 0
	for i := range k.state.Rotations {
		if k.state.Rotations[i].Phase.CutOver() {
			open++
		}
	}
	if open > 1 {
		k.w.violate("one cut-over", "%d cut-overs of %s are open", open, k.name)
	}
}

// dirtied reports whether something changed since the last call.
func (w *world) dirtied() bool {
	was := w.unsettledYet
	w.unsettledYet = false
	return was
}

// settled reports whether every rotation has ended or waits for a human, and
// every presenter uses the current version.
func (w *world) settled() bool { return w.unsettled() == "" }

// unsettled says what is not yet as it should be at the end.
func (w *world) unsettled() string {
	for _, n := range w.nodes {
		if n.up() == nil {
			return "server " + n.name + " does not run"
		}
	}
	for _, k := range w.keys {
		if k.state.Standing() {
			if len(k.state.Differences()) > 0 {
				continue // an operator settles them
			}
			return fmt.Sprintf("%s stands still: %s", k.name, k.state.WhyStanding())
		}
		if k.full() != 0 {
			continue // an operator makes room
		}
		forHuman := slices.ContainsFunc(k.state.Rotations, waitsForHuman)
		for i := range k.state.Rotations {
			r := &k.state.Rotations[i]
			if waitsForHuman(*r) || forHuman && r.Phase == rotation.Planned {
				continue
			}
			return fmt.Sprintf("rotation %s of %s is %v: %+v", short(r.ID), k.name, r.Phase, k.state.Explain(r))
		}
		if len(k.state.Rotations) > 0 {
			continue
		}
		current := k.state.Labelled(key.Current)
		for _, a := range w.agents {
			if a.vanished || !a.presents(k.name) || current == 0 {
				continue
			}
			if h := a.uses(k.name); h.version != current {
				return fmt.Sprintf("%s uses %v of %s, current is %v", a.id, h.version, k.name, current)
			}
		}
		for i := range k.state.Verifiers {
			if verifier := &k.state.Verifiers[i]; !verifier.Admitted && current != 0 {
				return fmt.Sprintf("verifier %s of %s is not admitted: %+v", verifier.ID, k.name, verifier.Slots)
			}
			if e := k.endpoint(k.state.Verifiers[i].ID); e.behind > 0 {
				return fmt.Sprintf("%s of %s is %d changes behind", e.name, k.name, e.behind)
			}
		}
	}
	return ""
}

// full returns the version that a human contains where all places of a system are
// taken and the material of the current version was lost with a restore: nobody can
// be given another one until one is refused. It is the one that the fewest use.
func (k *keyTruth) full() key.Version {
	held := slices.ContainsFunc(k.state.Rotations, func(r rotation.Rotation) bool { return r.Hold.Reason == rotation.HoldNoRoom })
	live := k.state.Live()
	current, ok := k.state.Version(k.state.Labelled(key.Current))
	if !held || !ok || !current.Foreign || current.Contained {
		return 0
	}
	users := map[key.Version]int{}
	for _, v := range live {
		if version, ok := k.state.Version(v); ok && version.Contained {
			return 0 // it is being refused
		}
		for _, a := range k.w.agents {
			if a.uses(k.name).version == v {
				users[v]++
			}
		}
	}
	return slices.MinFunc(live, func(a, b key.Version) int { return users[a] - users[b] })
}

func waitsForHuman(r rotation.Rotation) bool {
	return r.Hold.Human || r.Phase == rotation.Planned && len(r.Approvals) < r.Plan.Approvals
}

// resumeHeld has an operator end what waits for a human, and reports whether
// anything does.
func (w *world) resumeHeld() bool {
	held := false
	for _, k := range w.keys {
		if k.state.Standing() {
			w.ops.reconcile("dave", w.anyNode(), k, rotation.Replace)
			held = true
			continue
		}
		if v := k.full(); v != 0 {
			w.ops.contain("dave", w.anyNode(), k, v)
			held = true
			continue
		}
		for i := range k.state.Rotations {
			r := &k.state.Rotations[i]
			if !waitsForHuman(*r) {
				continue
			}
			if r.Hold.Human && r.Hold.Reason == "" {
				w.violate("reason", "rotation %v of %s is on hold without a reason", r.ID, k.name)
			}
			steer := engine.SteerApprove
			if r.Hold.Human {
				steer = engine.SteerResume
			}
			w.ops.steer("dave", w.anyNode(), r.ID, steer)
			held = true
		}
	}
	return held
}

// finalChecks: the audit log is complete and verifies, and nobody is held.
func (w *world) finalChecks() {
	l := w.nodes[0].up()
	w.mu.Lock()
	w.over = true // nothing moves any more; what follows reads only
	w.mu.Unlock()
	checks, err := l.engine.Doctor(w.ctx)
	if err != nil {
		w.violate("doctor", "%v", err)
	}
	for _, c := range checks {
		if c.Status != "ok" && !(c.Status == "no-data" && (w.rotations == 0 || w.faults[restore] > 0)) {
			w.violate("doctor", "%s: %s: %s", c.Name, c.Status, c.Message)
		}
	}
}
