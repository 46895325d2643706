package rotation

import (
	"os"
	"testing"
	"time"
)

func sampled(n *node, x *explorer) *violation {
	return quietUntil(&n.s)
}

func allFaults() []moveKind {
	var all []moveKind
	for k := moveStart; k < moveLeave; k++ {
		all = append(all, k)
	}
	return all
}

func TestExplore(t *testing.T) {
	min := time.Minute
	staged := Plan{
		Stages: []Stage{{Name: "canary", Bake: min, AckTimeout: 2 * min}, {Name: "rest"}},
		Judged: true, JudgeEvery: min,
		DrainMin: min, DrainQuiet: min, DrainMax: 4 * min, MeasureEvery: min, Quarantine: min, DestroyAfter: min,
	}
	back := Plan{Stages: []Stage{{Name: "all"}}, MeasureEvery: min, DrainQuiet: min, Quarantine: min}
	replace := Plan{Stages: []Stage{{Name: "all"}}, MeasureEvery: min, Strategy: ReplaceFirst, Grace: min}
	contain := Plan{Stages: []Stage{{Name: "one"}, {Name: "two"}}, MeasureEvery: min, Strategy: ContainFirst, Grace: min}
	all := allFaults()
	churn := []moveKind{moveLeave, moveJoin, moveJoinWith, moveReconnect, moveWipe, moveAdd, moveRemove}
	commands := []moveKind{moveBegin, moveDeclare, moveRevert, movePause, moveCancel}
	_ = churn
	cs := []*config{
		{name: "scheduled", faults: 2, commands: 1, kinds: append([]moveKind{moveBegin}, all...)},
		{name: "churn", faults: 0, churn: 2, commands: 1, kinds: append([]moveKind{moveBegin}, churn...)},
		{name: "commands", faults: 0, churn: 0, commands: 2, kinds: commands},
		{name: "faults+commands", faults: 1, churn: 0, commands: 2, kinds: append(commands, all...)},
		{name: "churn+commands", faults: 0, churn: 1, commands: 2, kinds: append(commands, churn...)},
		{name: "commands3", faults: 0, churn: 0, commands: 3, kinds: commands},
		{name: "all", faults: 1, churn: 1, commands: 2, kinds: append(append(commands, churn...), all...)},
	}
	if only := os.Getenv("ONLY"); only != "" {
		for _, c := range cs {
			if c.name == only {
				cs = []*config{c}
				break
			}
		}
	}
	for _, c := range cs {
		c.verifiers, c.presenters, c.stages, c.rotated = 2, 2, []int{0, 1}, 1
		c.plan, c.back, c.emergencies = staged, back, []Plan{replace, contain}
		c.liveness = true
		c.limit = 60000
		x := newExplorer(c)
		start := time.Now()
		if f := x.explore(); f != nil {
			t.Errorf("%s %s %d states in %v", f.tell(c), "", len(x.parents), time.Since(start))
			return
		}
		t.Logf("%s: states visited: %d in %v, good %d, mem %d MB", c.name, len(x.parents), time.Since(start), len(x.good), memory()>>20)
	}
}
