package sim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// mutant is one safeguard that is switched off.
type mutant struct {
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

func mutants() []mutant {
	return []mutant{
		{
			"fencing: every call carries the same fence", "engine/effects.go", "Fence: job.Fence}", "Fence: 1}",
			[]string{"revoked", "no lockout", "no loss"},
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
			[]string{"no lockout", "revoked"},
			50, true,
		},
		{
			"barrier: asked to accept counts as accepted", "rotation/advance.go",
			"return ok && slot.Acceptance == Accepted", "return ok && slot.Acceptance.accepting()",
			[]string{"no lockout"},
			500, false,
		},
		{
			"no data: an endpoint that cannot be reached counts as proof", "engine/effects.go",
			"verdict, err := system.Probe(ctx, call, effect.Verifier, version)\n\tif err != nil {\n\t\treturn failed(err)",
			"verdict, err := system.Probe(ctx, call, effect.Verifier, version)\n\tif err != nil {\n\t\treturn done{outcome: rotation.OK}",
			[]string{"no lockout", "revoked"},
			500, false,
		},
		{
			"no data: use that cannot be measured counts as none", "engine/effects.go",
			"usage, err := meter.Usage(ctx, call, version)\n\tif err != nil {\n\t\treturn done{outcome: rotation.NoData, err: err}",
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
			[]string{"no lockout", "drained", "staged", "converges"},
			500, false,
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
			"cache: a state of another revision is taken", "engine/cache.go",
			"if !ok || cached.rev != rev {", "if !ok || cached.rev > rev {",
			[]string{"converges", "history", "doctor"},
			500, false,
		},
		{
			"answers: one that was lost is not asked for again", "engine/parties.go",
			"Epoch: p.Epoch, Unanswered: !p.Acked}", "Epoch: p.Epoch}",
			[]string{"converges"},
			500, false,
		},
	}
}

// TestMutants builds every mutant, runs seeds on it in a child process until one
// violates an invariant, and fails when none does. The code itself knows nothing
// of this: the mutant's file is laid over it. KEYTURN_SIM_MUTANTS=all runs all.
func TestMutants(t *testing.T) {
	if os.Getenv("KEYTURN_SIM_FIRST") != "" {
		return
	}
	all := mutants()
	if only := os.Getenv("KEYTURN_SIM_MUTANTS"); only != "all" {
		var chosen []mutant
		for _, m := range all {
			if only == "" && m.always || only != "" && strings.Contains(m.name, only) {
				chosen = append(chosen, m)
			}
		}
		all = chosen
	}
	caught := 0
	var mutex sync.Mutex
	var group sync.WaitGroup
	work := make(chan *mutant)
	for range 2 {
		group.Go(func() {
			for m := range work {
				told, problem := m.run(t)
				mutex.Lock()
				if problem == "" {
					caught++
					t.Logf("%s: %s", m.name, told)
				} else {
					t.Errorf("%s: %s", m.name, problem)
				}
				mutex.Unlock()
			}
		})
	}
	for i := range all {
		work <- &all[i]
	}
	close(work)
	group.Wait()
	t.Logf("mutants caught: %d/%d", caught, len(all))
}

// run returns how the mutant was caught, or what is wrong.
func (m *mutant) run(t *testing.T) (told, problem string) {
	path, err := filepath.Abs(filepath.Join("..", filepath.FromSlash(m.file)))
	if err != nil {
		return "", err.Error()
	}
	source, err := os.ReadFile(path)
	if err != nil {
		return "", err.Error()
	}
	if n := bytes.Count(source, []byte(m.old)); n != 1 {
		return "", fmt.Sprintf("%s holds the text to change %d times, not once; adapt the mutant", m.file, n)
	}
	dir := t.TempDir()
	changed, overlay, binary := filepath.Join(dir, "mutant.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "mutant.test")
	mapping, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	if err != nil {
		return "", err.Error()
	}
	if err := os.WriteFile(changed, bytes.Replace(source, []byte(m.old), []byte(m.new), 1), 0o600); err != nil {
		return "", err.Error()
	}
	if err := os.WriteFile(overlay, mapping, 0o600); err != nil {
		return "", err.Error()
	}
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-overlay", overlay, "-ldflags", "-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", "it does not compile: " + string(out)
	}
	child := exec.CommandContext(t.Context(), binary, "-test.run", "^TestFleet$", "-test.v", "-test.timeout", "5m")
	child.Env = append(os.Environ(), "KEYTURN_SIM_FOR=", "KEYTURN_SIM_FIRST=1", "KEYTURN_SIM_SEED=1", fmt.Sprint("KEYTURN_SIM_SEEDS=", m.within))
	if strings.HasPrefix(m.name, "reconcile") {
		child.Env = append(child.Env, envRestores+"=1")
	}
	out, err := child.CombinedOutput()
	found := regexp.MustCompile(`seed (\d+): violated: ([a-z -]+): .*`).FindStringSubmatch(string(out))
	switch {
	case err == nil:
		return "", fmt.Sprintf("it survives %d seeds", m.within)
	case found == nil:
		return "", "it fails in another way: " + string(out[:min(len(out), 3000)])
	}
	for _, rule := range m.rules {
		if found[2] == rule {
			return found[0], ""
		}
	}
	return "", fmt.Sprintf("it should violate one of %q, but: %s", m.rules, found[0])
}
