package anomaly

import (
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/key"
)

// Kind says what can be known of a key. The zero value is invalid.
type Kind string

// The kinds.
const (
	KindNetwork     Kind = "network"
	KindApplication Kind = "application"
)

// maxConfirm is the longest time for which a rule can doubt something.
const maxConfirm = 30 * 24 * time.Hour

const (
	// MaxDoubts bounds what one rule doubts at a time.
	MaxDoubts = 32
	// Reminds is how often a rule fires again on what it doubts, over all of that.
	Reminds = 24 * time.Hour
)

// Doubt is a network or an application that a rule fired on because it was new. To
// that rule it stays new until Until, or until somebody confirms it: what nobody
// looked at is not learnt by being used.
type Doubt struct {
	Kind   Kind   `json:"kind"`
	Source string `json:"source,omitempty"`
	Name   string `json:"name"`
	// First is when it was met.
	First time.Time `json:"first"`
	Until time.Time `json:"until"`
	// Force is what followed.
	Force Force `json:"force,omitempty"`
}

// Force is how much follows when a rule fires: 0 in a dry run, 1 for an alert, 2 for an
// emergency, 3 for one that contains first. What was found with less is found again.
type Force int

func forceOf(spec *policy.RuleSpec) Force {
	switch {
	case spec.Mode == policy.ModeDryRun:
		return 0
	case spec.Then == policy.ReactAlert:
		return 1
	case spec.Then == policy.ReactSuspend, spec.Strategy == policy.ContainFirst:
		return 3
	}
	return 2
}

// doubted returns the place of a doubt in the list; -1 if there is none.
func (s *RuleSeen) doubted(kind Kind, source, name string) int {
	return slices.IndexFunc(s.Doubts, func(d Doubt) bool { return d.Kind == kind && d.Source == source && d.Name == name })
}

// doubts reports whether the rule doubts something, and whether as much as now follows
// has followed already.
func (s *RuleSeen) doubts(kind Kind, source, name string, force Force) (is, done bool) {
	i := s.doubted(kind, source, name)
	if name == "" || i < 0 {
		return false, false
	}
	return true, s.Doubts[i].Force >= force
}

// settle drops what was doubted for long enough, and reports whether anything did.
func (s *RuleSeen) settle(at time.Time) bool {
	i := slices.IndexFunc(s.Doubts, func(d Doubt) bool { return !d.Until.After(at) })
	if i < 0 {
		return false
	}
	s.Doubts = slices.DeleteFunc(s.Doubts, func(d Doubt) bool { return !d.Until.After(at) })
	return true
}

// undoubt takes a network back from those that were doubted when they were met, and
// reports whether it was one of them.
func (s *RuleSeen) undoubt(d *Doubt) bool {
	i := slices.IndexFunc(s.Doubted, func(n New) bool { return n.At.Equal(d.First.Truncate(noveltySpan)) && n.Count > 0 })
	if d.Kind != KindNetwork || i < 0 {
		return false
	}
	s.Doubted[i].Count--
	return true
}

// doubt notes what was new about a use and made the rule fire. since is when the key
// was seen first: networks of its first day do not count as new ones, nor as doubted.
func (s *RuleSeen) doubt(kind Kind, u *Use, name string, first, since time.Time, spec *policy.RuleSpec) {
	keep, force := spec.Confirm.Std(), forceOf(spec)
	if keep <= 0 || name == "" {
		return
	}
	if i := s.doubted(kind, u.Source, name); i >= 0 {
		if d := &s.Doubts[i]; d.Force < force {
			d.Force, d.Until = force, u.At.Add(keep)
		}
		return
	}
	if kind == KindNetwork && first.Sub(since) >= firstDay {
		s.Doubted = countNew(s.Doubted, first, 1, maxConfirm+roamWithin)
	}
	s.Doubts = append(s.Doubts, Doubt{Kind: kind, Source: u.Source, Name: name, First: first, Until: u.At.Add(keep), Force: force})
	s.Doubts = s.Doubts[max(0, len(s.Doubts)-MaxDoubts):]
}

// cause is what made a rule match a use. The zero value is something else than what
// is new.
type cause struct {
	network, application bool
	// doubted: nothing is new but what the rule fired on before.
	doubted bool
}

func (c cause) news() bool { return c.network || c.application || c.doubted }

// causeOf finds out whether a rule matches because something is new, by asking what
// it would say were that known.
func causeOf(rule *policy.CompiledRule, k policy.KeyInfo, v *variable) cause {
	asked := func(network, application policy.Known) bool {
		other := v.Use
		other.NewNetwork, other.NewApplication = network, application
		is, err := rule.Anomalous(k, &other)
		return is && err == nil
	}
	known := func(is policy.Known) policy.Known {
		if is == policy.Yes {
			return policy.No
		}
		return is
	}
	if v.NewNetwork != policy.Yes && v.NewApplication != policy.Yes || asked(known(v.NewNetwork), known(v.NewApplication)) {
		return cause{}
	}
	// What is really new: without what is doubted.
	network, application := v.NewNetwork, v.NewApplication
	if v.networkDoubted {
		network = policy.No
	}
	if v.applicationDoubted {
		application = policy.No
	}
	if !asked(network, application) {
		return cause{doubted: true}
	}
	return cause{
		network:     network == policy.Yes && (asked(network, known(application)) || !asked(policy.No, application)),
		application: application == policy.Yes && (asked(known(network), application) || !asked(network, policy.No)),
	}
}

// Selection says which of what is known of a key is meant.
type Selection struct {
	// Networks and Applications are names, of any source; All are all of both.
	Networks, Applications []string
	All                    bool
	// Roaming, of Forget alone: that new networks are usual for the key.
	Roaming bool
}

func (s *Selection) has(kind Kind, name string) bool {
	list := s.Networks
	if kind == KindApplication {
		list = s.Applications
	}
	return s.All || slices.Contains(list, name)
}

// Accept makes known what rules doubt, and returns what that was.
func (m *Memory) Accept(which Selection, at time.Time) (after Memory, accepted []Doubt) {
	after = m.clone()
	for name, seen := range after.Rules {
		seen.Doubts = slices.DeleteFunc(seen.Doubts, func(d Doubt) bool {
			is := which.has(d.Kind, d.Name)
			if is {
				if seen.undoubt(&d) {
					seen.Learnt = countNew(seen.Learnt, at, 1, roamWithin)
				}
				accepted = append(accepted, d)
			}
			return is
		})
		if which.All { // also those that the list had no place for
			for _, n := range seen.Doubted {
				seen.Learnt = countNew(seen.Learnt, at, n.Count, roamWithin)
			}
			seen.Doubted = nil
		}
		after.Rules[name] = seen
	}
	return after, accepted
}

// Forget makes new again what is known, and returns the names of what that was. With
// All the key is learnt anew, from the next use on, and nothing is new until then.
func (m *Memory) Forget(which Selection) (after Memory, forgotten []string) {
	after = m.clone()
	drop := func(kind Kind, list []Seen) []Seen {
		return slices.DeleteFunc(list, func(s Seen) bool {
			is := which.has(kind, s.Name)
			if is {
				after.Older.drop(printOf(s.Source, s.Name))
				forgotten = append(forgotten, s.Name)
			}
			return is
		})
	}
	after.Networks, after.Applications = drop(KindNetwork, after.Networks), drop(KindApplication, after.Applications)
	for _, name := range which.Networks { // known by its hash alone
		for source := range after.Sources {
			if after.Older.drop(printOf(source, name)) && !slices.Contains(forgotten, name) {
				forgotten = append(forgotten, name)
			}
		}
	}
	for name, seen := range after.Rules {
		seen.Doubts = slices.DeleteFunc(seen.Doubts, func(d Doubt) bool {
			is := which.has(d.Kind, d.Name)
			if is {
				seen.undoubt(&d)
			}
			return is
		})
		if which.Roaming || which.All {
			seen.Doubted, seen.Learnt = nil, nil
		}
		after.Rules[name] = seen
	}
	if which.Roaming || which.All {
		after.News = nil
	}
	if which.All {
		after.Since, after.Sources, after.Older = time.Time{}, nil, Prints{}
	}
	slices.Sort(forgotten)
	return after, slices.Compact(forgotten)
}

// Doubts returns what a rule doubts at a time.
func (m *Memory) Doubts(rule string, at time.Time) []Doubt {
	return slices.DeleteFunc(slices.Clone(m.Rules[rule].Doubts), func(d Doubt) bool { return !d.Until.After(at) })
}

// Roams reports whether new networks are usual for the key at a time, to a rule that
// doubts for confirm; an empty name stands for one that never fired.
func (m *Memory) Roams(rule string, confirm time.Duration, at time.Time) bool {
	seen := m.Rules[rule]
	return m.roams(at, &seen, confirm)
}

// remind reports whether it is time to tell again of what is doubted.
func (s *RuleSeen) remind(at time.Time) bool { return at.Sub(s.Told) >= Reminds }

// fresh reports whether a rule may fire for a version now, and notes that it does.
func (s *RuleSeen) fresh(v key.Version, at time.Time, again time.Duration, force Force) bool {
	s.Fired = slices.DeleteFunc(s.Fired, func(f Fired) bool { return at.Sub(f.At) >= again })
	if slices.ContainsFunc(s.Fired, func(f Fired) bool { return f.Version == v && f.Force >= force }) {
		return false
	}
	s.Fired = slices.DeleteFunc(s.Fired, func(f Fired) bool { return f.Version == v })
	s.Fired = append(s.Fired, Fired{Version: v, At: at, Force: force})
	s.Fired = s.Fired[max(0, len(s.Fired)-MaxFired):]
	return true
}
