package anomaly

import (
	"encoding/binary"
	"hash/fnv"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/policy"
)

// Seen is a network or an application that a source told of, and when it was seen.
type Seen struct {
	Source string `json:"source,omitempty"`
	Name   string `json:"name"`
	// First is zero for what is known from before it was listed here.
	First time.Time `json:"first,omitzero"`
	Last  time.Time `json:"last"`
}

// Prints are 64-bit hashes, of 8 bytes each, of what made room in a list: known
// still, with no time. The young become the old when there are MaxPrints of them,
// or after half of Kept; the old are forgotten then.
type Prints struct {
	Turned time.Time `json:"turned,omitzero"`
	Young  []byte    `json:"young,omitempty"`
	Old    []byte    `json:"old,omitempty"`
}

// New is how many networks were new within a span of noveltySpan.
type New struct {
	At    time.Time `json:"at"`
	Count int       `json:"count"`
}

const printSize = 8

// printOf is met by another network by chance once in 2^54 networks, of all that can
// be known.
func printOf(source, name string) []byte {
	h := fnv.New64a()
	_, _ = h.Write([]byte(source + "\x00" + name)) // it never fails
	return binary.BigEndian.AppendUint64(nil, h.Sum64())
}

func holds(list, one []byte) bool {
	for i := 0; i+printSize <= len(list); i += printSize {
		if string(list[i:i+printSize]) == string(one) {
			return true
		}
	}
	return false
}

func (p Prints) clone() Prints {
	p.Young, p.Old = slices.Clone(p.Young), slices.Clone(p.Old)
	return p
}

// Len returns how many there are.
func (p *Prints) Len() int { return (len(p.Young) + len(p.Old)) / printSize }

func (p *Prints) has(one []byte) bool { return holds(p.Young, one) || holds(p.Old, one) }

// drop forgets one, and reports whether it was there.
func (p *Prints) drop(one []byte) (was bool) {
	for _, list := range []*[]byte{&p.Young, &p.Old} {
		for i := 0; i+printSize <= len(*list); i += printSize {
			if string((*list)[i:i+printSize]) == string(one) {
				*list, was = slices.Delete(*list, i, i+printSize), true
				break
			}
		}
	}
	return was
}

// turn forgets what is too old.
func (p *Prints) turn(at time.Time) {
	switch age := at.Sub(p.Turned); {
	case age >= Kept:
		p.Young, p.Old, p.Turned = nil, nil, at
	case age >= Kept/2:
		p.Young, p.Old, p.Turned = nil, p.Young, at
	}
}

func (p *Prints) add(one []byte, at time.Time) {
	if holds(p.Young, one) {
		return
	}
	if len(p.Young) >= MaxPrints*printSize {
		p.Young, p.Old, p.Turned = nil, p.Young, at
	}
	p.Young = append(p.Young, one...)
}

// learn notes that something was seen, and reports whether it was not known. What
// was not seen for the longest time makes room, and leaves its print in prints, unless
// that is nil.
func learn(list []Seen, prints *Prints, source, name string, at time.Time) (after []Seen, isNew bool) {
	if name == "" {
		return list, false
	}
	if prints != nil {
		prints.turn(at)
	}
	list = slices.DeleteFunc(list, func(s Seen) bool { return at.Sub(s.Last) > Kept })
	if i := slices.IndexFunc(list, func(s Seen) bool { return s.Name == name && s.Source == source }); i >= 0 {
		if at.After(list[i].Last) {
			list[i].Last = at
		}
		return list, false
	}
	one := Seen{Source: source, Name: name, Last: at}
	if isNew = prints == nil || !prints.has(printOf(source, name)); isNew {
		one.First = at
	}
	if len(list) >= MaxSeen {
		oldest := 0
		for i := range list {
			if list[i].Last.Before(list[oldest].Last) {
				oldest = i
			}
		}
		if prints != nil {
			prints.add(printOf(list[oldest].Source, list[oldest].Name), at)
		}
		list = slices.Delete(list, oldest, oldest+1)
	}
	return append(list, one), isNew
}

// watched notes since when a source tells of the key.
func (m *Memory) watched(source string, at time.Time) {
	if _, ok := m.Sources[source]; ok || len(m.Sources) >= MaxSources {
		return
	}
	if m.Sources == nil {
		m.Sources = map[string]time.Time{}
	}
	m.Sources[source] = at
}

// met counts a new network. The first day is not counted: all are new then.
func (m *Memory) met(at time.Time) {
	if at.Sub(m.Since) >= firstDay {
		m.News = countNew(m.News, at, 1, roamWithin)
	}
}

// countNew counts new networks, and forgets those of spans that ended longer ago than
// kept.
func countNew(list []New, at time.Time, n int, kept time.Duration) []New {
	list = slices.DeleteFunc(list, func(n New) bool { return at.Sub(n.At) > kept+2*noveltySpan })
	begin := at.Truncate(noveltySpan)
	if i := slices.IndexFunc(list, func(n New) bool { return n.At.Equal(begin) }); i >= 0 {
		list[i].Count = add(list[i].Count, n)
		return list
	}
	list = append(list, New{At: begin, Count: n})
	return list[max(0, len(list)-int(kept/noveltySpan)-3):]
}

// roams reports whether new networks are usual for the key, to a rule: whether it met
// more of them than Roams in the week before a time, those apart that the rule fired
// on. These count when they become known: after confirm, or when they were accepted.
func (m *Memory) roams(before time.Time, seen *RuleSeen, confirm time.Duration) bool {
	within := func(at time.Time) bool {
		end := at.Add(noveltySpan)
		return !end.After(before) && before.Sub(end) < roamWithin
	}
	sum := 0
	for _, n := range m.News {
		if !within(n.At) {
			continue
		}
		doubted := 0
		if i := slices.IndexFunc(seen.Doubted, func(d New) bool { return d.At.Equal(n.At) }); i >= 0 {
			doubted = seen.Doubted[i].Count
		}
		sum = add(sum, n.Count-min(n.Count, doubted))
	}
	for _, n := range seen.Doubted {
		if within(n.At.Add(confirm)) {
			sum = add(sum, n.Count)
		}
	}
	for _, n := range seen.Learnt {
		if within(n.At) {
			sum = add(sum, n.Count)
		}
	}
	return sum > Roams
}

// isNew reports whether something was not seen by a source before the window began,
// although that had told of the key for long enough, and had seen something else.
func (m *Memory) isNew(list []Seen, source, name string, at, begin time.Time, learning time.Duration) policy.Known {
	since, ok := m.Sources[source]
	if name == "" || !ok && len(m.Sources) >= MaxSources {
		return policy.Unknown
	}
	first := at
	if i := slices.IndexFunc(list, func(s Seen) bool { return s.Name == name && s.Source == source }); i >= 0 {
		first = list[i].First
	}
	others := slices.ContainsFunc(list, func(s Seen) bool { return s.Name != name && s.Source == source && s.First.Before(first) })
	return policy.Truth(first.After(begin) && others && !first.Before(since.Add(learning)))
}
