// Package breaker remembers which targets do not answer, so that they are left
// alone for a while and then asked by one call at a time.
//
// Guarantees:
//
//   - A target is silent after Config.Failures calls in a row that it did not
//     answer, and no longer when it has answered one.
//   - A silent target is asked by one call at a time, after a pause that doubles
//     up to Config.Last and is spread, so that what failed together is not
//     repeated together.
//   - Of calls that do not return although their time is over at most
//     Config.Abandoned are left to themselves for each target; then nothing is
//     asked of it until one has returned.
//   - Memory is bounded: what is not asked any more is forgotten, and no more
//     than MaxTargets are remembered.
//
// It reads no clock: callers say what time it is.
package breaker

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// MaxTargets is how many targets are remembered; what others do is not.
const MaxTargets = 8192

// forgotten is after how long a target that could be asked, and was not, is
// forgotten.
const forgotten = 5 * time.Minute

// Config is what a Set goes by. All fields are required.
type Config struct {
	// Failures in a row make a target silent.
	Failures int
	// First is the pause before a silent target is asked for the first time, Last
	// the longest one.
	First, Last time.Duration
	// Abandoned is how many calls that do not return may be left to themselves for
	// each target.
	Abandoned int
	// Spread returns a random duration from 0 up to, and without, d.
	Spread func(d time.Duration) time.Duration
}

// Set is the state of many targets. Its methods may be called concurrently.
type Set struct {
	config  Config
	mu      sync.Mutex
	targets map[string]*target
}

type target struct {
	failures  int       // in a row
	since     time.Time // when the first of them began
	probeAt   time.Time // when it may be asked again, once it is silent
	cause     string
	abandoned int
	last      time.Time // when it was last heard of
}

// Silent is a target that does not answer.
type Silent struct {
	Target string
	// Since is when the first call began that it did not answer.
	Since time.Time
	// ProbeAt is when it is asked again.
	ProbeAt time.Time
	// Cause is the last error.
	Cause string
	// Abandoned is how many calls have not returned although their time is over.
	Abandoned int
}

// New returns a Set that knows no target.
func New(config Config) *Set { return &Set{config: config, targets: map[string]*target{}} }

// Answered tells that a target has answered a call, whatever it said.
func (s *Set) Answered(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, known := s.targets[name]
	if !known {
		return
	}
	t.failures, t.cause = 0, ""
	s.dropIdle(name, t)
}

// Failed tells that a target did not answer the call that began at the given
// time, and why.
func (s *Set) Failed(name, cause string, began, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.of(name, now)
	if t == nil {
		return
	}
	t.last, t.cause = now, cause
	if t.failures++; t.failures == 1 {
		t.since = began
	}
	if t.failures < s.config.Failures {
		return
	}
	pause := s.config.Last
	if doublings := t.failures - s.config.Failures; doublings < 20 {
		pause = min(pause, s.config.First<<doublings)
	}
	t.probeAt = now.Add(pause/2 + s.config.Spread(pause/2))
}

// Abandoned tells that a call was left to itself: its time is over, and it has
// not returned.
func (s *Set) Abandoned(name string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.of(name, now); t != nil {
		t.last = now
		t.abandoned++
	}
}

// Returned tells that a call has returned after all.
func (s *Set) Returned(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, known := s.targets[name]; known && t.abandoned > 0 {
		t.abandoned--
		s.dropIdle(name, t)
	}
}

// of returns what is known of a target, or nil when no more can be remembered.
func (s *Set) of(name string, now time.Time) *target {
	if t, known := s.targets[name]; known {
		return t
	}
	if len(s.targets) >= MaxTargets {
		s.forget(now)
	}
	if len(s.targets) >= MaxTargets {
		return nil
	}
	t := &target{last: now}
	s.targets[name] = t
	return t
}

func (s *Set) dropIdle(name string, t *target) {
	if t.failures == 0 && t.abandoned == 0 {
		delete(s.targets, name)
	}
}

// forget drops targets that nobody asks any more.
func (s *Set) forget(now time.Time) {
	for name, t := range s.targets {
		last := t.last
		if t.failures >= s.config.Failures {
			last = t.probeAt
		}
		if t.abandoned == 0 && now.Sub(last) >= forgotten {
			delete(s.targets, name)
		}
	}
}

// Bounds returns how many calls may run at once for each target that is not to
// be treated like others, of which may run most.
func (s *Set) Bounds(now time.Time, most int) map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(now)
	var bounds map[string]int
	for name, t := range s.targets {
		bound := max(0, most-t.abandoned)
		switch {
		case t.abandoned >= s.config.Abandoned:
			bound = 0
		case t.failures < s.config.Failures:
		case now.Before(t.probeAt):
			bound = 0
		default:
			bound = min(bound, 1)
		}
		if bound == most {
			continue
		}
		if bounds == nil {
			bounds = map[string]int{}
		}
		bounds[name] = bound
	}
	return bounds
}

// Next returns the next moment after now at which a silent target may be asked
// again, or the zero time.
func (s *Set) Next(now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	var next time.Time
	for _, t := range s.targets {
		if t.failures >= s.config.Failures && t.probeAt.After(now) && (next.IsZero() || t.probeAt.Before(next)) {
			next = t.probeAt
		}
	}
	return next
}

// Find returns the target if it is silent.
func (s *Set) Find(name string) (Silent, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, known := s.targets[name]
	if !known || !s.silent(t) {
		return Silent{}, false
	}
	return s.describe(name, t), true
}

// List returns the silent targets by name.
func (s *Set) List() []Silent {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Silent
	for name, t := range s.targets {
		if s.silent(t) {
			list = append(list, s.describe(name, t))
		}
	}
	slices.SortFunc(list, func(a, b Silent) int { return strings.Compare(a.Target, b.Target) })
	return list
}

func (s *Set) silent(t *target) bool {
	return t.failures >= s.config.Failures || t.abandoned >= s.config.Abandoned
}

func (s *Set) describe(name string, t *target) Silent {
	silent := Silent{Target: name, Since: t.since, ProbeAt: t.probeAt, Cause: t.cause, Abandoned: t.abandoned}
	if silent.Since.IsZero() {
		silent.Since = t.last
	}
	return silent
}
