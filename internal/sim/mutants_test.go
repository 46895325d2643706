package sim

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/keyturn/keyturn/internal/mutant"
)

// mistake is one safeguard that is switched off.
type mistake struct {
	name string
	// file holds old exactly once; the mutant has new in its place.
	file, old, new string
	// rules are the invariants that may be found broken.
	rules []string
	// within is the number of seeds that suffice.
	within int
	// always: it is run whenever tests are run; the others by make soak.
	always bool
}

func mistakes() []mistake {
	list := []mistake{
		{
			"fencing: every call carries the same fence", "engine/effects.go", "Fence: job.Fence}", "Fence: 1}",
			[]string{"found", "intent", "revoked", "no lockout", "no loss"},
			500, false,
		},
		{
			"lanes: effects of one version at one verifier run at once", "engine/queue.go",
			`Lane: string(name) + "#" + effect.Lane(),`, `Lane: string(name) + "#" + effect.ID(),`,
			[]string{"revoked", "no lockout", "no loss", "converges"},
			1500, false,
		},
		{
			"awaited: an effect that nobody waits for any more is carried out", "engine/work.go",
			"awaited = state.Awaits(effect.EffectRef)", "awaited = state.Awaits(effect.EffectRef) || true",
			[]string{"standing", "revoked", "no lockout"},
			500, false,
		},
		{
			"lease: the result of a lost lease is recorded", "engine/work.go",
			"if err := c.tx.Leases.Settle(ctx, job.ID, job.Fence, retryAt); err != nil {",
			"if err := c.tx.Leases.Settle(ctx, job.ID, job.Fence, retryAt); err != nil && !errors.Is(err, store.ErrFenced) {",
			[]string{"fenced"},
			50, true,
		},
		{
			"intent before effect: what could not be claimed is carried out", "engine/work.go",
			"e.log.ErrorContext(ctx, \"effects could not be claimed; trying again\", \"error\", err)\n\t\t}\n\t\treturn\n",
			"e.log.ErrorContext(ctx, \"effects could not be claimed; trying again\", \"error\", err)\n\t\t}\n",
			[]string{"intent"},
			500, false,
		},
		{
			"intent before effect: effects are queued after the decision has been committed", "engine/queue.go",
			"return c.tx.Queue.Enqueue(c.ctx, jobs...)",
			"ctx := c.ctx\n\tgo func() {\n\t\t_ = c.e.store.Update(ctx, func(tx store.Tx) error { return tx.Queue.Enqueue(ctx, jobs...) })\n\t}()\n\treturn nil",
			[]string{"converges"},
			50, true,
		},
		{
			"idempotency: a repeated request begins another rotation", "engine/commands.go",
			"if request.RequestID != \"\" {", "if request.RequestID == \"none\" {",
			[]string{"idempotent"},
			500, false,
		},
		{
			"barrier: a system that contradicts itself is believed", "engine/effects.go",
			"if verdict == want {", "if verdict != 0 || verdict == want {",
			// A replica waits for ever for what its primary has not done.
			[]string{"no lockout", "revoked", "no loss", "converges"},
			150, true,
		},
		{
			"barrier: asked to accept counts as accepted", "rotation/advance.go",
			"return ok && slot.Acceptance == Accepted", "return ok && slot.Acceptance.accepting()",
			[]string{"no lockout"},
			500, false,
		},
		{
			"no data: an endpoint that cannot be reached counts as proof", "engine/effects.go",
			"verdict, err := tryVersion(ctx, system, call, effect.Verifier, version)\n\tif err != nil {\n\t\treturn asked(failed(err))",
			"verdict, err := tryVersion(ctx, system, call, effect.Verifier, version)\n\tif err != nil {\n\t\treturn done{outcome: rotation.OK}",
			[]string{"no lockout", "revoked", "no loss"},
			500, false,
		},
		{
			"no data: use that cannot be measured counts as none", "engine/effects.go",
			"usage, err := meter.Usage(ctx, call, version)\n\tif err != nil {\n\t\treturn done{outcome: rotation.NoData, err: err, asked: true}",
			"usage, err := meter.Usage(ctx, call, version)\n\tif err != nil {\n\t\treturn done{outcome: rotation.OK}",
			[]string{"no data"},
			500, false,
		},
		{
			"no data: a stage passes without reports", "engine/effects.go",
			"if silent != \"\" {", "if silent == \"nobody\" {",
			[]string{"no data"},
			500, false,
		},
		{
			"epochs: an answer to an older telling is taken", "rotation/step.go",
			"if !ok || ack.Epoch != p.Epoch || p.Told == 0 {", "if !ok || p.Told == 0 {",
			[]string{"answers", "no lockout", "drained", "staged", "converges"},
			500, false,
		},
		{
			"answers: one that was overtaken is taken", "rotation/step.go",
			"if ack.Order != 0 && ack.Order < p.Heard {", "if ack.Order != 0 && ack.Order > p.Heard+1000 {",
			[]string{"answers"},
			1000, false,
		},
		{
			"audit: entries are written after the decision has been committed", "engine/change.go",
			"return c.enterLog()",
			"later := context.WithoutCancel(ctx)\n\t\tgo func() {\n\t\t\t_ = e.store.Update(later, func(tx store.Tx) error { d := *c; d.tx = tx; return d.enterLog() })\n\t\t}()\n\t\treturn nil",
			[]string{"audited"},
			50, true,
		},
		{
			"no loss: material is stored after the decision has been committed", "engine/work.go",
			"if done.outcome != 0 && done.write != nil {\n",
			"if done.outcome != 0 && done.write != nil {\n\t\tctx := context.WithoutCancel(c.ctx)\n\t\tgo func() { _ = c.e.update(ctx, Server(), done.write) }()\n\t\treturn nil\n\t}\n\tif done.outcome != 0 && done.write != nil {\n",
			[]string{"no loss", "converges"},
			500, false,
		},
		{
			"reconcile on start: a store that was put back is taken as it is", "engine/restore.go",
			"if errors.Is(err, store.ErrNotFound) || err == nil && record.Marked {", "if errors.Is(err, store.ErrNotFound) || err == nil {",
			[]string{"no lockout", "no loss", "revoked", "fenced", "converges", "history"},
			500, false,
		},
		{
			"restore: systems are asked while old calls may arrive", "engine/reconcile.go",
			"if left > 0 {", "if left > time.Hour {",
			[]string{"found", "no lockout", "revoked", "no loss"},
			500, false,
		},
		{
			"restore: no fence is raised before systems are asked", "engine/reconcile.go",
			"err = e.fence(ctx, call)", "err = nil",
			[]string{"found", "no lockout", "revoked", "no loss"},
			1500, false,
		},
		{
			"cache: a state of another revision is taken", "engine/cache.go",
			"if !ok || cached.rev != rev {", "if !ok || cached.rev > rev {",
			[]string{"converges", "history", "doctor"},
			500, false,
		},
		{
			"answers: one that was lost is not asked for again", "engine/parties.go",
			"Epoch: p.Epoch, Unanswered: !p.Acked || p.Failed}", "Epoch: p.Epoch}",
			[]string{"converges"},
			500, false,
		},
	}
	return append(list, gatewayMistakes()...)
}

const gatewayFile = "sim/gateway_test.go"

// gatewayMistakes are those of the gateway that is simulated: each of its rules is
// needed. Only fleets with a gateway are run, and counted.
func gatewayMistakes() []mistake {
	return []mistake{
		{
			name: "gateway: a version is acknowledged before it is durable", file: gatewayFile,
			old:    "if !g.write(l, d) {\n\t\treturn\n\t}\n\tg.pend(l, d)",
			new:    "g.pend(l, d)\n\tg.write(l, d)",
			rules:  []string{"staged", "no lockout", "vouched", "drained", "answers"},
			within: 100, always: true,
		},
		{
			name: "gateway: a version is acknowledged while somebody was handed an older one", file: gatewayFile,
			old: "if v != version {", new: "if v != version && version == 0 {",
			rules:  []string{"vouched", "drained", "no lockout"},
			within: 200,
		},
		{
			name: "gateway: what was handed out is forgotten at a restart", file: gatewayFile,
			old: "if g.own {", new: "if g.own && g.w == nil {",
			rules:  []string{"vouched", "drained", "no lockout"},
			within: 300,
		},
	}
}

// TestMutants builds one binary with all mutants, so that each still fits the source,
// runs seeds on each in a child process until one violates an invariant, and fails
// when none does.
// KEYTURN_SIM_MUTANTS=all runs all of them, another value those whose name holds it.
func TestMutants(t *testing.T) {
	if mutant.Running() {
		return
	}
	only := os.Getenv("KEYTURN_SIM_MUTANTS")
	all := mistakes()
	var planted []mutant.Mistake
	var chosen []int
	for i, m := range all {
		planted = append(planted, mutant.Mistake{File: filepath.Join("..", filepath.FromSlash(m.file)), Old: m.old, New: m.new})
		if only == "all" || only == "" && m.always || only != "" && strings.Contains(m.name, only) {
			chosen = append(chosen, i)
		}
	}
	binary, err := mutant.Build(t.Context(), t.TempDir(), planted)
	if err != nil {
		t.Fatal(err)
	}
	caught := 0
	var mutex sync.Mutex
	var group sync.WaitGroup
	work := make(chan int)
	for range 2 {
		group.Go(func() {
			for i := range work {
				told, problem := all[i].run(t, binary, i+1)
				mutex.Lock()
				if problem == "" {
					caught++
					t.Logf("%s: %s", all[i].name, told)
				} else {
					t.Errorf("%s: %s", all[i].name, problem)
				}
				mutex.Unlock()
			}
		})
	}
	for _, i := range chosen {
		work <- i
	}
	close(work)
	group.Wait()
	t.Logf("mutants caught: %d/%d", caught, len(chosen))
}

// run returns how the mutant was caught, or what is wrong.
func (m *mistake) run(t *testing.T, binary string, number int) (told, problem string) {
	first, step := 1, 1
	if m.file == gatewayFile {
		first, step = gatewayFirst, gatewayEvery
	}
	child := mutant.Command(
		t.Context(), binary, number, "TestFleet", envFor+"=", envTale+"=", envFirst+"=1", fmt.Sprint(envSeed, "=", first),
		fmt.Sprint(envStep, "=", step), fmt.Sprint(envSeeds, "=", m.within),
	)
	out, err := child.CombinedOutput()
	found := regexp.MustCompile(`seed (\d+): violated: ([a-z -]+): .*`).FindStringSubmatch(string(out))
	switch {
	case err == nil:
		return "", fmt.Sprintf("it survives %d seeds", m.within)
	case found == nil:
		return "", "it fails in another way: " + string(out[:min(len(out), 3000)])
	case slices.Contains(m.rules, found[2]):
		return found[0], ""
	}
	return "", fmt.Sprintf("it should violate one of %q, but: %s", m.rules, found[0])
}
