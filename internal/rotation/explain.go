package rotation

import (
	"cmp"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/key"
)

// Waiting is one thing a rotation waits for.
type Waiting struct {
	// Reason is machine-readable: "approval", "window", "cut-over", "effect",
	// "verifier", "presenter", "bake", "use", "grace", "quarantine", "retention", "hold"
	// or "restore".
	Reason  string
	Message string
	// Region and Names say where and who, as far as that applies; names are sorted.
	Region string
	Names  []string
	// Until is when it is over by itself; zero if that is not known.
	Until time.Time
}

// Explain says what the rotation with r.ID waits for, most important first. An
// open rotation always waits for something.
func (s *State) Explain(r *Rotation) []Waiting {
	var list []Waiting
	add := func(w Waiting) { list = append(list, w) }
	if s.Standing() {
		add(Waiting{Reason: "restore", Message: s.WhyStanding()})
	}
	if r.Hold.Reason != "" {
		add(Waiting{Reason: "hold", Message: r.Hold.Message})
	}
	if v, ok := s.Version(r.From); ok && v.Contained && r.Phase < Revoking {
		// Contain-first: whether the leaked version is refused everywhere comes first.
		s.explainVerifiers(r.From, false, add)
	}
	switch r.Phase {
	case Planned:
		s.explainPlanned(r, add)
	case Minting:
		add(Waiting{Reason: "effect", Message: fmt.Sprintf("%v to be generated and stored", r.To)})
	case Accepting:
		s.explainVerifiers(r.To, true, add)
	case Presenting:
		s.explainPresenting(r, add)
	case Draining:
		s.explainPresenters("to stop using", r, func(p *Presenter) bool { return p.MayUse(r.From) }, add)
		if until := r.PhaseSince.Add(r.Plan.DrainMin); until.After(s.Now) && r.Plan.Strategy == 0 {
			add(Waiting{Reason: "grace", Message: fmt.Sprintf("the minimum grace of %v", r.From), Until: until})
		}
		w := Waiting{Reason: "use", Message: fmt.Sprintf("measured use of %v to be zero for %v", r.From, r.Plan.DrainQuiet)}
		if !r.QuietSince.IsZero() {
			w.Until = r.QuietSince.Add(r.Plan.DrainQuiet)
		}
		if r.Plan.Strategy != 0 {
			// Whoever is not registered is not waited for any longer than that.
			w.Message += ", or the emergency's grace to be over"
			if end := r.PhaseSince.Add(r.Plan.Grace); w.Until.IsZero() || end.Before(w.Until) {
				w.Until = end
			}
		}
		s.explainUnreached(r, w, add)
	case Revoking:
		s.explainPresenters("to stop using", r, func(p *Presenter) bool { return p.MayUse(r.From) }, add)
		s.explainVerifiers(r.From, false, add)
	case Quarantine:
		add(Waiting{Reason: "quarantine", Message: fmt.Sprintf("the quarantine of %v", r.From), Until: r.PhaseSince.Add(r.Plan.Quarantine)})
	case Destroying:
		w := Waiting{Reason: "retention", Message: fmt.Sprintf("%v to be destroyed", r.From)}
		if v, ok := s.Version(r.From); ok {
			w.Until = v.DestroyAt
		}
		add(w)
	case RollingBack:
		if s.returning(r) {
			s.explainVerifiers(r.From, true, add)
		}
		s.explainPresenters("to stop using", r, func(p *Presenter) bool { return p.MayUse(r.To) }, add)
		s.explainVerifiers(r.To, false, add)
	case Done, RolledBack, Failed, Cancelled, Superseded:
	}
	return list
}

func (s *State) explainPlanned(r *Rotation, add func(Waiting)) {
	if r.Plan.NotBefore.After(s.Now) {
		add(Waiting{Reason: "window", Message: "its start", Until: r.Plan.NotBefore})
	}
	if missing := r.Plan.Approvals - len(r.Approvals); missing > 0 {
		add(Waiting{Reason: "approval", Message: fmt.Sprintf("%d of %d approvals", missing, r.Plan.Approvals), Names: r.Approvals})
	}
	if cut, open := s.CutOver(); open {
		add(Waiting{Reason: "cut-over", Message: fmt.Sprintf("rotation %v to end its cut-over", cut.ID)})
	}
	if r.Task.Waiting {
		s.explainUnreached(r, Waiting{Reason: "effect", Message: "the preflight checks: " + orFine(r.Task.Trouble)}, add)
	}
}

// explainUnreached adds what is waited for once for each region in which the
// rotation's own effect failed, with the verifiers; as it is where none is known.
func (s *State) explainUnreached(r *Rotation, w Waiting, add func(Waiting)) {
	var regions []string
	names := map[string][]string{}
	for _, id := range r.Unreached {
		region := s.RegionOf(id)
		if _, known := names[region]; !known {
			regions = append(regions, region)
		}
		names[region] = append(names[region], id)
	}
	for _, region := range regions {
		w.Region, w.Names = region, names[region]
		add(w)
	}
	if len(regions) == 0 {
		add(w)
	}
}

func orFine(trouble string) string {
	if trouble == "" {
		return "under way"
	}
	return trouble
}

func (s *State) explainVerifiers(v key.Version, accept bool, add func(Waiting)) {
	want, verb := Refused, "refuse"
	if accept {
		want, verb = Accepted, "accept"
	}
	regions := map[string]*Waiting{}
	var order []string
	for i := range s.Verifiers {
		w := &s.Verifiers[i]
		slot, asked := w.Slot(v)
		if slot.Acceptance == want || !asked && !accept {
			continue
		}
		waiting, ok := regions[w.Region]
		if !ok {
			waiting = &Waiting{Reason: "verifier", Region: w.Region, Message: fmt.Sprintf("verifiers to %s %v", verb, v)}
			regions[w.Region] = waiting
			order = append(order, w.Region)
		}
		waiting.Names = append(waiting.Names, w.ID)
		if why := cmp.Or(slot.Trouble, slot.Waits); why != "" {
			waiting.Message += "; " + w.ID + ": " + why
		}
	}
	for _, region := range order {
		add(*regions[region])
	}
}

func (s *State) explainPresenting(r *Rotation, add func(Waiting)) {
	s.explainPresenters("to use", r, func(p *Presenter) bool { return stageOf(p, r) <= r.Stage && !p.Uses(r.To) }, add)
	if stage := r.Plan.Stages[r.Stage]; !r.BakeSince.IsZero() {
		add(Waiting{Reason: "bake", Message: "stage " + stage.Name + " to bake", Until: r.BakeSince.Add(stage.Bake)})
	}
}

func (s *State) explainPresenters(what string, r *Rotation, late func(*Presenter) bool, add func(Waiting)) {
	version := r.To
	if r.Phase != Presenting && r.Phase != RollingBack {
		version = r.From
	}
	regions := map[string]*Waiting{}
	var order []string
	for i := range s.Presenters {
		p := &s.Presenters[i]
		if !late(p) {
			continue
		}
		waiting, ok := regions[p.Region]
		if !ok {
			waiting = &Waiting{Reason: "presenter", Region: p.Region, Message: fmt.Sprintf("presenters %s %v", what, version)}
			regions[p.Region] = waiting
			order = append(order, p.Region)
		}
		waiting.Names = append(waiting.Names, p.ID)
	}
	for _, region := range order {
		add(*regions[region])
	}
}
