package rotation

import "time"

// Wake returns the next moment at which a Tick could change something, or the
// zero time when only another event can. It is always after s.Now.
func (s *State) Wake() time.Time {
	var next time.Time
	at := func(t time.Time) {
		if t.After(s.Now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	if s.Standing() {
		return next
	}
	for i := range s.Versions {
		if v := &s.Versions[i]; !v.DestroyAt.IsZero() && !v.Destroy.Waiting {
			at(v.DestroyAt)
		}
	}
	for i := range s.Verifiers {
		for _, slot := range s.Verifiers[i].Slots {
			if slot.Failed && !slot.RetryAt.IsZero() {
				at(slot.RetryAt)
			}
		}
	}
	for i := range s.Rotations {
		s.Rotations[i].wake(at)
	}
	return next
}

func (r *Rotation) wake(at func(time.Time)) {
	after := func(since time.Time, d time.Duration) {
		if !since.IsZero() {
			at(since.Add(d))
		}
	}
	if r.Phase == Planned && !r.Plan.NotAfter.IsZero() {
		at(r.Plan.NotAfter.Add(time.Nanosecond))
	}
	if r.Hold.Human {
		return
	}
	switch r.Phase {
	case Planned:
		at(r.Plan.NotBefore)
	case Presenting:
		stage := r.Plan.Stages[r.Stage]
		if stage.AckTimeout > 0 {
			after(r.StageSince, stage.AckTimeout)
		}
		after(r.BakeSince, stage.Bake)
		at(r.JudgeAt)
	case Draining:
		after(r.PhaseSince, r.Plan.DrainMin)
		after(r.QuietSince, r.Plan.DrainQuiet)
		if r.Plan.DrainMax > 0 {
			after(r.PhaseSince, r.Plan.DrainMax)
		}
		if r.Plan.Strategy != 0 {
			after(r.PhaseSince, r.Plan.Grace)
		}
		at(r.MeasureAt)
	case Quarantine:
		after(r.PhaseSince, r.Plan.Quarantine)
	case RollingBack:
		if timeout := r.Plan.Stages[r.Stage].AckTimeout; timeout > 0 {
			after(r.StageSince, timeout)
		}
		after(r.QuietSince, r.Plan.DrainQuiet)
		at(r.MeasureAt)
	case Minting, Accepting, Revoking, Destroying, Done, RolledBack, Failed, Cancelled, Superseded:
	}
}
