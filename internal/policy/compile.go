package policy

import (
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/key"
)

// Compiled is a policy ready for use: its expressions are type-checked, its time
// zones loaded and its windows parsed. It is immutable and may be used concurrently.
type Compiled struct {
	policy    Policy
	stages    []*expression
	waves     []wave
	approvals *expression
	windows   []window
}

// Compile checks a policy, as Parse and Lint do, and prepares it. The error is a
// Problems that lists everything that is wrong; it is also ErrInvalid. Loading a
// time zone may read the machine's time-zone database unless time/tzdata is
// linked into the program.
func Compile(p Policy) (*Compiled, error) {
	c, err := newCompiler()
	if err != nil {
		return nil, err
	}
	res := Resource{Policy: &p}
	var problems Problems
	report := reporter(func(f finding) { problems = append(problems, res.problem(f)) })
	res.check(report)
	compiled := c.policy(p, report)
	if err := problems.Err(); err != nil {
		return nil, err
	}
	return compiled, nil
}

// policy compiles what it can and reports the rest.
func (c *compiler) policy(p Policy, r reporter) *Compiled {
	out := &Compiled{policy: p, waves: p.Spec.waves()}
	r = r.within("spec")
	for i, s := range p.Spec.Stages {
		out.stages = append(out.stages, c.compile(c.party, s.Match, joinPath(indexPath("stages", i), "match"), r))
	}
	out.approvals = c.compile(c.key, p.Spec.Approvals.When, "approvals.when", r)
	for i, w := range p.Spec.Rotate.Windows {
		if compiled, ok := compileWindow(w, r.within(indexPath("rotate.windows", i))); ok {
			out.windows = append(out.windows, compiled)
		}
	}
	return out
}

// Name returns the policy's name.
func (c *Compiled) Name() string { return c.policy.Metadata.Name }

// Spec returns the effective policy. The caller must not change what it refers to.
func (c *Compiled) Spec() Spec { return c.policy.Spec }

// Stage returns the index, within Stages, of the stage that a party of the key
// belongs to: the first one that matches, and of its regions the party's; a stage
// without match takes every party. ok is false when none matches, which Lint makes
// impossible by asking for a last stage without match. An error means that an
// expression could not be evaluated, for instance because a party's labels are
// beyond all bounds; nothing may be concluded from it.
func (c *Compiled) Stage(k KeyInfo, p Party) (index int, ok bool, err error) {
	for i, e := range c.stages {
		match, err := e.eval(k, p)
		if err != nil {
			return 0, false, fmt.Errorf("policy %s, stage %s: %w", c.Name(), c.policy.Spec.Stages[i].Name, err)
		}
		if match {
			return slices.IndexFunc(c.waves, func(w wave) bool { return w.of == i && w.takes(p) }), true, nil
		}
	}
	return 0, false, nil
}

// Approvals returns how many people must approve a rotation of the key.
func (c *Compiled) Approvals(k KeyInfo) (int, error) {
	if c.policy.Spec.Approvals.Required == 0 {
		return 0, nil
	}
	match, err := c.approvals.eval(k, Party{})
	if err != nil {
		return 0, fmt.Errorf("policy %s, approvals: %w", c.Name(), err)
	}
	if !match {
		return 0, nil
	}
	return c.policy.Spec.Approvals.Required, nil
}

// CompiledFreeze is a freeze ready for use. It is immutable and may be used concurrently.
type CompiledFreeze struct {
	freeze Freeze
	match  *expression
}

// CompileFreeze checks a freeze and prepares it. Its error is as that of Compile.
func CompileFreeze(f Freeze) (*CompiledFreeze, error) {
	c, err := newCompiler()
	if err != nil {
		return nil, err
	}
	res := Resource{Freeze: &f}
	var problems Problems
	report := reporter(func(f finding) { problems = append(problems, res.problem(f)) })
	res.check(report)
	out := &CompiledFreeze{freeze: f, match: c.compile(c.key, f.Spec.Match, "spec.match", report)}
	if err := problems.Err(); err != nil {
		return nil, err
	}
	return out, nil
}

// Applies returns the freeze's interval and whether it holds the key. An error
// means that the expression could not be evaluated; the key is then held.
func (c *CompiledFreeze) Applies(k KeyInfo) (Interval, bool, error) {
	match, err := c.match.eval(k, Party{})
	if err != nil {
		return c.freeze.Spec.interval(), true, fmt.Errorf("freeze %s: %w", c.freeze.Metadata.Name, err)
	}
	return c.freeze.Spec.interval(), match, nil
}

// Facts is what Due knows about a key. Times may be zero where they say so.
type Facts struct {
	// Key is the key's name; starts are spread by it.
	Key key.Name
	// Created is when the current version was created; zero if there is none. After
	// a roll-back it is the time of the version that is current again.
	Created time.Time
	// Scheduled is when the key's cadence last changed: the key was declared, was
	// given another policy, or its policy another cadence (SameCadence). Zero if unknown.
	Scheduled time.Time
	// LastStarted and LastFinished are those of the last rotation, however it ended;
	// zero if there was none.
	LastStarted, LastFinished time.Time
	// Open says that a cut-over of the key is planned or running.
	Open bool
	// Freezes are those that apply to the key beside the policy's own.
	Freezes []Interval
}
