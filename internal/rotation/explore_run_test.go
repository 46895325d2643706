package rotation

import (
	"cmp"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"
)

// The moves that a configuration may allow beside the free ones.
func effectFaults() []moveKind {
	return []moveKind{
		moveStart, moveCrash, moveLose, moveTwice, moveTrouble, moveBroken, moveHalf, moveLie, moveNoData, moveBad,
	}
}

func partyFaults() []moveKind {
	return []moveKind{moveCannot, moveSicken, moveDelayAck, moveDelayTell}
}

func fleetChurn() []moveKind {
	return []moveKind{moveLeave, moveJoin, moveJoinWith, moveReconnect, moveWipe, moveAdd, moveRemove}
}

func operatorCommands() []moveKind {
	return []moveKind{moveBegin, moveDeclare, moveRevert, movePause, moveCancel}
}

// restores are the moves around backups. A replacement by an operator is free.
func restores() []moveKind { return []moveKind{moveSave, moveRestore} }

// The plans of the configurations; the unit of time is the minute.
func stagedPlan() Plan {
	return Plan{
		Stages: []Stage{{Name: "canary", Bake: time.Minute, AckTimeout: 2 * time.Minute}, {Name: "rest"}},
		Judged: true, JudgeEvery: time.Minute,
		DrainMin: time.Minute, DrainQuiet: time.Minute, DrainMax: 4 * time.Minute, MeasureEvery: time.Minute,
		Quarantine: time.Minute, DestroyAfter: time.Minute,
	}
}

func quickPlan() Plan {
	return Plan{Stages: []Stage{{Name: "first"}, {Name: "second"}}, DrainQuiet: time.Minute, MeasureEvery: time.Minute, Quarantine: time.Minute}
}

func emergencyPlans() []Plan {
	return []Plan{
		{Stages: []Stage{{Name: "one"}, {Name: "two"}}, MeasureEvery: time.Minute, Strategy: ReplaceFirst, Grace: time.Minute},
		{Stages: []Stage{{Name: "all"}}, MeasureEvery: time.Minute, Strategy: ContainFirst},
	}
}

// configs are the explorations of TestExplore. Each is exhaustive: it visits every
// state that any order of the free moves and of the stated numbers of faults,
// changes of the fleet and commands can lead to. With long they allow more of
// them, and end after longLimit states where that is too much.
func configs(long bool) []*config {
	more := func(short, longer uint8) uint8 {
		if long {
			return longer
		}
		return short
	}
	begin := []moveKind{moveBegin}
	all := slices.Concat(effectFaults(), partyFaults())
	settled := append(restores(), moveAsFound, moveAsRemembered)
	limit := func(short int) int {
		if long {
			return longLimit
		}
		return short
	}
	return []*config{
		{name: "a rotation and any faults", plan: stagedPlan(), commands: 1, faults: more(3, 4), kinds: append(begin, all...)},
		{name: "a rotation and any changes of the fleet", plan: stagedPlan(), commands: 1, churn: more(2, 3), kinds: append(begin, fleetChurn()...)},
		{name: "a rotation, a fault and a change", plan: stagedPlan(), commands: 1, faults: more(1, 2), churn: more(1, 2), kinds: slices.Concat(begin, all, fleetChurn())},
		{name: "any commands", plan: quickPlan(), commands: more(2, 3), kinds: operatorCommands()},
		{name: "any command and a fault", plan: quickPlan(), commands: more(1, 2), faults: 1, kinds: append(operatorCommands(), all...)},
		{name: "any command and a change", plan: quickPlan(), commands: more(1, 2), churn: 1, kinds: append(operatorCommands(), fleetChurn()...)},
		{name: "rotations and roll-backs", plan: quickPlan(), commands: 2, faults: 1, kinds: slices.Concat([]moveKind{moveBegin, moveRevert, moveCancel}, all)},
		{name: "the first version", plan: stagedPlan(), rotated: -1, commands: more(2, 3), faults: 1, kinds: append(operatorCommands(), all...)},
		{
			name: "somebody unregistered uses the old version", plan: stagedPlan(), unregistered: true, commands: 1, faults: more(2, 3),
			kinds: append(begin, moveNoData, moveStart, moveTrouble, moveLose),
		},
		{name: "verifiers that take their time", plan: stagedPlan(), commands: 1, faults: more(2, 3), kinds: append(begin, moveLater, moveTrouble, moveStart)},
		{name: "a system with two places", plan: quickPlan(), capacity: 2, commands: more(2, 3), kinds: operatorCommands()},
		{name: "a system with a gap", plan: quickPlan(), gap: true, commands: more(1, 2), faults: 1, kinds: append(operatorCommands(), effectFaults()...)},
		{
			name: "a system with a gap, rolled back", plan: quickPlan(), gap: true, commands: 2, faults: more(1, 2),
			kinds: []moveKind{moveBegin, moveCancel, moveStart, moveLose, moveBroken, moveHalf, moveLie},
		},
		{
			name: "three presenters, two stages, two regions", plan: stagedPlan(), presenters: 3, stages: []int{0, 1, 1},
			commands: 1, faults: more(1, 2), churn: 1, kinds: slices.Concat(begin, all, fleetChurn()),
		},
		{
			name: "three presenters, two stages, two regions, any faults", plan: stagedPlan(), presenters: 3, stages: []int{0, 1, 1},
			commands: 1, faults: more(2, 3), kinds: append(begin, all...),
		},
		{
			name: "restored at any time from a backup of any time", plan: quickPlan(), verifiers: 1, presenters: 1, stages: []int{0},
			commands: 2, faults: 1, kinds: append(begin, restores()...),
		},
		{
			name: "restored, settled in any way", plan: quickPlan(), verifiers: 1, presenters: 1, stages: []int{0}, versions: 2,
			commands: 3, faults: 1, kinds: slices.Concat(begin, settled),
		},
		{
			name: "restored, two verifiers and two presenters", plan: quickPlan(), limit: limit(20_000), versions: 2,
			commands: 3, faults: 1, kinds: slices.Concat(begin, settled),
		},
		{
			name: "restored, any command", plan: quickPlan(), verifiers: 1, presenters: 1, stages: []int{0, 0}, limit: limit(20_000),
			commands: 3, faults: 1, kinds: slices.Concat(operatorCommands(), settled),
		},
		{
			name: "restored, any fault", plan: quickPlan(), verifiers: 1, presenters: 1, stages: []int{0}, limit: limit(20_000),
			commands: 2, faults: 2, kinds: slices.Concat(begin, restores(), all),
		},
		{
			name: "restored, any change of the fleet", plan: quickPlan(), verifiers: 1, places: 2, presenters: 1, stages: []int{0, 0}, limit: limit(20_000),
			commands: 2, faults: 1, churn: 1, kinds: slices.Concat(begin, restores(), fleetChurn()),
		},
		{
			name: "restored, a system with a gap", plan: quickPlan(), verifiers: 1, presenters: 1, stages: []int{0}, gap: true, versions: 2,
			commands: 3, faults: 1, kinds: slices.Concat(begin, settled),
		},
		{
			name: "restored, a system with two places", plan: quickPlan(), verifiers: 1, presenters: 1, stages: []int{0}, capacity: 2, versions: 2,
			commands: 3, faults: 1, kinds: slices.Concat(begin, settled),
		},
		{
			name: "restored, the first version", plan: quickPlan(), rotated: -1, verifiers: 1, presenters: 1, stages: []int{0}, versions: 2,
			commands: 3, faults: 1, kinds: append(restores(), moveBegin, moveCancel, moveDeclare),
		},
		{
			name: "restored, a system that keeps no note", plan: quickPlan(), verifiers: 1, places: 2, presenters: 1, stages: []int{0}, versions: 2, unlisted: true,
			commands: 2, faults: 1, churn: 1, kinds: append(restores(), moveBegin, moveAdd),
		},
		{
			name: "restored, given up", plan: quickPlan(), presenters: 1, stages: []int{0}, places: 2, versions: 3, unlisted: true, limit: limit(60_000),
			commands: 3, faults: 2, kinds: append(restores(), moveBegin, moveCancel, moveRevert, moveBroken),
		},
		{
			name: "restored, looked at again", plan: quickPlan(), verifiers: 1, presenters: 1, stages: []int{0}, versions: 2,
			commands: 3, faults: 1, kinds: append(restores(), moveBegin, moveLook),
		},
		{
			name: "three presenters and any commands", plan: quickPlan(), presenters: 3, stages: []int{0, 1, 1},
			commands: more(1, 3), faults: more(1, 1), kinds: append(operatorCommands(), all...),
		},
	}
}

// longLimit is after how many states a long exploration gives up.
const longLimit = 4_000_000

// fill gives a configuration what it leaves open.
func (c *config) fill() {
	c.verifiers = cmp.Or(c.verifiers, 2)
	c.places = cmp.Or(c.places, c.verifiers+1)
	if c.stages == nil {
		c.presenters, c.stages = 2, []int{0, 1}
	}
	c.rotated = max(0, cmp.Or(c.rotated, 1))
	c.back = Plan{Stages: []Stage{{Name: "all"}}, DrainQuiet: time.Minute, MeasureEvery: time.Minute, Quarantine: time.Minute}
	c.emergencies = emergencyPlans()
	c.liveness = true
}

// TestExplore walks all configurations, two at a time, and checks in every state
// the invariants of invariants_test.go against the truth, and from every state
// that a good end can be reached.
//
// Covered exhaustively, in every order: results, tellings and answers that arrive
// early or late, time that passes or does not, presenters and verifiers that act
// or wait, operators who approve and resume. Covered within the budget that each
// configuration states, in every combination and at every moment: an effect that
// runs on while the machine decides otherwise, dies, is lost after it took effect
// and carried out again, reported twice, fails for a while or for good, before or
// after it took effect; a verifier that lies; a judgement or measurement without
// data; a bad judgement; a presenter that cannot follow, falls ill, answers late,
// hears an old telling; presenters and verifiers that come, go and come back; every
// command. Presenters differ by their stage, verifiers by nothing: states that
// only exchange equal ones are visited once. A verifier that comes back after a
// version was destroyed has forgotten that version. Whether the server crashes
// shows only in the effects that were running: all else is in the State.
//
// Two verifiers always; a third, new one where verifiers may come. With
// KEYTURN_EXPLORE=long the budgets are larger, see configs.
func TestExplore(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(300))
	long := os.Getenv("KEYTURN_EXPLORE") == "long"
	work := make(chan *config)
	var mutex sync.Mutex
	var group sync.WaitGroup
	total := 0
	for range 2 {
		group.Go(func() {
			for c := range work {
				c.fill()
				if long {
					c.limit = longLimit
				}
				x := newExplorer(c)
				start := time.Now()
				f := x.explore()
				mutex.Lock()
				if f != nil {
					t.Error(f.tell(c))
				}
				t.Logf("%s: %d states in %v, %d of them good ends", c.name, len(x.parents), time.Since(start).Round(time.Millisecond), len(x.good))
				total += len(x.parents)
				mutex.Unlock()
			}
		})
	}
	for _, c := range configs(long) {
		work <- c
	}
	close(work)
	group.Wait()
	t.Logf("states visited: %d", total)
}
