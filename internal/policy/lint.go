package policy

import (
	"fmt"
	"time"
)

// LintOptions says what Lint may look at beside the resources.
type LintOptions struct {
	// Known are resources that exist already, for example on the server. They
	// satisfy references; they are not checked themselves.
	Known []Resource
	// Providers are the names of the providers there are; empty means unknown.
	Providers []string
	// CheckConfig checks a key's config block and says what the system looks like.
	// Nil leaves config blocks unchecked. It must not do IO.
	CheckConfig func(provider string, config map[string]any) (Topology, []ConfigProblem)
	// Now is the time, for warnings about what has expired. Zero leaves them out.
	Now time.Time
}

// ConfigProblem is one problem in a key's config block. Path leads to the field
// within the block, for example "users[1]"; empty means the block itself.
type ConfigProblem struct {
	Path, Problem, Hint string
}

// Lint checks what Parse cannot: expressions and schedules, and how resources
// fit together. It returns the problems in the order of files and lines, nil if
// there are none; Problems.Err tells whether one of them is an error.
func Lint(resources []Resource, o LintOptions) Problems {
	c, err := newCompiler()
	if err != nil {
		return Problems{{Severity: Error, Code: "internal", Message: err.Error()}}
	}
	l := &linter{options: o, compiler: c, policies: map[string]*Policy{}}
	def := Default()
	l.policies[DefaultName] = &def
	for _, list := range [][]Resource{o.Known, resources} {
		for _, r := range list {
			if r.Policy != nil {
				l.policies[r.Name()] = r.Policy
			}
		}
	}
	l.duplicates(resources)
	for _, r := range resources {
		report := reporter(func(f finding) { l.problems = append(l.problems, r.problem(f)) })
		switch r.Kind() {
		case KindPolicy:
			before := len(l.problems)
			compiled := c.policy(*r.Policy, report)
			if l.problems[before:].Err() == nil {
				l.policy(compiled, report.within("spec"))
			}
		case KindFreeze:
			c.compile(c.key, r.Freeze.Spec.Match, "spec.match", report)
			l.expired(r.Freeze.Spec.To, "spec.to", report)
		case KindRule:
			l.rule(r.Rule, report.within("spec"))
		case KindKey:
			l.key(r.Key, report)
		default:
			l.problems = append(l.problems, Problem{Severity: Error, Code: "internal", Message: "an empty resource"})
		}
	}
	l.problems.sort()
	return l.problems
}

type linter struct {
	options  LintOptions
	compiler *compiler
	policies map[string]*Policy
	problems Problems
}

func (l *linter) duplicates(resources []Resource) {
	seen := map[string]Resource{}
	for _, r := range resources {
		id := r.String()
		first, twice := seen[id]
		if !twice {
			seen[id] = r
			continue
		}
		at := first.Source.Locate("metadata.name")
		l.problems = append(l.problems, r.problem(finding{
			severity: Error, path: "metadata.name", code: "duplicate-resource",
			message: fmt.Sprintf("%s exists already in %s:%d:%d", id, first.Source.File, at.Line, at.Col),
			hint:    "remove or rename one of them",
		}))
	}
}

func (l *linter) expired(to time.Time, path string, r reporter) {
	if !l.options.Now.IsZero() && !to.IsZero() && !to.After(l.options.Now) {
		r.warn(path, "freeze-expired", "the freeze is over since "+stamp(to), "remove it")
	}
}

// policy checks a policy whose expressions and windows are right.
func (l *linter) policy(c *Compiled, r reporter) {
	spec := c.policy.Spec
	l.stages(c, r)
	if len(spec.Judge) > 0 {
		if spec.CutOver() == 0 {
			r.err("judge", "judge-without-bake", "no stage bakes, so that there is nothing to judge and every rotation would hold", "give the stages a bake, for example 2m")
		} else {
			for i, s := range spec.Stages {
				if s.Bake == 0 {
					r.warn(joinPath(indexPath("stages", i), "bake"), "judge-without-bake", fmt.Sprintf("stage %s does not bake, so that its judges see no samples", quote(s.Name)), "give it a bake, for example 2m")
				}
			}
		}
	}
	if spec.Approvals.When != "" && spec.Approvals.Required == 0 {
		r.warn("approvals.when", "approvals-without-number", "nobody is required, so that the condition has no effect", "set approvals.required")
	}
	if spec.Drain.OnMax == MaxRevoke {
		r.warn("drain.onMax", "revokes-in-use", fmt.Sprintf("after %s the old version is revoked even while it is used", spec.Drain.Max), "use hold, so that a human decides")
	}
	for i, f := range spec.Freeze {
		l.expired(f.To, joinPath(indexPath("freeze", i), "to"), r)
	}
	if !spec.Rotate.IsZero() {
		l.schedule(c, r)
	}
}

func (l *linter) stages(c *Compiled, r reporter) {
	stages := c.policy.Spec.Stages
	catchAll := -1
	for i, s := range stages {
		at := indexPath("stages", i)
		switch e := c.stages[i]; {
		case catchAll >= 0:
			r.err(at, "stage-unreachable", fmt.Sprintf("stage %s is never reached: stage %s takes every party", quote(s.Name), quote(stages[catchAll].Name)), "move the stage without match to the end")
		case s.Match == "" || e.literal && e.value:
			catchAll = i
		case e.literal:
			r.err(joinPath(at, "match"), "stage-matches-nobody", fmt.Sprintf("stage %s matches no party", quote(s.Name)), "remove it, or write a condition")
		}
	}
	if catchAll < 0 {
		last := len(stages) - 1
		r.err(indexPath("stages", last), "no-final-stage", "a party that matches no stage would never be moved to the new version", "add a final stage without match")
	}
}

// schedule checks the windows and the cryptoperiod against what a rotation takes.
func (l *linter) schedule(c *Compiled, r reporter) {
	spec := c.policy.Spec
	rotate, need := spec.Rotate, spec.CutOver()
	for i, w := range rotate.Windows {
		at := indexPath("rotate.windows", i)
		switch {
		case w.Duration <= need:
			r.err(joinPath(at, "duration"), "window-too-short", fmt.Sprintf("a window of %s is too short: the stages bake for %s", w.Duration, need), "make the window longer or the bakes shorter; otherwise no rotation ever starts")
		case rotate.Jitter > w.Duration-need:
			r.err("rotate.jitter", "jitter-exceeds-window", fmt.Sprintf("%s does not fit into a window of %s of which the stages need %s", rotate.Jitter, w.Duration, need), fmt.Sprintf("write at most %s", w.Duration-need))
		}
	}
	l.rareWindows(c, r)
	retired := need + spec.Drain.grace()
	switch {
	case rotate.Every < retired:
		r.err("rotate.every", "period-too-short", fmt.Sprintf("%s is shorter than a rotation: the stages bake for %s and the old version drains for at least %s", rotate.Every, need, spec.Drain.grace()), fmt.Sprintf("write at least %s", retired))
	case rotate.Every < retired+spec.Quarantine && !spec.EndQuarantineEarly:
		r.warn("rotate.every", "versions-pile-up", fmt.Sprintf("%s is shorter than cut-over, drain and quarantine (%s): on a system that holds two versions the next rotation waits", rotate.Every, retired+spec.Quarantine), "shorten quarantine, or set endQuarantineEarly: true")
	}
}

// rareWindows warns when windows open more rarely than keys become due.
func (l *linter) rareWindows(c *Compiled, r reporter) {
	if len(c.windows) == 0 {
		return
	}
	now := l.options.Now
	if now.IsZero() {
		now = reference()
	}
	longest, last := time.Duration(0), time.Time{}
	for range 100 {
		var next time.Time
		for _, w := range c.windows {
			if at := w.next(now); !at.IsZero() && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
		if next.IsZero() {
			break
		}
		if !last.IsZero() {
			longest = max(longest, next.Sub(last))
		}
		now, last = next, next
	}
	if every := c.policy.Spec.Rotate.Every; longest > every.Std() {
		r.warn("rotate.windows", "windows-too-rare", fmt.Sprintf("no window opens for up to %s, so that versions get that much older than %s", Duration(longest), every), "open windows more often, or raise every")
	}
}

func (l *linter) key(k *Key, r reporter) {
	p := l.policies[k.PolicyName()]
	if p == nil {
		r.err("spec.policy", "unknown-policy", "there is no policy "+quote(k.Spec.Policy), suggest(k.Spec.Policy, sortedKeys(l.policies)))
	}
	if k.Metadata.Owner == "" {
		r.warn("metadata", "no-owner", "the key has no owner", "name the team that answers for it in metadata.owner")
	}
	if len(l.options.Providers) > 0 {
		known := false
		for _, name := range l.options.Providers {
			known = known || name == k.Spec.Provider
		}
		if !known {
			r.err("spec.provider", "unknown-provider", "there is no provider "+quote(k.Spec.Provider), suggest(k.Spec.Provider, l.options.Providers))
			return
		}
	}
	if l.options.CheckConfig == nil {
		return
	}
	topology, problems := l.options.CheckConfig(k.Spec.Provider, k.Spec.Config)
	for _, problem := range problems {
		r.err(joinPath("spec.config", problem.Path), "config", problem.Problem, problem.Hint)
	}
	if len(problems) == 0 && p != nil && topology.Gap && !p.Spec.AllowGap {
		r.err("spec.config", "gap-not-allowed", fmt.Sprintf("this system refuses the old version in the moment it accepts the new one, and policy %s does not allow that", quote(p.Metadata.Name)), "choose a configuration without a gap, or set allowGap: true in the policy")
	}
}
