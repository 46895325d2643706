package rotation

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"strings"
	"time"

	"github.com/keyturn/keyturn/key"
)

// explorer walks every state that a configuration can reach, breadth first, so
// that the trace to a violation is a shortest one.
type explorer struct {
	c       *config
	encoder encoder
	seeds   [2]maphash.Seed
	ids     map[[2]uint64]uint32
	// parents and moves lead back from a state to the one it was reached from.
	parents []uint32
	moves   []move
	// edges of free moves, as pairs; only kept for the check of liveness.
	edges [][2]uint32
	good  []uint32
	// seen, if not nil, hears of every step; stop, if not nil, of whether to give up.
	seen func(before, after *node, m move)
	stop func() bool
}

// found is a violation with its trace.
type found struct {
	*violation
	trace []move
}

func newExplorer(c *config) *explorer {
	c.prepare()
	return &explorer{
		c: c, ids: map[[2]uint64]uint32{},
		seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
	}
}

// id numbers the state, and reports whether it is new.
func (x *explorer) id(n *node, from uint32, m move) (uint32, bool) {
	buf := x.encoder.encode(n)
	hash := [2]uint64{maphash.Bytes(x.seeds[0], buf), maphash.Bytes(x.seeds[1], buf)}
	if id, ok := x.ids[hash]; ok {
		return id, false
	}
	id := uint32(len(x.parents))
	x.ids[hash] = id
	x.parents = append(x.parents, from)
	x.moves = append(x.moves, m)
	return id, true
}

// pending is a state whose moves are still to be made.
type pending struct {
	n  node
	id uint32
}

// explore returns the first violation, nil when there is none.
func (x *explorer) explore() *found {
	first, err := x.c.start()
	if err != nil {
		return &found{violation: err}
	}
	id, _ := x.id(&first, 0, move{})
	frontier := []pending{{first, id}}
	if err := x.visit(&first, id); err != nil {
		return &found{violation: err}
	}
	for len(frontier) > 0 {
		var next []pending
		for i := range frontier {
			at := frontier[i]
			frontier[i] = pending{}
			var err *violation
			var last move
			x.c.moves(&at.n, func(m move) {
				if err != nil {
					return
				}
				after, ok, problem := x.c.apply(&at.n, m)
				last = m
				if problem != nil {
					err = problem
					return
				}
				if !ok {
					return
				}
				to, fresh := x.id(&after, at.id, m)
				if x.c.liveness && m.kind.free() && to != at.id {
					x.edges = append(x.edges, [2]uint32{at.id, to})
				}
				if x.seen != nil {
					x.seen(&at.n, &after, m)
				}
				if fresh {
					if err = x.visit(&after, to); err == nil {
						next = append(next, pending{after, to})
					}
				}
			})
			if err != nil {
				return &found{err, append(x.trace(at.id), last)}
			}
			if x.c.limit > 0 && len(x.parents) >= x.c.limit || x.stop != nil && i%1024 == 0 && x.stop() {
				return nil
			}
		}
		frontier = next
	}
	if x.c.liveness {
		return x.live()
	}
	return nil
}

// visit checks a new state.
func (x *explorer) visit(n *node, id uint32) *violation {
	if x.c.liveness && x.c.good(n) {
		x.good = append(x.good, id)
	}
	if err := x.c.check(n); err != nil {
		return err
	}
	if id%256 == 0 {
		return sampled(n)
	}
	return nil
}

// trace returns the moves that lead to a state.
func (x *explorer) trace(id uint32) []move {
	var back []move
	for id != 0 {
		back = append(back, x.moves[id])
		id = x.parents[id]
	}
	for i, j := 0, len(back)-1; i < j; i, j = i+1, j-1 {
		back[i], back[j] = back[j], back[i]
	}
	return back
}

// good reports whether everything came to its end as it should: no rotation is
// open, nothing is under way, every presenter uses the current version and every
// verifier accepts that one and no other.
func (c *config) good(n *node) bool {
	s, w := &n.s, &n.w
	gone := w.destroyed
	if c.unlisted && w.restored {
		gone = ^n.known(^versions(0)) // nobody can refuse what nobody knows
	}
	current := s.Labelled(key.Current)
	if len(s.Rotations) > 0 || len(s.Versions) > 1 || len(w.lanes) > 0 {
		return false
	}
	for i := range w.parties {
		if p := &w.parties[i]; p.here && (p.using != current || p.sick || current != 0 && !known(s, i).Uses(current)) {
			return false
		}
	}
	for i := range w.places {
		v, ok := s.Verifier(placeID(i))
		if ok && (!v.Admitted || w.places[i].accepts&^gone != versions(0).with(current)&^1) {
			return false
		}
	}
	return true
}

func known(s *State, i int) *Presenter {
	p, ok := s.Presenter(partyID(i))
	if !ok {
		return &Presenter{}
	}
	return p
}

// live checks that a good end can be reached from every state by free moves
// alone: after the last fault, the last change of the fleet and the last command.
func (x *explorer) live() *found {
	count := make([]uint32, len(x.parents)+1)
	for _, e := range x.edges {
		count[e[1]+1]++
	}
	for i := 1; i < len(count); i++ {
		count[i] += count[i-1]
	}
	back := make([]uint32, len(x.edges))
	fill := append([]uint32(nil), count...)
	for _, e := range x.edges {
		back[fill[e[1]]] = e[0]
		fill[e[1]]++
	}
	reached := make([]bool, len(x.parents))
	queue := append([]uint32(nil), x.good...)
	for _, id := range queue {
		reached[id] = true
	}
	for len(queue) > 0 {
		id := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, from := range back[count[id]:count[id+1]] {
			if !reached[from] {
				reached[from] = true
				queue = append(queue, from)
			}
		}
	}
	for id, ok := range reached {
		if !ok {
			err := violated("liveness", "no good end can be reached any more (%d good ends in %d states)", len(x.good), len(x.parents))
			return &found{err, x.trace(uint32(id))}
		}
	}
	return nil
}

// tell writes a trace for people.
func (f *found) tell(c *config) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: violated: %v\n", c.name, f.violation)
	n, err := c.start()
	if err != nil {
		return b.String()
	}
	fmt.Fprintf(&b, "   0 %s\n", describeNode(&n))
	for i, m := range f.trace {
		fmt.Fprintf(&b, "%4d %s\n", i+1, c.describe(&n, m))
		n, _, _ = c.apply(&n, m)
		fmt.Fprintf(&b, "     %s\n", describeNode(&n))
	}
	return b.String()
}

func describeNode(n *node) string {
	var b strings.Builder
	for i := range n.s.Rotations {
		r := &n.s.Rotations[i]
		fmt.Fprintf(&b, "[%d %v %v %v→%v stage %d %s] ", r.ID[15], r.Kind, r.Phase, r.From, r.To, r.Stage, r.Hold.Reason)
	}
	for i := range n.s.Versions {
		v := &n.s.Versions[i]
		fmt.Fprintf(&b, "%v %v %v", v.Number, v.State, v.Label)
		if v.Contained {
			b.WriteString(" contained")
		}
		for j := range n.s.Verifiers {
			if slot, ok := n.s.Verifiers[j].Slot(v.Number); ok {
				fmt.Fprintf(&b, " %s:%v", n.s.Verifiers[j].ID, slot.Acceptance)
			}
		}
		b.WriteString("; ")
	}
	for i := range n.s.Presenters {
		p := &n.s.Presenters[i]
		fmt.Fprintf(&b, "%s told %v/%d acked %v failed %v maybe %v; ", p.ID, p.Told, p.Epoch, p.Acked, p.Failed, p.Maybe)
	}
	return b.String() + "| truth:" + n.w.String()
}

// sampled tests what is too slow to be tested in every state: that nothing
// happens before Wake, that Step leaves its argument alone, and that a state that
// was written and read behaves like the one it was.
func sampled(n *node) *violation {
	if err := quietUntil(&n.s); err != nil {
		return err
	}
	written, err := json.Marshal(n.s)
	if err != nil {
		return violated("encoding", "%v", err)
	}
	var read State
	if err := json.Unmarshal(written, &read); err != nil {
		return violated("encoding", "%v", err)
	}
	for _, e := range probes(&n.s) {
		after, effects, stepErr := Step(n.s, e)
		again, sameEffects, sameErr := Step(read, e)
		left, _ := json.Marshal(after)
		right, _ := json.Marshal(again)
		if !bytes.Equal(left, right) || len(effects) != len(sameEffects) || (stepErr == nil) != (sameErr == nil) {
			return violated("encoding", "%T leads elsewhere after the state was written and read", e.Body)
		}
		if stepErr != nil && !bytes.Equal(left, written) {
			return violated("purity", "%T fails and changes the state", e.Body)
		}
	}
	if now, _ := json.Marshal(n.s); !bytes.Equal(now, written) {
		return violated("purity", "Step changed its argument")
	}
	return nil
}

// probes are events of many kinds that fit s more or less.
func probes(s *State) []Event {
	at := s.Now.Add(time.Minute)
	events := []Event{
		{At: at, Body: Tick{}},
		{At: at, Body: Configured{Verifiers: []VerifierRef{{ID: "a"}, {ID: "z"}}}},
		{At: at, Body: Joined{ID: "new", Holding: s.Labelled(key.Current)}},
		{At: at, Body: Left{ID: "nobody"}},
		{At: at, Rotation: key.RotationID{2}, Body: Begin{Kind: Manual, Plan: quickPlan()}},
	}
	for i := range s.Presenters {
		p := &s.Presenters[i]
		events = append(events, Event{At: at, Body: Acked{Acks: []Ack{{ID: p.ID, Epoch: p.Epoch, OK: true, Using: p.Told}}}})
	}
	for i := range s.Rotations {
		id := s.Rotations[i].ID
		events = append(events, Event{At: at, Rotation: id, Body: Pause{}}, Event{At: at, Rotation: id, Body: Cancel{}})
	}
	for i := range s.Versions {
		body := Declare{Compromised: []key.Version{s.Versions[i].Number}, Plan: emergencyPlans()[i%2], Insist: true}
		events = append(events, Event{At: at, Rotation: key.RotationID{3}, Body: body})
	}
	return events
}
