package rotation

import (
	"cmp"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
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

func configs() []*config {
	all := slices.Concat(effectFaults(), partyFaults())
	begin := []moveKind{moveBegin}
	return []*config{
		{name: "every two faults", plan: stagedPlan(), faults: 2, commands: 1, kinds: append(begin, all...)},
		{name: "every two changes of the fleet", plan: stagedPlan(), churn: 2, commands: 1, kinds: append(begin, fleetChurn()...)},
		{name: "every three commands", plan: quickPlan(), commands: 3, kinds: operatorCommands()},
		{name: "two commands and a fault", plan: quickPlan(), commands: 2, faults: 1, kinds: append(operatorCommands(), all...)},
		{name: "two commands and a change", plan: quickPlan(), commands: 2, churn: 1, kinds: append(operatorCommands(), fleetChurn()...)},
		{name: "a fault and a change", plan: stagedPlan(), faults: 1, churn: 1, commands: 1, kinds: slices.Concat(begin, all, fleetChurn())},
		{name: "first version", plan: stagedPlan(), commands: 2, faults: 1, rotated: -1, kinds: append(operatorCommands(), all...)},
		{name: "unregistered use", plan: stagedPlan(), commands: 2, faults: 1, unregistered: true, kinds: []moveKind{moveBegin, moveRevert, moveDeclare, moveNoData, moveStart, moveTrouble, moveLose}},
		{name: "two places only", plan: quickPlan(), commands: 3, capacity: 2, kinds: operatorCommands()},
		{name: "one after the other", plan: quickPlan(), commands: 2, faults: 2, gap: true, capacity: 1, kinds: slices.Concat(operatorCommands(), effectFaults())},
		{
			name: "three presenters, two regions", plan: stagedPlan(), presenters: 3, stages: []int{0, 1, 1},
			commands: 2, faults: 1, churn: 0, kinds: slices.Concat(operatorCommands(), all, fleetChurn()),
		},
	}
}

// fill gives a configuration what it leaves open.
func (c *config) fill() {
	c.verifiers = cmp.Or(c.verifiers, 2)
	if c.stages == nil {
		c.presenters, c.stages = 2, []int{0, 1}
	}
	c.rotated = max(0, cmp.Or(c.rotated, 1))
	c.back = Plan{Stages: []Stage{{Name: "all"}}, DrainQuiet: time.Minute, MeasureEvery: time.Minute, Quarantine: time.Minute}
	c.emergencies = emergencyPlans()
	c.liveness = true
}

func sampled(n *node, _ *explorer) *violation {
	return quietUntil(&n.s)
}

func TestExplore(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	limit, _ := strconv.Atoi(os.Getenv("LIMIT"))
	work := make(chan *config)
	var mutex sync.Mutex
	total := 0
	var group sync.WaitGroup
	for range 2 {
		group.Go(func() {
			for c := range work {
				c.fill()
				c.limit = limit
				x := newExplorer(c)
				start := time.Now()
				f := x.explore()
				mutex.Lock()
				if f != nil {
					t.Errorf("%s %d states", f.tell(c), len(x.parents))
				} else {
					t.Logf("%s: states visited: %d in %v, good %d, mem %d MB", c.name, len(x.parents), time.Since(start), len(x.good), memory()>>20)
				}
				total += len(x.parents)
				mutex.Unlock()
			}
		})
	}
	for _, c := range configs() {
		if only := os.Getenv("ONLY"); only == "" || only == c.name {
			work <- c
		}
	}
	close(work)
	group.Wait()
	t.Logf("states visited: %d", total)
}
