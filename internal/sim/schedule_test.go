package sim

import (
	"slices"
	"testing/synctest"
	"time"
)

// The ends of a run.
const (
	// maxSteps bounds a run; one that takes more does not converge.
	maxSteps = 20_000
	// quietFor bounds the simulated time from the end of the faults to the end.
	quietFor = 20 * time.Minute
)

// run schedules until faults have stopped and everything has settled.
func (w *world) run() {
	var calmSince time.Time
	for {
		synctest.Wait()
		w.check()
		if w.violation != nil {
			return
		}
		w.step++
		if !w.calm && (w.lively > w.plan.trouble || w.step > 4*w.plan.trouble) {
			w.settleDown()
			calmSince = time.Now()
			continue
		}
		if w.calm && w.dirtied() && w.settled() {
			if !w.resumeHeld() {
				w.finalChecks()
				return
			}
			continue
		}
		if w.calm && time.Since(calmSince) > quietFor || w.step > maxSteps {
			w.violate("converges", "%v after the faults have stopped: %s", time.Since(calmSince), w.unsettled())
			return
		}
		if w.runPlans() || w.disturb() {
			continue
		}
		w.next()
	}
}

// runPlans does what was planned for now; one plan at a time.
func (w *world) runPlans() bool {
	w.mu.Lock()
	now := time.Now()
	first := -1
	for i, p := range w.plans {
		if !p.at.After(now) && (first < 0 || p.at.Before(w.plans[first].at)) {
			first = i
		}
	}
	if first < 0 {
		w.mu.Unlock()
		return false
	}
	p := w.plans[first]
	w.plans = slices.Delete(w.plans, first, first+1)
	w.mu.Unlock()
	w.note(0, p.what)
	p.do()
	return true
}

// next lets one request go on, or time pass.
func (w *world) next() {
	w.mu.Lock()
	now := time.Now()
	var ready []*request
	for _, r := range w.waiting {
		if !r.after.After(now) {
			ready = append(ready, r)
		}
	}
	if len(ready) == 0 || w.happens(pauseAll) {
		w.mu.Unlock()
		w.pass(len(ready) > 0)
		return
	}
	slices.SortFunc(ready, byLabel)
	r := ready[w.rng.IntN(len(ready))]
	if !r.repeat && r.kind != kindInner && w.delayed(r, now) {
		w.mu.Unlock()
		return
	}
	w.decide(r)
	// Every step takes its time, so that timers that began in different steps do not
	// end in the same moment: which one comes first would not follow from the seed.
	takes := time.Duration(20_000 + w.rng.Int64N(80_000))
	w.release(r) // from here on the request alone may draw
	w.mu.Unlock()
	time.Sleep(takes)
}

// delayed draws whether a request that could go on is late.
func (w *world) delayed(r *request, now time.Time) bool {
	late := map[kind]fault{kindCall: slowCall, kindMessage: lateMessage}[r.kind]
	if slices.Contains(r.faults, slowProbe) {
		late = slowProbe
	}
	if late == 0 || !w.happens(late) {
		return false
	}
	r.repeat, r.after = true, now.Add(w.some(25*time.Second))
	w.met(late)
	w.note(late, r.label)
	return true
}

// decide draws the fault that a request meets; the caller holds the lock.
func (w *world) decide(r *request) {
	if (r.kind == kindMessage || r.kind == kindCall) && r.from != r.to && w.isCut(r.from, r.to) {
		r.fault = partition
		w.note(partition, r.label)
		return
	}
	if !r.dull {
		w.lively++
	}
	for _, f := range r.faults {
		if r.dull && w.rng.IntN(4) > 0 {
			break
		}
		if f != slowProbe && w.happens(f) {
			r.fault = f
			w.met(f)
			break
		}
	}
	w.note(r.fault, r.label)
}

// pass lets time pass: to the next thing that happens by itself, or, when
// something could go on, for as long as a stalled machine may take.
func (w *world) pass(stalled bool) {
	if stalled {
		w.met(pauseAll)
		d := w.some(40 * time.Second)
		w.note(pauseAll, d.String())
		time.Sleep(d)
		return
	}
	w.mu.Lock()
	until := time.Now().Add(30 * time.Second)
	for _, r := range w.waiting {
		if r.after.Before(until) {
			until = r.after
		}
	}
	for _, p := range w.plans {
		if p.at.Before(until) {
			until = p.at
		}
	}
	w.mu.Unlock()
	select {
	case <-w.arrived:
	default:
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-w.arrived:
	case <-timer.C:
	}
}

// end stops everything, whatever it waits for.
func (w *world) end() {
	w.mu.Lock()
	w.over = true
	for len(w.waiting) > 0 {
		w.release(w.waiting[0])
	}
	w.mu.Unlock()
	for _, a := range w.agents {
		a.stop()
	}
	for _, n := range w.nodes {
		n.kill()
	}
	synctest.Wait()
}
