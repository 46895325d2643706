package rotation

import (
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/mutant"
)

// mistake is one deliberate mistake in the machine.
type mistake struct {
	name string
	// file holds old exactly once; the mutant has new in its place.
	file, old, new string
	// config is the exploration that must fail, invariant what it must find.
	config, invariant string
}

// mutantConfigs are explorations that are as small as the mistakes allow.
func mutantConfigs() []*config {
	approved := stagedPlan()
	approved.Approvals = 2
	graceful := stagedPlan()
	graceful.DrainMin, graceful.DrainQuiet = 2*time.Minute, 0
	return []*config{
		{name: "begin", plan: stagedPlan(), commands: 1, kinds: []moveKind{moveBegin}},
		{name: "begin, grace", plan: graceful, commands: 1, kinds: []moveKind{moveBegin}},
		{name: "begin, lie", plan: stagedPlan(), commands: 1, faults: 1, kinds: []moveKind{moveBegin, moveLie}},
		{name: "begin, no data", plan: stagedPlan(), commands: 1, faults: 1, kinds: []moveKind{moveBegin, moveNoData}},
		{name: "begin, broken", limit: 2000, plan: stagedPlan(), commands: 2, faults: 1, kinds: []moveKind{moveBegin, moveBroken}},
		{name: "begin, cannot", plan: stagedPlan(), commands: 1, faults: 1, kinds: []moveKind{moveBegin, moveCannot}},
		{name: "begin, later", plan: stagedPlan(), commands: 1, faults: 1, kinds: []moveKind{moveBegin, moveLater}},
		{name: "begin, approvals", plan: approved, commands: 1, kinds: []moveKind{moveBegin}},
		{name: "begin, cancel", plan: quickPlan(), commands: 2, kinds: []moveKind{moveBegin, moveCancel}},
		{name: "begin, cancel, late telling", plan: quickPlan(), commands: 2, faults: 1, kinds: []moveKind{moveBegin, moveCancel, moveDelayTell}},
		{name: "begin, pause", plan: quickPlan(), commands: 2, kinds: []moveKind{moveBegin, movePause}},
		{name: "begin, revert", limit: 4000, plan: quickPlan(), commands: 3, kinds: []moveKind{moveBegin, moveRevert}},
		{name: "begin, cancel, declare", limit: 4000, plan: quickPlan(), commands: 3, kinds: []moveKind{moveBegin, moveCancel, moveDeclare}},
		{name: "declare, revert", limit: 3000, plan: quickPlan(), commands: 2, kinds: []moveKind{moveRevert, moveDeclare}},
		{name: "begin, declare, broken", limit: 20000, plan: quickPlan(), commands: 2, faults: 1, kinds: []moveKind{moveBegin, moveDeclare, moveBroken}},
		{name: "declare, join", plan: quickPlan(), commands: 1, churn: 2, kinds: []moveKind{moveDeclare, moveLeave, moveJoinWith}},
		{name: "two places", plan: quickPlan(), commands: 2, capacity: 2, kinds: []moveKind{moveBegin}},
		{name: "begin, verifiers", plan: stagedPlan(), commands: 1, churn: 2, kinds: []moveKind{moveBegin, moveAdd, moveRemove}},
		{
			name: "restored", plan: quickPlan(), verifiers: 1, presenters: 1, stages: []int{0}, versions: 2,
			commands: 2, faults: 1, kinds: append(restores(), moveBegin),
		},
		{
			name: "restored, as remembered", plan: quickPlan(), verifiers: 1, presenters: 1, stages: []int{0}, versions: 2,
			commands: 3, faults: 1, kinds: append(restores(), moveBegin, moveAsRemembered),
		},
		{
			name: "restored, cannot", plan: quickPlan(), verifiers: 1, presenters: 1, stages: []int{0}, versions: 2,
			commands: 2, faults: 2, kinds: append(restores(), moveBegin, moveCannot), limit: 3000,
		},
		{
			name: "restored, revert", plan: quickPlan(), verifiers: 1, presenters: 1, stages: []int{0}, limit: 9000,
			commands: 3, faults: 1, kinds: append(restores(), moveBegin, moveRevert),
		},
		{
			name: "restored, first version", plan: quickPlan(), rotated: -1, verifiers: 1, presenters: 1, stages: []int{0}, versions: 2,
			commands: 3, faults: 1, kinds: append(restores(), moveBegin, moveCancel), limit: 3000,
		},
		{
			name: "restored, first version, declare", plan: quickPlan(), rotated: -1, verifiers: 1, presenters: 1, stages: []int{0}, versions: 2,
			commands: 3, faults: 1, kinds: append(restores(), moveBegin, moveDeclare), limit: 3000,
		},
		{
			name: "restored, look", plan: quickPlan(), verifiers: 1, presenters: 1, stages: []int{0}, versions: 2,
			commands: 3, faults: 1, kinds: append(restores(), moveBegin, moveLook), limit: 3000,
		},
		{
			name: "restored, no note", plan: quickPlan(), verifiers: 1, places: 2, presenters: 1, stages: []int{0}, versions: 2, unlisted: true,
			commands: 2, faults: 1, churn: 1, kinds: append(restores(), moveBegin, moveAdd), limit: 6000,
		},
		{
			name: "restored, given up", plan: quickPlan(), presenters: 1, stages: []int{0}, places: 2, versions: 3, unlisted: true, limit: 60000,
			commands: 3, faults: 1, kinds: append(restores(), moveBegin, moveCancel),
		},
		{name: "begin, late answer", plan: stagedPlan(), commands: 1, faults: 2, kinds: []moveKind{moveBegin, moveSicken, moveDelayAck}},
		{name: "begin, verifiers, twice", limit: 3000, plan: quickPlan(), commands: 1, churn: 2, faults: 1, kinds: []moveKind{moveBegin, moveAdd, moveRemove, moveTwice}},
	}
}

func mutants() []mistake {
	return []mistake{
		{
			"the barrier before presenting is dropped: asked to accept counts as accepted",
			"advance.go", "return ok && slot.Acceptance == Accepted", "return ok && slot.Acceptance.accepting()",
			"begin", "no lockout",
		},
		{
			"a verifier that takes its time counts as one that fails",
			"step.go", "slot.Trouble, slot.Waits = \"\", body.Detail", "slot.Waits = body.Detail",
			"begin, later", "patience",
		},
		{
			"the barrier before presenting forgets a region",
			"advance.go", "\t\tif !accepts(&m.Verifiers[i], v) {\n\t\t\treturn false", "\t\tif !accepts(&m.Verifiers[i], v) && m.Verifiers[i].Region != \"east\" {\n\t\t\treturn false",
			"begin", "regions",
		},
		{
			"a stage passes while a region is missing",
			"drive.go", "if !p.Uses(r.To) {\n\t\t\tmissing++", "if !p.Uses(r.To) && p.Region != \"east\" {\n\t\t\tmissing++",
			"begin", "staged",
		},
		{
			"a revocation does not wait for a region's presenters",
			"advance.go", "if m.Presenters[i].MayUse(v) {", "if m.Presenters[i].MayUse(v) && m.Presenters[i].Region != \"east\" {",
			"declare, join", "drained",
		},
		{
			"what is waited for in a region is not told",
			"regions.go", "trouble, late = next.Trouble, next.Acceptance != Accepted", "trouble, late = next.Trouble, next.Acceptance != Accepted && w.Region != \"east\"",
			"begin", "regions",
		},
		{
			"the new version is not tried before it is presented",
			"result.go", "\tcase AcceptPending:\n\t\tm.ask(w, v, AcceptProbing)", "\tcase AcceptPending:\n\t\tsettle(Accepted)",
			"begin, lie", "no lockout",
		},
		{
			"the refusal of the old version is not tried",
			"result.go", "\tcase RefusePending:\n\t\tm.ask(w, v, RefuseProbing)", "\tcase RefusePending:\n\t\tsettle(Refused)",
			"begin, lie", "revoked",
		},
		{
			"refusing a compromised version waits for a human",
			"result.go", "insist && m.compromised(v) && !slot", "insist && m.Gap && !slot",
			"begin, declare, broken", "insisted",
		},
		{
			"what had failed before an emergency waits for a human all the same",
			"emergency.go", "if body.Insist {", "if body.Insist && m.Gap {",
			"begin, declare, broken", "insisted",
		},
		{
			"nobody is told that a compromised version is still accepted",
			"advance.go", "if r.Hold.Reason == \"\" || r.Hold.Reason == HoldRefusal {", "if r.Hold.Reason == HoldRefusal {",
			"begin, declare, broken", "insisted",
		},
		{
			"a contradicted probe counts as good",
			"result.go", "\tcase Contradicted:\n\t\treturn m.contradicted(w, slot, body.Insist)", "\tcase Contradicted:\n\t\tm.answered(w, slot)\n\t\treturn nil",
			"begin, lie", "no lockout",
		},
		{
			"a measurement without data counts as zero use",
			"result.go", "case body.Outcome == OK && body.Uses == 0:", "case body.Outcome == NoData || body.Outcome == OK && body.Uses == 0:",
			"begin, no data", "no data",
		},
		{
			"a judgement without data passes the stage",
			"result.go", "r.JudgeAt = m.Now.Add(r.Plan.JudgeEvery)", "r.Task.Done = true",
			"begin, no data", "judged",
		},
		{
			"a stage is not judged",
			"drive.go", "if !r.Plan.Judged || r.Task.Kind == Judge && r.Task.Done {", "if !r.Plan.Judged || r.Plan.JudgeEvery > 0 {",
			"begin", "judged",
		},
		{
			"a stage does not bake",
			"drive.go", "if m.Now.Before(r.BakeSince.Add(stage.Bake)) {", "if m.Now.Before(r.BakeSince) {",
			"begin", "baked",
		},
		{
			"the order of stages is ignored",
			"advance.go", "(stageOf(p, cut) <= cut.Stage ||", "(stageOf(p, cut) <= cut.Stage+1 ||",
			"begin", "staged",
		},
		{
			"the order is swapped: the labels move after the first stage",
			"drive.go", "last := r.Stage == len(r.Plan.Stages)-1", "last := r.Stage < len(r.Plan.Stages)",
			"begin", "staged",
		},
		{
			"a stage passes while an answer is missing",
			"drive.go", "if !p.Uses(r.To) {", "if p.Told != r.To {",
			"begin", "staged",
		},
		{
			"the minimum grace is ignored",
			"advance.go", "if earliest.After(quietAt) {", "if earliest.IsZero() {",
			"begin, grace", "drained",
		},
		{
			"the quiet period is ignored",
			"advance.go", "quiet := !r.QuietSince.IsZero() && !m.Now.Before(quietAt)", "quiet := !r.QuietSince.IsZero()",
			"begin", "drained",
		},
		{
			"an emergency refuses the old version while a presenter uses it",
			"drive.go", "emergency waits for registered presenters only.\n\t\tif unused {", "emergency waits for registered presenters only.\n\t\tif !unused || unused {",
			"declare, join", "drained",
		},
		{
			"quarantine is skipped",
			"drive.go", "v.State = key.Suspended\n\tm.enter(r, Quarantine)", "m.forget(r)",
			"begin", "quarantine",
		},
		{
			"quarantine ends at once",
			"drive.go", "if m.Now.Before(r.PhaseSince.Add(r.Plan.Quarantine)) {", "if m.Now.Before(r.PhaseSince) {",
			"begin", "quarantine",
		},
		{
			"retention is ignored",
			"advance.go", "due := !v.DestroyAt.IsZero() && !m.Now.Before(v.DestroyAt)", "due := !v.DestroyAt.IsZero()",
			"begin", "retention",
		},
		{
			"a version is destroyed although a verifier may accept it",
			"advance.go", " || v.Label == key.Current || !m.nowhere(v.Number) {", " || v.Label == key.Current {",
			"begin, verifiers", "no loss",
		},
		{
			"a roll-back does not wait for presenters",
			"drive.go", "if !abandoned && !m.unused(r.To) {", "if abandoned && !m.unused(r.To) {",
			"begin, cancel, late telling", "no lockout",
		},
		{
			"a telling that may have arrived is forgotten",
			"advance.go", "if !slices.Contains(p.Maybe, v) {", "if p.Epoch == 0 {",
			"begin, cancel, late telling", "no lockout",
		},
		{
			"a presenter that could not follow counts as never following",
			"step.go", "maybe := []key.Version{p.Told}", "maybe := append([]key.Version{}, map[bool][]key.Version{true: {p.Told}}[!failed]...)",
			"begin, cannot", "no lockout",
		},
		{
			"the epoch of an answer is not compared",
			"step.go", "if !ok || ack.Epoch != p.Epoch || p.Told == 0 {", "if !ok || p.Told == 0 {",
			"begin, cancel, late telling", "no lockout",
		},
		{
			"a stale result is taken",
			"result.go", "slot.Failed || slot.Try != ref.Try || slot", "slot.Failed || slot",
			"begin, verifiers, twice", "stale",
		},
		{
			"tries are numbered anew for a verifier that comes back",
			"result.go", "slot.Acceptance, slot.Try = a, m.Tries", "slot.Acceptance, slot.Try = a, slot.Try+1",
			"begin, verifiers, twice", "stale",
		},
		{
			"a verifier is admitted before it accepts what is in use",
			"advance.go", "if w.Admitted {\n\t\t\tcontinue\n\t\t}", "if w.Admitted = true; w.Admitted {\n\t\t\tcontinue\n\t\t}",
			"begin, verifiers", "no lockout",
		},
		{
			"a verifier that comes back is trusted to have forgotten what was revoked",
			"step.go", "m.ask(w, v.Number, RefuseProbing)", "_ = v",
			"begin, verifiers", "revoked",
		},
		{
			"a human's hold is ignored",
			"drive.go", "if r.Hold.Human {", "if r.Hold.Human && r.Phase == Planned {",
			"begin, pause", "held",
		},
		{
			"a second rotation may begin at any time",
			"step.go", "if r := &m.Rotations[i]; !r.Phase.Retiring() {", "if r := &m.Rotations[i]; r.Phase.Ended() {",
			"begin, cancel", "one cut-over",
		},
		{
			"an emergency does not wait for the open cut-over",
			"drive.go", "if _, open := m.CutOver(); open {", "if _, open := m.CutOver(); open && r.Kind != Emergency {",
			"begin, cancel, declare", "one cut-over",
		},
		{
			"approvals are ignored",
			"drive.go", "len(r.Approvals) < r.Plan.Approvals {", "len(r.Approvals) > r.Plan.Approvals {",
			"begin, approvals", "planned",
		},
		{
			"a version number is used twice",
			"drive.go", "\tm.Next++\n", "",
			"begin, broken", "shape",
		},
		{
			"the capacity of the system is ignored",
			"advance.go", "len(m.Live()) < m.Capacity }", "len(m.Live()) <= m.Capacity }",
			"two places", "capacity",
		},
		{
			"containment forgets a verifier",
			"advance.go", "if slot, ok := w.Slot(v); ok && slot.Acceptance.accepting() {", "if slot, ok := w.Slot(v); ok && slot.Acceptance.accepting() && i == 0 {",
			"declare, revert", "contained",
		},
		{
			"a compromised version is brought back",
			"step.go", "if from.State == key.Compromised {", "if from.State == key.Destroyed {",
			"declare, revert", "exposure",
		},
		{
			"a roll-back to a version that is found compromised goes on",
			"emergency.go", "\t\t\tif fromBad {\n\t\t\t\t// The version", "\t\t\tif fromBad && toBad {\n\t\t\t\t// The version",
			"begin, cancel, declare", "no lockout",
		},
		{
			"a restored key goes on without being reconciled",
			"advance.go", "if !m.Standing() {", "if m.Now.IsZero() || true {",
			"restored", "standing",
		},
		{
			"what is different after a restore is not looked at",
			"recovery.go", "if len(m.Differences()) == 0 {", "if len(m.Differences()) >= 0 {",
			"restored", "liveness",
		},
		{
			"an unknown version that is accepted is no difference",
			"recovery.go", "list = append(list, Difference{Version: f.Version, Verifier: f.Verifier, Unknown: true, Accepted: true})", "",
			"restored", "liveness",
		},
		{
			"a refusal that was under way goes on although the version may be in use again",
			"recovery.go", "if !f.Accepted || !again || r == nil || m.contained(f.Version) {", "if !again || again {",
			"restored, revert", "no lockout",
		},
		{
			"after a restore presenters use what they last said",
			"recovery.go", "if v := m.Versions[i].Number; m.inService(v) && !p.MayUse(v) {", "if v := m.Versions[i].Number; v == 0 {",
			"restored, cannot", "no lockout",
		},
		{
			"a number of the missing time is minted again",
			"recovery.go", "m.Epoch, m.Next = max(m.Epoch, body.Epoch), max(m.Next, body.Next)", "m.Epoch = max(m.Epoch, body.Epoch)",
			"restored", "liveness",
		},
		{
			"what is remembered is enforced whoever is locked out",
			"recovery.go", "len(locked) > 0 && !body.LockOut {", "len(locked) > 0 && body.LockOut {",
			"restored, as remembered", "liveness",
		},
		{
			"a presenter is told a version whose material is not there",
			"advance.go", "if v == 0 || m.contained(v) || m.foreign(v) {", "if v == 0 || m.contained(v) {",
			"restored", "foreign",
		},
		{
			"the first version is given up although it may be in use since a time that is missing",
			"step.go", "case !m.unused(r.To):", "case r.To == 0:",
			"restored, first version", "no lockout",
		},
		{
			"an emergency gives up the first version although it may be in use since a time that is missing",
			"emergency.go", "(r.Phase == Presenting || !m.unused(r.To)):", "r.Phase == Presenting:",
			"restored, first version, declare", "no lockout",
		},
		{
			"looking again forgets who came back",
			"recovery.go", "if m.Standing() && body.Epoch <= m.Floor {", "if m.Standing() && body.Epoch < m.Floor {",
			"restored, look", "heard",
		},
		{
			"a verifier is admitted although a presenter uses a version that nobody can give it",
			"advance.go", "func(w Verifier) bool { return !w.Admitted }) || m.strange() {", "func(w Verifier) bool { return !w.Admitted }) {",
			"restored, no note", "no lockout",
		},
		{
			"what was being minted when the backup was taken counts as destroyed",
			"recovery.go", "return min(m.Next, r.To)", "return m.Next",
			"restored, no note", "no lockout",
		},
		{
			"a cut-over is given up although a verifier does not accept the version before",
			"step.go", "if m.Gap || m.unused(r.To) {", "if m.Gap || !m.unused(r.To) {",
			"restored, given up", "return",
		},
		{
			"an answer that was overtaken is taken",
			"step.go", "if ack.Order != 0 && ack.Order < p.Heard {", "if ack.Order != 0 && ack.Order > p.Heard+100 {",
			"begin, late answer", "order",
		},
		{
			"an answer that changes nothing does not count as heard",
			"step.go", " && ack.Order <= p.Heard {", " {",
			"begin, late answer", "order",
		},
		{
			"what ends in peace gives up a version that is on its way back",
			"step.go", "\tif !unfinished {", "\tif !unfinished && r.To == 0 {",
			"begin, revert", "revoked",
		},
	}
}

// TestMutants builds one binary with every mutant of the machine, runs for each of
// them one small exploration in a child process, and fails when that finds nothing,
// or something else.
func TestMutants(t *testing.T) {
	if mutant.Running() {
		return
	}
	all := mutants()
	var mistakes []mutant.Mistake
	for _, m := range all {
		mistakes = append(mistakes, mutant.Mistake{File: m.file, Old: m.old, New: m.new})
	}
	binary, err := mutant.Build(t.Context(), t.TempDir(), mistakes)
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
				m := all[i]
				out, err := mutant.Command(t.Context(), binary, i+1, "TestMutantConfig", envConfig+"="+m.config).CombinedOutput()
				mutex.Lock()
				switch {
				case err == nil:
					t.Errorf("%s: it survives", m.name)
				case !strings.Contains(string(out), "violated: "+m.invariant+": "):
					t.Errorf("%s: it should violate %s, but: %s", m.name, m.invariant, out)
				default:
					caught++
					t.Logf("%s: %s", m.name, regexp.MustCompile(`after \d+ states`).Find(out))
				}
				mutex.Unlock()
			}
		})
	}
	for i := range all {
		work <- i
	}
	close(work)
	group.Wait()
	t.Logf("mutants caught: %d/%d", caught, len(all))
}

// envConfig names the one exploration of TestMutantConfig.
const envConfig = "KEYTURN_EXPLORE_CONFIG"

// TestMutantConfig explores the configurations that are made for mutants: all of
// them on the machine as it is, one of them when it runs in a mutant. They end a
// little after the number of states at which the mutants are caught.
func TestMutantConfig(t *testing.T) {
	only := os.Getenv(envConfig)
	found := false
	for _, c := range mutantConfigs() {
		if only != "" && only != c.name {
			continue
		}
		found = true
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.fill()
			x := newExplorer(c)
			start := time.Now()
			if f := x.explore(); f != nil {
				t.Fatalf("after %d states: %s", len(x.parents), f.tell(c))
			}
			t.Logf("%d states in %v", len(x.parents), time.Since(start))
		})
	}
	if !found {
		t.Fatalf("there is no configuration %q", only)
	}
}
