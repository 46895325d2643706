package policy

import (
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/key"
)

// Topology is what a provider says about the system of a key.
type Topology struct {
	// Endpoints are the places that verify a version.
	Endpoints []Endpoint
	// Capacity is how many versions the system holds at the same time; 0 means any number.
	Capacity int
	// Gap says that accepting a version refuses the one before it in the same instant.
	Gap bool
}

// Endpoint is one verifier.
type Endpoint struct {
	Name   string
	Region string
}

// PlanInput is what Plan looks at.
type PlanInput struct {
	Now      time.Time
	Key      KeyInfo
	Facts    Facts
	Parties  []Party
	Topology Topology
}

// Timeline is what a rotation of a key would do.
type Timeline struct {
	Key    key.Name `json:"key"`
	Policy string   `json:"policy"`
	// Decision is what Due says. When there is no schedule, or when the next start
	// is not known, the steps begin at PlanInput.Now, as if started by hand.
	Decision Decision `json:"decision"`
	Manual   bool     `json:"manual"`
	// Approvals is how many people must agree first.
	Approvals int    `json:"approvals"`
	Steps     []Step `json:"steps"`
	// Problems would hold the rotation or surprise.
	Problems []Problem `json:"problems,omitempty"`
}

// Step is one step of a Timeline.
type Step struct {
	// Phase is the phase of the rotation, for example "presenting".
	Phase string `json:"phase"`
	// Stage is the stage's name, for the phase presenting.
	Stage string `json:"stage,omitempty"`
	// What says what happens.
	What string `json:"what"`
	// Who are the parties or endpoints concerned, sorted.
	Who []string `json:"who,omitempty"`
	// Begin is the earliest begin. End is the earliest end; Latest is the end at
	// which the rotation stops waiting, zero if it waits without limit.
	Begin  time.Time `json:"begin"`
	End    time.Time `json:"end"`
	Latest time.Time `json:"latest,omitzero"`
}

// Plan returns what would happen when, and to whom. It fails when an expression
// of the policy cannot be evaluated.
func (c *Compiled) Plan(in PlanInput) (Timeline, error) {
	spec := c.policy.Spec
	t := Timeline{Key: in.Key.Name, Policy: c.Name(), Decision: c.Due(in.Now, in.Facts)}
	var err error
	if t.Approvals, err = c.Approvals(in.Key); err != nil {
		return Timeline{}, err
	}
	begin := t.Decision.At
	t.Manual = begin.IsZero()
	if begin.Before(in.Now) {
		begin = in.Now
	}
	report := reporter(func(f finding) {
		t.Problems = append(t.Problems, Resource{Policy: &c.policy}.problem(f))
	})

	p := &planner{at: begin, latest: begin, timeline: &t}
	what := "check windows, freezes and the system"
	if t.Approvals > 0 {
		what = fmt.Sprintf("%s; wait for %d to approve", what, t.Approvals)
		p.unbounded = true
	}
	p.step("planned", "", what, nil, 0, 0)
	p.step("minting", "", "generate the new version and store it", nil, 0, 0)
	p.step("accepting", "", "verifiers accept the new version beside the old one", in.Topology.names(), 0, 0)
	if in.Topology.Gap {
		p.timeline.Steps[len(p.timeline.Steps)-1].What = "verifiers accept the new version and, in the same moment, refuse the old one"
		if !spec.AllowGap {
			report.err("spec.allowGap", "gap-not-allowed", "the system refuses the old version in the moment it accepts the new one", "set allowGap: true if that is acceptable")
		}
	}
	if err := c.planStages(p, in, report); err != nil {
		return Timeline{}, err
	}

	p.step("draining", "", fmt.Sprintf("the old version stays accepted until it was unused for %s, at least %s; then at most %s, then %s", spec.Drain.Quiet, spec.Drain.Min, spec.Drain.Max, spec.Drain.OnMax), nil, spec.Drain.grace(), spec.Drain.Max)
	if spec.Drain.OnMax == MaxHold {
		p.unbounded = true
	}
	p.step("revoking", "", "verifiers refuse the old version; it is tried and must be refused", in.Topology.names(), 0, 0)
	p.step("quarantine", "", "the old version can be restored in one step", nil, spec.Quarantine, spec.Quarantine)
	if spec.Retain.DestroyAfter > 0 {
		p.step("quarantine", "", "the sealed material is retained", nil, spec.Retain.DestroyAfter, spec.Retain.DestroyAfter)
	}
	what = "the old version is destroyed"
	if spec.Retain.Escrow {
		what = "the old version is sealed into escrow"
	}
	p.step("destroying", "", what, nil, 0, 0)
	if in.Topology.Capacity > 0 && spec.Rotate.Every > 0 && begin.Add(spec.Rotate.Every.Std()).Before(p.at) && in.Topology.Capacity <= 2 {
		report.warn("spec.rotate.every", "no-room", fmt.Sprintf("the system holds %d versions, and the old one is gone only %s after a start: the next rotation waits for it", in.Topology.Capacity, Duration(p.at.Sub(begin))), "shorten quarantine, or set endQuarantineEarly")
	}
	return t, nil
}

// planStages adds a step for each stage.
func (c *Compiled) planStages(p *planner, in PlanInput, report reporter) error {
	members := make([][]string, len(c.waves))
	var left []string
	for _, party := range in.Parties {
		i, ok, err := c.Stage(in.Key, party)
		switch {
		case err != nil:
			return err
		case ok:
			members[i] = append(members[i], party.label())
		default:
			left = append(left, party.label())
		}
	}
	for i, w := range c.waves {
		stage := w.stage
		slices.Sort(members[i])
		switch {
		case len(members[i]) > 0:
			p.step("presenting", stage.Name, fmt.Sprintf("parties use the new version and acknowledge within %s, then bake for %s", stage.AckTimeout, stage.Bake), members[i], stage.Bake, stage.AckTimeout+stage.Bake)
		case stage.OnEmpty == EmptySkip:
			if len(c.policy.Spec.Stages[w.of].Regions) > 0 && w.region == "" {
				continue // no party is of a region that the stage does not order
			}
			p.step("presenting", stage.Name, "no party belongs to the stage; it is skipped", nil, 0, 0)
		default:
			p.step("presenting", stage.Name, "no party belongs to the stage; the rotation holds", nil, 0, 0)
			p.unbounded = true
			report.warn(indexPath("spec.stages", w.of), "empty-stage", fmt.Sprintf("no party belongs to stage %s: the rotation would hold there", quote(stage.Name)), "label a party for it, or set onEmpty: skip")
		}
	}
	if len(left) > 0 {
		slices.Sort(left)
		p.step("presenting", "", "these parties belong to no stage and would never be moved", left, 0, 0)
		p.unbounded = true
		report.err("spec.stages", "no-stage", fmt.Sprintf("%d parties belong to no stage", len(left)), "add a final stage without match")
	}
	return nil
}

// label returns the party's name, or its ID if it has none.
func (p Party) label() string {
	if p.Name != "" {
		return p.Name
	}
	return p.ID
}

func (t Topology) names() []string {
	names := make([]string, len(t.Endpoints))
	for i, e := range t.Endpoints {
		names[i] = e.Name
		if e.Region != "" {
			names[i] += " (" + e.Region + ")"
		}
	}
	slices.Sort(names)
	return names
}

// planner adds steps one after the other.
type planner struct {
	timeline   *Timeline
	at, latest time.Time
	// unbounded says that from here on no latest time is known.
	unbounded bool
}

func (p *planner) step(phase, stage, what string, who []string, least, most Duration) {
	s := Step{Phase: phase, Stage: stage, What: what, Who: who, Begin: p.at, End: p.at.Add(least.Std())}
	p.at, p.latest = s.End, p.latest.Add(most.Std())
	if !p.unbounded {
		s.Latest = p.latest
	}
	p.timeline.Steps = append(p.timeline.Steps, s)
}
