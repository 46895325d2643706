package rotation

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// passage is one way from a phase to another that was really seen.
type passage struct {
	from, to Phase
	cause    string
}

// cause names an event for the documentation.
func cause(e Event) string {
	switch body := e.Body.(type) {
	case Result:
		return fmt.Sprintf("result of %v: %v", body.Effect.Kind, body.Outcome)
	case Declare:
		return fmt.Sprintf("declare (%v)", body.Plan.Strategy)
	case Resolve:
		return fmt.Sprintf("resolve (%v)", body.How)
	}
	return e.Body.eventType()
}

// passages explores a few configurations and collects every passage in them.
func passages(t *testing.T) []passage {
	all := slices.Concat(effectFaults(), partyFaults())
	windowed := quickPlan()
	windowed.NotAfter = epoch0().Add(1)
	windowed.Approvals = 1
	explored := []*config{
		{plan: stagedPlan(), commands: 1, faults: 1, kinds: append([]moveKind{moveBegin}, all...)},
		{plan: quickPlan(), commands: 2, kinds: operatorCommands()},
		{plan: quickPlan(), commands: 1, faults: 1, kinds: append(operatorCommands(), all...)},
		{plan: quickPlan(), commands: 1, churn: 1, kinds: append(operatorCommands(), fleetChurn()...)},
		{plan: quickPlan(), commands: 2, rotated: -1, kinds: operatorCommands()},
		{plan: quickPlan(), commands: 1, gap: true, kinds: operatorCommands()},
		{plan: quickPlan(), commands: 2, capacity: 2, kinds: operatorCommands()},
		{plan: windowed, commands: 1, kinds: []moveKind{moveBegin}},
		{
			plan: quickPlan(), verifiers: 1, presenters: 1, stages: []int{0}, versions: 2, commands: 3, faults: 1,
			kinds: append(restores(), moveBegin, moveAsFound, moveAsRemembered),
		},
	}
	seen := map[passage]bool{}
	var mutex sync.Mutex
	for _, c := range explored {
		c.fill()
		c.liveness = false
		c.observe = func(before, after *State, e Event) {
			mutex.Lock()
			defer mutex.Unlock()
			for i := range after.Rotations {
				if r := &after.Rotations[i]; before.find(r.ID) == nil && r.Phase != Planned {
					seen[passage{0, r.Phase, cause(e)}] = true
				}
			}
			for i := range before.Rotations {
				old := &before.Rotations[i]
				if now := after.find(old.ID); now != nil && now.Phase != old.Phase {
					seen[passage{old.Phase, now.Phase, cause(e)}] = true
				}
			}
		}
		if f := newExplorer(c).explore(); f != nil {
			t.Fatal(f.tell(c))
		}
	}
	var list []passage
	for p := range seen {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b passage) int {
		return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to), strings.Compare(a.cause, b.cause))
	})
	return list
}

const preface = `# The state machine of a rotation

This page is generated: ` + "`go test ./internal/rotation -run TestStateMachinePage -update`" + ` writes it,
and the same test without the flag fails when it differs. Nothing in the tables is
written by hand: every passage was seen while small configurations were explored.
What the phases mean is said in the documentation of package rotation.

A step may pass several phases at once, for example when no presenter is there; such
a passage leads from the first phase to the last. A rotation that brings back an
existing version has no minting: it begins in accepting.

`

// TestStateMachinePage compares docs/state-machine.md with the machine.
func TestStateMachinePage(t *testing.T) {
	var b bytes.Buffer
	b.WriteString(preface)
	list := passages(t)

	b.WriteString("## Diagram\n\n```mermaid\nstateDiagram-v2\n")
	drawn := map[[2]Phase]bool{}
	for _, p := range list {
		if drawn[[2]Phase{p.from, p.to}] {
			continue
		}
		drawn[[2]Phase{p.from, p.to}] = true
		fmt.Fprintf(&b, "    %s --> %s\n", state(p.from), state(p.to))
	}
	b.WriteString("    [*] --> planned\n")
	for p := Done; int(p) < len(phaseNames); p++ {
		fmt.Fprintf(&b, "    %s --> [*]\n", state(p))
	}
	b.WriteString("```\n\n## Passages\n\n| from | to | when this arrives |\n|---|---|---|\n")
	b.WriteString("| (new) | planned | begin, declare |\n")
	for i := 0; i < len(list); {
		from, to := list[i].from, list[i].to
		var causes []string
		for ; i < len(list) && list[i].from == from && list[i].to == to; i++ {
			causes = append(causes, list[i].cause)
		}
		name := from.String()
		if from == 0 {
			name = "(new)"
		}
		fmt.Fprintf(&b, "| %s | %v | %s |\n", name, to, strings.Join(causes, ", "))
	}

	path := filepath.Join("..", "..", "docs", "state-machine.md")
	if flag.Lookup("update").Value.(flag.Getter).Get().(bool) {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(page, b.Bytes()) {
		t.Error("docs/state-machine.md is not what the machine does; run go test ./internal/rotation -run TestStateMachinePage -update, and read the difference")
	}
	for p := Planned; int(p) < len(phaseNames); p++ {
		if !bytes.Contains(b.Bytes(), []byte("| "+p.String()+" |")) {
			t.Errorf("phase %v was never seen", p)
		}
	}
}

// state is the name of a phase in a diagram.
func state(p Phase) string {
	if p == 0 {
		return "[*]"
	}
	return strings.ReplaceAll(p.String(), "-", "_")
}
