package rotation

import (
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/key"
)

// node is the machine together with the truth around it.
type node struct {
	s State
	w world
}

// moveKind is one way in which the world, or somebody in it, acts.
type moveKind uint8

const (
	// Moves that are free: what happens in a world without faults.
	moveRun     moveKind = iota + 1 // a queued effect is carried out and its result delivered
	moveExecute                     // a running effect takes effect
	moveFinish                      // a running effect's result is delivered
	moveApply                       // the latest telling arrives and is followed
	moveRetry                       // a presenter that could not follow tries again
	moveAck                         // a presenter answers
	moveLateAck                     // an answer that was on its way arrives
	moveOldTell                     // a telling that was overtaken arrives
	moveAgain                       // a result is delivered a second time
	moveTick                        // time passes, to the next moment that matters
	moveQuiet                       // the unregistered user stops
	moveApprove
	moveResume
	moveGiveUp   // an operator cancels a rotation whose stage is empty
	moveReattach // a presenter comes back after a restore
	moveForget   // an operator removes a presenter that left before a restore
	moveReplace  // an operator settles what differs after a restore
	moveRenew    // an operator begins a rotation where nothing that can be told is current

	// Faults: of all of these together a configuration allows so many.
	moveStart     // a queued effect begins to run; only then can a newer one overtake its result
	moveCrash     // the worker of a running effect dies
	moveLose      // a queued effect is carried out, and its result lost
	moveTwice     // as moveRun, but the result will come a second time
	moveTrouble   // it fails and will be tried again
	moveLater     // it takes its time, with nothing wrong
	moveBroken    // it fails for good, without effect
	moveHalf      // it fails for good, although it had its effect
	moveLie       // a verifier says that it did, and did nothing
	moveNoData    // a judgement or measurement knows nothing
	moveBad       // a judgement is bad
	moveCannot    // a telling arrives and cannot be followed
	moveSicken    // a presenter is not well with what it uses
	moveDelayAck  // an answer is sent and arrives later
	moveDelayTell // the current telling is overtaken by the next one
	moveRestore   // the server is lost, and the latest backup put back

	// Churn: of all of these together a configuration allows so many.
	moveLeave
	moveJoin      // a presenter comes that holds nothing
	moveJoinWith  // a presenter comes with a version that is accepted everywhere
	moveReconnect // a presenter comes back with what it had
	moveWipe      // a presenter comes back with nothing
	moveAdd       // a verifier comes, or comes back as it was
	moveRemove    // a verifier goes

	// Commands: of all of these together a configuration allows so many.
	moveBegin
	moveDeclare
	moveRevert
	movePause
	moveSave
	moveAsFound
	moveAsRemembered
	moveLook // an operator has the verifiers of a key that stands still asked again
	moveCancel
)

func (k moveKind) free() bool    { return k < moveStart }
func (k moveKind) fault() bool   { return k >= moveStart && k < moveLeave }
func (k moveKind) churn() bool   { return k >= moveLeave && k < moveBegin }
func (k moveKind) command() bool { return k >= moveBegin }

// move is one step of the world. What a and b number depends on the kind.
type move struct {
	kind moveKind
	a, b uint8
}

// config is one exploration.
type config struct {
	name string
	// verifiers and presenters are there from the beginning; stages gives the
	// stage of each presenter, also of those who may join later, and places counts
	// the verifiers together with those who may come later.
	verifiers  int
	places     int
	stages     []int
	presenters int
	// plan is that of scheduled rotations, back that of roll-backs after a cut-over.
	plan, back Plan
	// emergencies are the plans an operator may declare under.
	emergencies []Plan
	capacity    int
	gap         bool
	// rotated is how many rotations have gone well before the exploration begins.
	rotated int
	// unlisted: the system keeps no note of what it holds: of versions that a restore
	// lost only presenters know.
	unlisted bool
	// unregistered: somebody who is no presenter uses the version that is current
	// at the beginning.
	unregistered bool
	// faults, churn and commands are how many of each may come in all; the kinds
	// that may are listed beside them.
	faults, churn, commands uint8
	kinds                   []moveKind
	// versions is the largest number of versions; Begin is not possible after it.
	versions key.Version
	// limit ends the exploration after so many states; 0 means that it is exhaustive.
	limit int
	// liveness: whether the reachability of a good end is checked from every state.
	liveness bool

	// observe, if not nil, hears of every step of the machine.
	observe func(before, after *State, e Event)

	allowed [moveCancel + 1]bool
}

func (c *config) prepare() {
	for _, k := range c.kinds {
		c.allowed[k] = true
	}
	for k := moveRun; k < moveStart; k++ {
		c.allowed[k] = true
	}
	if c.versions == 0 {
		c.versions = 6
	}
}

// may reports whether a move of kind k is possible at all.
func (c *config) may(n *node, k moveKind) bool {
	switch {
	case !c.allowed[k]:
		return false
	case k.fault():
		return n.w.faults > 0
	case k.churn():
		return n.w.churn > 0
	case k.command():
		return n.w.commands > 0
	}
	return true
}

// moves calls yield with every move that is possible in n.
func (c *config) moves(n *node, yield func(move)) {
	try := func(k moveKind, a, b int) {
		if c.may(n, k) {
			yield(move{k, uint8(a), uint8(b)})
		}
	}
	for i := range n.w.lanes {
		c.laneMoves(n, i, try)
	}
	if n.w.twice.Effect.Kind != 0 {
		try(moveAgain, 0, 0)
	}
	for i := range n.w.parties {
		c.partyMoves(n, i, try)
	}
	for i := range n.w.places {
		switch {
		case n.w.saved != nil:
			// The configuration would be put back as well, to what is not true any more.
		case !n.w.places[i].known:
			try(moveAdd, i, 0)
		case len(n.s.Verifiers) > 1:
			try(moveRemove, i, 0)
		}
	}
	if n.w.unregistered != 0 {
		try(moveQuiet, 0, 0)
	}
	if !n.s.Wake().IsZero() {
		try(moveTick, 0, 0)
	}
	c.commandMoves(n, try)
	c.restoreMoves(n, try)
}

func (c *config) laneMoves(n *node, i int, try func(moveKind, int, int)) {
	l := &n.w.lanes[i]
	if c.unlisted && l.queued.effect.Kind == Reconcile && slices.ContainsFunc(n.s.Presenters, func(p Presenter) bool { return p.Silent }) {
		return // it does not come to an end before all have come back
	}
	if l.running.exists() {
		if l.running.executed {
			try(moveFinish, i, 0)
		} else {
			try(moveExecute, i, 0)
		}
		try(moveCrash, i, 0)
		return
	}
	try(moveRun, i, 0)
	try(moveStart, i, 0)
	try(moveLose, i, 0)
	if l.queued.effect.Kind == Reconcile {
		try(moveTrouble, i, 0)
		return
	}
	try(moveTwice, i, 0)
	try(moveBroken, i, 0)
	if n.s.Awaits(l.queued.effect.EffectRef) {
		try(moveTrouble, i, 0)
		try(moveLater, i, 0)
	}
	switch l.queued.effect.Kind {
	case Accept, Refuse:
		try(moveHalf, i, 0)
		try(moveLie, i, 0)
	case Measure:
		try(moveNoData, i, 0)
	case Judge:
		try(moveNoData, i, 0)
		try(moveBad, i, 0)
	case Preflight, Mint, ProbeAccept, ProbeRefuse, Destroy, Tell, Reconcile:
	}
}

func (c *config) partyMoves(n *node, i int, try func(moveKind, int, int)) {
	p := &n.w.parties[i]
	if !p.here {
		if _, known := n.s.Presenter(partyID(i)); known && n.w.restored {
			try(moveForget, i, 0)
		}
		if i < len(c.stages) {
			try(moveJoin, i, 0)
			for v := key.Version(1); v < n.s.Next; v++ {
				if n.acceptedEverywhere(v) {
					try(moveJoinWith, i, int(v))
				}
			}
		}
		return
	}
	if n.w.detached&(1<<i) != 0 {
		try(moveReattach, i, 0)
		if p.told != 0 && (p.using != p.told || p.sick) {
			try(moveRetry, i, 0)
		}
		return
	}
	known, ok := n.s.Presenter(partyID(i))
	if !ok {
		return
	}
	if known.Told != 0 && known.Epoch > p.seen {
		try(moveApply, i, 0)
		try(moveCannot, i, 0)
	}
	if p.told != 0 && (p.using != p.told || p.sick) {
		try(moveRetry, i, 0)
	}
	if p.seen > 0 && p.using != 0 || p.sick {
		if !p.answered(known) {
			try(moveAck, i, 0)
		}
		if p.late.Epoch == 0 {
			try(moveDelayAck, i, 0)
		}
	}
	if p.late.Epoch != 0 {
		try(moveLateAck, i, 0)
	}
	if p.old.Epoch > p.seen {
		try(moveOldTell, i, 0)
	}
	if !p.sick && p.using != 0 && p.using == p.told {
		try(moveSicken, i, 0)
	}
	if known.Told != 0 && known.Epoch > p.seen && p.old.Epoch == 0 {
		try(moveDelayTell, i, 0)
	}
	try(moveLeave, i, 0)
	try(moveReconnect, i, 0)
	try(moveWipe, i, 0)
}

// answered reports whether what the party has to say is known already, and not about
// to be contradicted by an older answer that is still on its way.
func (p *party) answered(known *Presenter) bool {
	if known.Epoch != p.seen || known.Told == 0 {
		return false
	}
	maybe := []key.Version{known.Told}
	if p.using != known.Told && p.using != 0 {
		maybe = append(maybe, p.using)
	}
	failed := p.using != known.Told || p.using != p.told || p.sick
	return known.Acked && known.Failed == failed && len(known.Also) == 0 && slices.Equal(known.Maybe, maybe) &&
		(p.late.Epoch != known.Epoch || p.late.Order < known.Heard)
}

// acceptedEverywhere reports whether a party that holds v could use it now.
func (n *node) acceptedEverywhere(v key.Version) bool {
	for i := range n.w.places {
		w, ok := n.s.Verifier(placeID(i))
		if ok && w.Admitted && !n.w.places[i].accepts.has(v) {
			return false
		}
	}
	_, there := n.s.Version(v)
	return there
}

func (c *config) commandMoves(n *node, try func(moveKind, int, int)) {
	if n.s.Next <= c.versions {
		try(moveBegin, 0, 0)
	}
	for i := range n.s.Rotations {
		r := &n.s.Rotations[i]
		if r.Phase == Planned && len(r.Approvals) < r.Plan.Approvals {
			try(moveApprove, i, 0)
		}
		if r.Hold.Human {
			try(moveResume, i, 0)
		} else {
			try(movePause, i, 0)
		}
		if r.Hold.Reason == HoldStageEmpty {
			try(moveGiveUp, i, 0)
		}
		try(moveRevert, i, 0)
		try(moveCancel, i, 0)
	}
	for i := range c.emergencies {
		for target := range targets {
			if n.s.target(target) != nil {
				try(moveDeclare, i, target)
			}
		}
	}
}

// targets is how many sets of versions can be declared compromised.
const targets = 4

// target returns the versions of a set, nil when one does not exist.
func (s *State) target(i int) []key.Version {
	current, pending := s.Labelled(key.Current), s.Labelled(key.Pending)
	switch {
	case i == 0 && current != 0:
		return []key.Version{current}
	case i == 1 && pending != 0:
		return []key.Version{pending}
	case i == 2 && current != 0 && pending != 0:
		return []key.Version{current, pending}
	case i == 3 && len(s.Versions) > 0 && s.Versions[0].Label == key.Previous:
		return []key.Version{s.Versions[0].Number}
	}
	return nil
}

func (c *config) describe(n *node, m move) string {
	laneID := func() string {
		l := &n.w.lanes[m.a]
		if l.running.exists() {
			return l.running.effect.ID()
		}
		return l.queued.effect.ID()
	}
	switch m.kind {
	case moveRun:
		return laneID() + " is carried out and its result delivered"
	case moveExecute:
		return laneID() + " takes effect"
	case moveFinish:
		return "the result of " + laneID() + " is delivered"
	case moveStart:
		return laneID() + " begins to run"
	case moveCrash:
		return "the worker of " + laneID() + " dies"
	case moveLose:
		return laneID() + " is carried out and its result lost"
	case moveTwice:
		return laneID() + " is carried out; its result will come twice"
	case moveTrouble:
		return laneID() + " fails and will be tried again"
	case moveLater:
		return laneID() + " takes its time"
	case moveBroken:
		return laneID() + " fails for good"
	case moveHalf:
		return laneID() + " fails for good, after it took effect"
	case moveLie:
		return laneID() + " is said to be done, and is not"
	case moveNoData:
		return laneID() + " has no data"
	case moveBad:
		return laneID() + " says that the stage is bad"
	case moveApply, moveRetry, moveAck, moveLateAck, moveOldTell, moveCannot, moveSicken, moveDelayAck,
		moveDelayTell, moveLeave, moveJoin, moveJoinWith, moveReconnect, moveWipe, moveReattach, moveForget:
		return fmt.Sprintf("presenter %s %s", partyID(int(m.a)), partyVerbs()[m.kind])
	case moveAgain:
		return "the result of " + n.w.twice.Effect.ID() + " is delivered again"
	case moveTick:
		return "time passes: " + n.s.Wake().Sub(n.s.Now).String()
	case moveQuiet:
		return "the unregistered user stops"
	case moveAdd:
		return "verifier " + placeID(int(m.a)) + " comes"
	case moveRemove:
		return "verifier " + placeID(int(m.a)) + " goes"
	case moveSave:
		return "a backup is taken"
	case moveRestore:
		return "the server is lost and the backup restored"
	case moveReplace, moveAsFound, moveAsRemembered:
		return "the differences are settled: " + map[moveKind]Resolution{moveReplace: Replace, moveAsFound: AsFound, moveAsRemembered: AsRemembered}[m.kind].String()
	case moveLook:
		return "an operator looks again"
	case moveBegin, moveRenew:
		return "begin"
	case moveDeclare:
		return fmt.Sprintf("declare %v compromised, %v", n.s.target(int(m.b)), c.emergencies[m.a].Strategy)
	case moveApprove, moveResume, moveRevert, movePause, moveCancel, moveGiveUp:
		r := &n.s.Rotations[m.a]
		verb := map[moveKind]string{moveApprove: "approve", moveResume: "resume", moveRevert: "revert", movePause: "pause", moveCancel: "cancel", moveGiveUp: "cancel"}[m.kind]
		return fmt.Sprintf("%s rotation %d", verb, r.ID[15])
	}
	return fmt.Sprintf("move %d", m.kind)
}

func partyVerbs() map[moveKind]string {
	return map[moveKind]string{
		moveApply: "follows the telling", moveRetry: "tries again and can follow", moveAck: "answers",
		moveLateAck: "is heard late", moveOldTell: "gets an old telling", moveCannot: "cannot follow the telling",
		moveSicken: "is not well", moveDelayAck: "answers, which will be heard late",
		moveDelayTell: "will get this telling late", moveLeave: "leaves", moveJoin: "joins",
		moveReattach: "comes back after the restore", moveForget: "is removed by an operator",
		moveJoinWith: "joins with a version it holds", moveReconnect: "comes back", moveWipe: "comes back with nothing",
	}
}
