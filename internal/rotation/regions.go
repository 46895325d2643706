package rotation

import (
	"cmp"
	"slices"
	"time"

	"github.com/keyturn/keyturn/key"
)

// RegionProgress is how far a rotation is in one region, and what it waits for
// there. The barriers between the phases hold for all regions at once: none goes
// further than the one that is furthest behind allows.
type RegionProgress struct {
	// Region is the name of the failure domain, empty for the default one.
	Region string
	// Verifiers is how many there are, Accepting how many of them are proven to
	// accept the version that is brought in, Refusing how many are proven to refuse
	// the other or never heard of it. Rolling back, the old version is brought in.
	Verifiers, Accepting, Refusing int
	// Presenters is how many there are, Using how many certainly use, and only use,
	// the version that is brought in.
	Presenters, Using int
	// LateVerifiers and LatePresenters are those that the rotation waits for now,
	// sorted.
	LateVerifiers, LatePresenters []string
	// Trouble is the last error of one of them.
	Trouble string
	// Since is when the rotation began to wait for them: when it entered its phase or
	// its stage. Zero when it waits for nobody here, or only for verifiers that take
	// their time.
	Since time.Time
}

// Late reports whether the rotation waits for the region.
func (p *RegionProgress) Late() bool { return len(p.LateVerifiers)+len(p.LatePresenters) > 0 }

// Regions says how far the open rotation r is in each region that a verifier or
// presenter of the key is in, sorted by name.
func (s *State) Regions(r *Rotation) []RegionProgress {
	var list []RegionProgress
	in := func(region string) *RegionProgress {
		i, known := slices.BinarySearchFunc(list, region, func(p RegionProgress, name string) int { return cmp.Compare(p.Region, name) })
		if !known {
			list = slices.Insert(list, i, RegionProgress{Region: region})
		}
		return &list[i]
	}
	bringIn, giveUp := r.To, r.From
	if r.Phase == RollingBack {
		bringIn, giveUp = r.From, r.To
	}
	for i := range s.Verifiers {
		w := &s.Verifiers[i]
		p := in(w.Region)
		p.Verifiers++
		if accepts(w, bringIn) {
			p.Accepting++
		}
		slot, asked := w.Slot(giveUp)
		if !asked || slot.Acceptance == Refused {
			p.Refusing++
		}
		if trouble, since, late := s.late(r, w); late {
			p.LateVerifiers = append(p.LateVerifiers, w.ID)
			p.Trouble = cmp.Or(p.Trouble, trouble)
			if !w.takesTime() {
				p.wait(since)
			}
		}
	}
	for i := range s.Presenters {
		presenter := &s.Presenters[i]
		p := in(presenter.Region)
		p.Presenters++
		if presenter.Uses(bringIn) {
			p.Using++
		}
		if since, late := r.awaits(presenter); late {
			p.LatePresenters = append(p.LatePresenters, presenter.ID)
			p.wait(since)
		}
	}
	return list
}

// wait notes since when something is waited for; the earliest counts.
func (p *RegionProgress) wait(since time.Time) {
	if p.Since.IsZero() || since.Before(p.Since) {
		p.Since = since
	}
}

// takesTime reports whether the verifier has said that it needs some time for what
// it is asked.
func (w *Verifier) takesTime() bool {
	return slices.ContainsFunc(w.Slots, func(slot Slot) bool { return slot.Waits != "" })
}

// late reports whether r waits for the verifier, since when, and its last error.
func (s *State) late(r *Rotation, w *Verifier) (trouble string, since time.Time, late bool) {
	old, _ := w.Slot(r.From)
	if v, ok := s.Version(r.From); ok && v.Contained && old.Acceptance != 0 && old.Acceptance != Refused {
		return old.Trouble, r.StartedAt, true // whatever the phase
	}
	if r.Hold.Reason == HoldOperator {
		return "", time.Time{}, false
	}
	if slices.Contains(r.Unreached, w.ID) {
		return cmp.Or(r.Task.Trouble, r.Hold.Message), r.UnreachedSince, true
	}
	next, _ := w.Slot(r.To)
	switch r.Phase {
	case Accepting:
		trouble, late = next.Trouble, next.Acceptance != Accepted
	case Revoking:
		trouble, late = old.Trouble, old.refusing()
	case RollingBack:
		trouble, late = next.Trouble, next.refusing()
		if s.returning(r) && w.Admitted && old.Acceptance != Accepted {
			trouble, late = old.Trouble, true
		}
	case Planned, Minting, Presenting, Draining, Quarantine, Destroying, Done, RolledBack, Failed, Cancelled, Superseded:
	}
	return trouble, r.PhaseSince, late
}

// returning reports whether presenters shall return to r's old version that may be
// using the new one still.
func (s *State) returning(r *Rotation) bool {
	from, ok := s.Version(r.From)
	if r.Phase != RollingBack || !ok || from.Contained || from.State == key.Compromised && s.Gap {
		return false
	}
	return slices.ContainsFunc(s.Presenters, func(p Presenter) bool { return p.MayUse(r.To) })
}

// refusing reports whether the verifier was asked to refuse and is not proven to.
func (s Slot) refusing() bool { return s.Acceptance == RefusePending || s.Acceptance == RefuseProbing }

// awaits reports whether r waits for the presenter, and since when.
func (r *Rotation) awaits(p *Presenter) (since time.Time, late bool) {
	if r.Hold.Reason == HoldOperator {
		return time.Time{}, false
	}
	switch r.Phase {
	case Presenting:
		return r.StageSince, stageOf(p, r) <= r.Stage && !p.Uses(r.To)
	case Draining, Revoking:
		return r.PhaseSince, p.MayUse(r.From)
	case RollingBack:
		return r.PhaseSince, p.MayUse(r.To)
	case Planned, Minting, Accepting, Quarantine, Destroying, Done, RolledBack, Failed, Cancelled, Superseded:
	}
	return time.Time{}, false
}

// RegionOf returns the region of a verifier or presenter, empty when it is in
// none or there is none with the ID.
func (s *State) RegionOf(id string) string {
	if w, ok := s.Verifier(id); ok {
		return w.Region
	}
	if p, ok := s.Presenter(id); ok {
		return p.Region
	}
	return ""
}

// unreached notes at which verifiers the rotation's own effect failed, none when
// it did not.
func (m *machine) unreached(r *Rotation, verifiers []string) {
	switch {
	case len(verifiers) == 0:
		r.UnreachedSince = time.Time{}
	case len(r.Unreached) == 0:
		r.UnreachedSince = m.Now
	}
	r.Unreached = verifiers
}
