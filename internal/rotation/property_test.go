package rotation

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestLargeFleets walks at random through configurations that are too large to
// be explored: every invariant holds at every step, and when the faults and the
// commands stop, everything comes to a good end.
func TestLargeFleets(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := drawConfig(rt)
		c.prepare()
		n, problem := c.start()
		if problem != nil {
			rt.Fatal(problem)
		}
		for range rapid.IntRange(20, 200).Draw(rt, "moves") {
			var free, other []move
			c.moves(&n, func(m move) {
				if m.kind.free() {
					free = append(free, m)
				} else {
					other = append(other, m)
				}
			})
			choices := free
			if len(free) == 0 || len(other) > 0 && rapid.IntRange(0, 5).Draw(rt, "other") == 0 {
				choices = other
			}
			if len(choices) == 0 {
				break
			}
			m := rapid.SampledFrom(choices).Draw(rt, "move")
			rt.Log(c.describe(&n, m))
			next, ok, problem := c.apply(&n, m)
			if problem == nil && ok {
				problem = c.check(&next)
			}
			if problem != nil {
				rt.Fatalf("%v\nafter: %s\nin %s", problem, c.describe(&n, m), describeNode(&n))
			}
			if ok {
				n = next
			}
		}
		r := run{c: c, n: n}
		if problem := r.calm(); problem != nil {
			rt.Fatal(problem)
		}
		if !c.good(&r.n) {
			rt.Fatalf("no good end: %s", describeNode(&r.n))
		}
	})
}

func drawConfig(rt *rapid.T) *config {
	c := &config{
		verifiers: rapid.IntRange(1, 7).Draw(rt, "verifiers"), places: 8, rotated: 1, versions: 60,
		faults: 20, churn: 20, commands: 10,
		gap:         rapid.IntRange(0, 5).Draw(rt, "gap") == 0,
		emergencies: emergencyPlans(), back: quickPlan(),
	}
	for k := moveStart; k <= moveCancel; k++ {
		c.kinds = append(c.kinds, k)
	}
	stages := rapid.IntRange(1, 5).Draw(rt, "stages")
	c.plan = stagedPlan()
	c.plan.Stages = nil
	for i := range stages {
		bake := time.Duration(rapid.IntRange(0, 2).Draw(rt, "bake")) * time.Minute
		c.plan.Stages = append(c.plan.Stages, Stage{Name: fmt.Sprint("stage ", i), Bake: bake})
	}
	c.plan.Judged = rapid.Bool().Draw(rt, "judged")
	c.plan.HoldOnFailure = rapid.Bool().Draw(rt, "hold")
	c.plan.Approvals = rapid.IntRange(0, 2).Draw(rt, "approvals")
	all := rapid.IntRange(0, 40).Draw(rt, "parties")
	for range all {
		c.stages = append(c.stages, rapid.IntRange(0, 5).Draw(rt, "stage"))
	}
	c.presenters = rapid.IntRange(0, all).Draw(rt, "presenters")
	return c
}
