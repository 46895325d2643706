// Package anomaly decides by rules which uses of keys are anomalous.
//
// Guarantees:
//
//   - Fold is a function of its arguments: it reads no clock and has no effect. The
//     same uses lead to the same verdicts, however they are divided into calls, so
//     that a rule can be tried on the recorded past.
//   - An expression that cannot be evaluated gives a verdict of its own, NoData. It
//     never matches, and is never passed over.
//   - A use that was refused teaches nothing: neither its network nor its
//     application becomes known by it.
//   - What is remembered of a key is bounded. Where it is full, counts are kept and
//     what is known is forgotten: there may be an alarm too many, never one too few.
//   - A key for which new networks are usual is told apart by what was learnt of it.
//     What a rule fired on because it was new is not learnt, for that rule, before
//     somebody confirms it or its time is over: who is found teaches nothing.
//   - Each source is learnt by itself: what one tells of is not new, nor counted
//     twice, because another begins to tell of the same use.
package anomaly

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/key"
)

// Bounds of what is remembered of one key.
const (
	// MaxSeen bounds the networks and the applications that are known with their times.
	MaxSeen = 64
	// MaxPrints bounds those known by their hashes alone, of each of two generations.
	MaxPrints = 512
	// MaxSources bounds the sources.
	MaxSources = 8
	// Roams is how many new networks a key may meet in a week, before a further one is
	// nothing unusual for it.
	Roams = 7
	// MaxRecent bounds the counts of recent uses, by version, network and span.
	MaxRecent = 256
	// MaxMatches bounds the anomalous uses of each rule within its window.
	MaxMatches = 32
	// MaxFired bounds for how many versions each rule remembers that it fired.
	MaxFired = 16
	// Kept is how long a network or an application is known without being seen.
	Kept = 30 * 24 * time.Hour
	// Again is the shortest time after which a rule fires again for a version.
	Again = time.Hour
	// span is the resolution of counts.
	span = 10 * time.Second
	// roamWithin is the week of Roams, noveltySpan the resolution in which new networks
	// are counted.
	roamWithin  = 7 * 24 * time.Hour
	noveltySpan = 6 * time.Hour
	// firstDay is for how long new networks are not counted.
	firstDay = 24 * time.Hour
	// MaxText bounds each text of a use, in bytes.
	MaxText = 128
)

// Use is one observation of a version being used, or tried, as it is recorded.
type Use struct {
	At      time.Time   `json:"at"`
	Source  string      `json:"source"`
	Version key.Version `json:"version"`
	// State and Label are those of the version at that time; State is empty when the
	// version was not known any more.
	State       string `json:"state,omitempty"`
	Label       string `json:"label,omitempty"`
	Application string `json:"application,omitempty"`
	Address     string `json:"address,omitempty"`
	Region      string `json:"region,omitempty"`
	Count       int    `json:"count"`
	// Refused: the verifier let nobody in. Revoked: the version had been accepted
	// before, and was not any more.
	Refused bool `json:"refused,omitempty"`
	Revoked bool `json:"revoked,omitempty"`
	// Known says whether a known party uses the key so, Replay whether something that
	// may be shown once was shown again.
	Known  policy.Known `json:"known,omitempty"`
	Replay policy.Known `json:"replay,omitempty"`
}

// Network returns the network that an address belongs to: the /24 of an IPv4
// address, the /48 of an IPv6 address; empty for what is no address.
func Network(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return ""
	}
	a = a.Unmap().WithZone("")
	bits := 48
	if a.Is4() {
		bits = 24
	}
	prefix, err := a.Prefix(bits)
	if err != nil {
		return ""
	}
	return prefix.String()
}

// Memory is what is remembered of the uses of one key. The zero value remembers
// nothing. It is a value: Fold does not change the one it is given.
type Memory struct {
	// Since is when the first use was seen, Sources when each source told of the first.
	Since        time.Time            `json:"since,omitzero"`
	Sources      map[string]time.Time `json:"sources,omitempty"`
	Networks     []Seen               `json:"networks,omitempty"`
	Applications []Seen               `json:"applications,omitempty"`
	// Older are networks that made room in the list above.
	Older Prints `json:"older,omitzero"`
	// News counts networks that were new.
	News   []New               `json:"news,omitempty"`
	Recent []Recent            `json:"recent,omitempty"`
	Rules  map[string]RuleSeen `json:"rules,omitempty"`
}

// Recent is how often a version was used from a network within a span, as a source
// tells.
type Recent struct {
	At      time.Time   `json:"at"`
	Source  string      `json:"source,omitempty"`
	Version key.Version `json:"version"`
	Network string      `json:"network,omitempty"`
	Count   int         `json:"count"`
}

// RuleSeen is what one rule remembers.
type RuleSeen struct {
	Matches []Recent `json:"matches,omitempty"`
	Fired   []Fired  `json:"fired,omitempty"`
	// NoData is when it was told last that there is no data.
	NoData time.Time `json:"noData,omitzero"`
	// Doubts are what it fired on because it was new, Told when it told of any last.
	// Doubted counts the networks that it fired on by when they were met, Learnt those
	// that were accepted since by when that was.
	Doubts  []Doubt   `json:"doubts,omitempty"`
	Told    time.Time `json:"told,omitzero"`
	Doubted []New     `json:"doubted,omitempty"`
	Learnt  []New     `json:"learnt,omitempty"`
}

// Fired is when a rule fired for a version.
type Fired struct {
	Version key.Version `json:"version"`
	At      time.Time   `json:"at"`
	Force   Force       `json:"force,omitempty"`
}

// Verdict is what a rule says of a use.
type Verdict struct {
	Rule string
	// NoData is why the condition could not be evaluated; nil for an anomaly.
	NoData error
	// Use is the one that made the rule fire, Uses how many anomalous ones of its
	// version there were within the window.
	Use  Use
	Uses int
	// Repeated: it reminds of what it told of before, and nothing else is anomalous.
	Repeated bool
	// Spec is the rule as it was then.
	Spec policy.RuleSpec
}

// String says what was found, for humans.
func (v Verdict) String() string {
	who := v.Use.Application
	if who == "" {
		who = "somebody"
	}
	where := ""
	if v.Use.Address != "" {
		where = " at " + v.Use.Address
	}
	if v.NoData != nil {
		return fmt.Sprintf("rule %s has no data on the use of %v by %s%s: %v", v.Rule, v.Use.Version, who, where, v.NoData)
	}
	refused := ""
	if v.Use.Refused {
		refused = ", refused"
	}
	uses := fmt.Sprintf("%d uses", v.Uses)
	if v.Uses == 1 {
		uses = "1 use"
	}
	said := fmt.Sprintf("rule %s: %s of %v within %s, at last by %s%s (%s%s)", v.Rule, uses, v.Use.Version, v.Spec.Window, who, where, v.Use.Source, refused)
	if v.Repeated {
		said += ", which was told of before and is confirmed by nobody"
	}
	return said
}

// Fold takes uses of a key into account, in their order, and returns what the rules
// that watch the key say of them.
func Fold(before Memory, rules []*policy.CompiledRule, k policy.KeyInfo, uses []Use) (Memory, []Verdict) {
	m := before.clone()
	watching, verdicts := watchers(&m, rules, k, uses)
	longest := 5 * time.Minute
	names := map[string]bool{}
	for _, rule := range rules {
		names[rule.Name()] = true
		longest = max(longest, rule.Spec().Window.Std())
	}
	maps.DeleteFunc(m.Rules, func(name string, _ RuleSeen) bool { return !names[name] })
	for i := range uses {
		u := &uses[i]
		m.see(u, longest)
		for _, rule := range watching {
			if v, ok := m.judge(rule, k, u); ok {
				verdicts = append(verdicts, v)
			}
		}
	}
	return m, verdicts
}

// watchers returns the rules that watch the key, and a verdict on those of which
// that cannot be told.
func watchers(m *Memory, rules []*policy.CompiledRule, k policy.KeyInfo, uses []Use) (list []*policy.CompiledRule, verdicts []Verdict) {
	for _, rule := range rules {
		is, err := rule.Watches(k)
		switch {
		case err != nil && len(uses) > 0:
			if v, ok := m.noData(rule, &uses[0], err); ok {
				verdicts = append(verdicts, v)
			}
		case is:
			list = append(list, rule)
		}
	}
	return list, verdicts
}

func (m *Memory) clone() Memory {
	c := *m
	c.Sources, c.News, c.Recent = maps.Clone(m.Sources), slices.Clone(m.News), slices.Clone(m.Recent)
	c.Networks, c.Applications, c.Older = slices.Clone(m.Networks), slices.Clone(m.Applications), m.Older.clone()
	c.Rules = map[string]RuleSeen{}
	for name, r := range m.Rules {
		r.Matches, r.Fired = slices.Clone(r.Matches), slices.Clone(r.Fired)
		r.Doubts, r.Doubted, r.Learnt = slices.Clone(r.Doubts), slices.Clone(r.Doubted), slices.Clone(r.Learnt)
		c.Rules[name] = r
	}
	return c
}

// see remembers a use.
func (m *Memory) see(u *Use, longest time.Duration) {
	if m.Since.IsZero() {
		m.Since = u.At
	}
	network := Network(u.Address)
	m.Recent = count(m.Recent, Recent{At: u.At, Source: u.Source, Version: u.Version, Network: network, Count: u.Count}, u.At.Add(-longest), MaxRecent)
	if u.Refused {
		return
	}
	m.watched(u.Source, u.At)
	var isNew bool
	if m.Networks, isNew = learn(m.Networks, &m.Older, u.Source, network, u.At); isNew {
		m.met(u.At)
	}
	m.Applications, _ = learn(m.Applications, nil, u.Source, u.Application, u.At)
}

// count adds to the counts after a time; where they are full, the oldest is added
// to the next one of its version and source, or else to that of whatever there is.
func count(list []Recent, one Recent, after time.Time, most int) []Recent {
	list = slices.DeleteFunc(list, func(r Recent) bool { return !r.At.After(after) })
	for i := range list {
		r := &list[i]
		if r.Version == one.Version && r.Network == one.Network && r.Source == one.Source && one.At.Sub(r.At).Abs() < span {
			r.Count = add(r.Count, one.Count)
			return list
		}
	}
	list = append(list, one)
	if len(list) > most {
		old, to := list[0], 1
		if i := slices.IndexFunc(list[1:], func(r Recent) bool { return r.Version == old.Version && r.Source == old.Source }); i >= 0 {
			to = i + 1
		}
		list[to].Count = add(list[to].Count, old.Count)
		list = slices.Delete(list, 0, 1)
	}
	return list
}

// maxCount keeps sums from overflowing.
const maxCount = 1 << 52

func add(a, b int) int { return min(min(max(a, 0), maxCount)+min(max(b, 0), maxCount), maxCount) }

// judge asks a rule about a use that was seen.
func (m *Memory) judge(rule *policy.CompiledRule, k policy.KeyInfo, u *Use) (Verdict, bool) {
	spec := rule.Spec()
	seen := m.Rules[rule.Name()]
	if seen.settle(u.At) {
		m.Rules[rule.Name()] = seen
	}
	v := m.variable(u, &spec, &seen)
	is, err := rule.Anomalous(k, &v.Use)
	if err != nil {
		return m.noData(rule, u, err)
	}
	if !is {
		return Verdict{}, false
	}
	why := causeOf(rule, k, &v)
	begin := u.At.Add(-spec.Window.Std())
	seen.Matches = count(seen.Matches, Recent{At: u.At, Version: u.Version, Count: u.Count}, begin, MaxMatches)
	uses := 0
	for i := range seen.Matches {
		if seen.Matches[i].Version == u.Version {
			uses = add(uses, seen.Matches[i].Count)
		}
	}
	fires := uses >= spec.AtLeast
	switch {
	case !fires:
	case why.doubted:
		fires = seen.remind(u.At)
	default:
		if !u.Refused { // what was refused teaches nothing, nothing of it need be doubted
			m.doubt(&seen, why, u, &spec)
		}
		fires = seen.fresh(u.Version, u.At, max(Again, spec.Window.Std()), forceOf(&spec))
	}
	if fires && why.news() {
		seen.Told = u.At
	}
	m.Rules[rule.Name()] = seen
	return Verdict{Rule: rule.Name(), Use: *u, Uses: uses, Spec: spec, Repeated: why.doubted}, fires
}

// doubt has a rule doubt what was new.
func (m *Memory) doubt(seen *RuleSeen, why cause, u *Use, spec *policy.RuleSpec) {
	first := func(list []Seen, name string) time.Time {
		if i := slices.IndexFunc(list, func(s Seen) bool { return s.Name == name && s.Source == u.Source }); i >= 0 {
			return list[i].First
		}
		return u.At
	}
	if network := Network(u.Address); why.network {
		seen.doubt(KindNetwork, u, network, first(m.Networks, network), m.Since, spec)
	}
	if why.application {
		seen.doubt(KindApplication, u, u.Application, first(m.Applications, u.Application), m.Since, spec)
	}
}

// noData is the verdict of a rule that cannot be evaluated, told from time to time.
func (m *Memory) noData(rule *policy.CompiledRule, u *Use, err error) (Verdict, bool) {
	seen := m.Rules[rule.Name()]
	if !seen.NoData.IsZero() && u.At.Sub(seen.NoData) < Again {
		return Verdict{}, false
	}
	seen.NoData = u.At
	m.Rules[rule.Name()] = seen
	return Verdict{Rule: rule.Name(), NoData: err, Use: *u, Spec: rule.Spec()}, true
}

// variable is what conditions see of a use.
type variable struct {
	policy.Use

	// What is new for no other reason than that the rule doubts it.
	networkDoubted, applicationDoubted bool
}

// variable returns what the conditions of a rule see of a use.
func (m *Memory) variable(u *Use, spec *policy.RuleSpec, seen *RuleSeen) variable {
	window := spec.Window.Std()
	begin := u.At.Add(-window)
	out := variable{Use: policy.Use{
		Source: u.Source, Version: u.Version, State: u.State, Label: u.Label, Application: u.Application, Address: u.Address,
		Network: Network(u.Address), Region: u.Region, Count: u.Count, At: u.At, Refused: u.Refused, AfterRevocation: u.Revoked,
		Replay: u.Replay, Known: u.Known,
	}}
	out.Roaming = m.roams(begin, seen, spec.Confirm.Std())
	out.NewNetwork = m.isNew(m.Networks, u.Source, out.Network, u.At, begin, spec.Learn.Std())
	switch {
	case out.NewNetwork == policy.Yes && out.Roaming:
		out.NewNetwork = policy.No // to meet new networks is what this key does
	case out.NewNetwork == policy.No && !out.Roaming:
		if is, done := seen.doubts(KindNetwork, u.Source, out.Network, forceOf(spec)); is {
			out.NewNetwork, out.networkDoubted = policy.Yes, done
		}
	}
	out.NewApplication = m.isNew(m.Applications, u.Source, u.Application, u.At, begin, spec.Learn.Std())
	if is, done := seen.doubts(KindApplication, u.Source, u.Application, forceOf(spec)); is && out.NewApplication == policy.No {
		out.NewApplication, out.applicationDoubted = policy.Yes, done
	}
	networks := map[string]bool{}
	for i := range m.Recent {
		r := &m.Recent[i]
		if !r.At.After(begin) || r.At.After(u.At) {
			continue
		}
		if r.Version == u.Version && r.Source == u.Source {
			out.Total = add(out.Total, r.Count)
		}
		if r.Network != "" {
			networks[r.Network] = true
		}
	}
	out.Networks = len(networks)
	out.Rate = float64(out.Total) / window.Minutes()
	return out
}

// Sort brings uses into the order in which they happened.
func Sort(uses []Use) {
	slices.SortStableFunc(uses, func(a, b Use) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Address, b.Address))
	})
}
