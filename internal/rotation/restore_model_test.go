package rotation

import (
	"time"

	"github.com/keyturn/keyturn/key"
)

// backup is what a backup of the store holds: the state and the materials.
type backup struct {
	s                 State
	stored, destroyed versions
	// code stands for it when states are compared.
	code string
}

// save takes a backup.
func (r *run) save() {
	w := r.n.w
	w.saved = nil
	code := (&encoder{plain: true}).encode(&node{s: r.n.s, w: w})
	r.n.w.saved = &backup{s: r.n.s, stored: w.stored, destroyed: w.destroyed, code: string(code)}
}

// restore loses the server and all it knew since the backup. What happened outside
// since remains, and whoever presents comes back by and by.
func (r *run) restore() {
	w, b, lost := &r.n.w, r.n.w.saved, r.n.s
	r.n.s = b.s
	r.n.s.Ended = nil
	w.destroyed = b.destroyed
	w.lanes, w.twice, w.judged, w.judgedStage = nil, Result{}, key.RotationID{}, 0
	w.detached, w.restored, w.saved = 0, true, nil
	for i := range w.parties {
		p := &w.parties[i]
		p.old, p.late = Ack{}, Ack{}
		if p.here {
			w.detached |= 1 << i
		}
	}
	for i := range w.places {
		_, w.places[i].known = r.n.s.Verifier(placeID(i))
	}
	r.send(Event{At: lost.Now, Body: Restored{Epoch: lost.Epoch + 10, Next: lost.Next + 1}})
}

// found is what the places really accept, as far as the system can say.
func (c *config) found(n *node) []Found {
	var list []Found
	for i := range n.w.places {
		w, ok := n.s.Verifier(placeID(i))
		if !ok {
			continue
		}
		for v := key.Version(1); v < n.s.Next; v++ {
			accepted := n.w.places[i].accepts.has(v)
			if _, known := n.s.Version(v); known || accepted && !c.unlisted {
				list = append(list, Found{Verifier: w.ID, Version: v, Accepted: accepted})
			}
		}
	}
	return list
}

// known are those of the versions that the state knows.
func (n *node) known(set versions) versions {
	var known versions
	for i := range n.s.Versions {
		if v := n.s.Versions[i].Number; set.has(v) {
			known = known.with(v)
		}
	}
	return known
}

// settleRestore gives the command that settles the differences.
func (r *run) settleRestore(how Resolution) {
	body := Resolve{How: how, Found: r.n.s.Recovery.Found, Plan: r.c.plan}
	body.Plan.Approvals, body.Plan.NotAfter = 0, time.Time{}
	id := r.newID()
	for range len(r.n.s.Versions) + len(r.n.s.Recovery.Found) {
		body.Retire = append(body.Retire, r.newID())
	}
	r.send(Event{Rotation: id, Body: body})
}

// restoreMoves are those that only a restore makes possible.
func (c *config) restoreMoves(n *node, try func(moveKind, int, int)) {
	if n.w.saved != nil {
		try(moveRestore, 0, 0)
	}
	if n.w.saved == nil && n.w.faults > 0 {
		try(moveSave, 0, 0)
	}
	if n.s.Standing() && n.s.Recovery.Task.Done {
		try(moveReplace, 0, 0)
		try(moveAsFound, 0, 0)
		try(moveAsRemembered, 0, 0)
		try(moveLook, 0, 0)
	}
	if current, ok := n.s.Version(n.s.Labelled(key.Current)); n.w.restored && !n.s.Standing() && (!ok || current.Foreign) {
		busy := false
		for i := range n.s.Rotations {
			busy = busy || !n.s.Rotations[i].Phase.Retiring()
		}
		if !busy {
			try(moveRenew, 0, 0)
		}
	}
}

// heard: who has come back since a restore is known to have.
func heard(n *node) *violation {
	for i := range n.w.parties {
		if !n.w.parties[i].here || n.w.detached&(1<<i) != 0 {
			continue
		}
		if p, known := n.s.Presenter(partyID(i)); known && p.Silent {
			return violated("heard", "presenter %s came back after the restore, and counts as silent", p.ID)
		}
	}
	return nil
}

// stands tests that a key that stands still does nothing.
func stands(before, after *State, effects []Effect) *violation {
	if !after.Standing() {
		return nil
	}
	for _, effect := range effects {
		if effect.Kind != Reconcile {
			return violated("standing", "%s although the store was restored", effect.ID())
		}
	}
	for _, t := range Diff(*before, *after) {
		switch t.Kind { //nolint:exhaustive // all others are wrong
		case KeyRecovery, PresenterLeft, VerifierGone:
		case RotationHold:
			// What was on hold for the sake of a verifier that has gone is so no more.
			if t.To != "" {
				return violated("standing", "%v is on hold for %s although the store was restored", t.Rotation, t.To)
			}
		default:
			return violated("standing", "%s of %s%v to %s although the store was restored", t.Kind, t.Subject, t.Version, t.To)
		}
	}
	return nil
}
