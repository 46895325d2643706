package scan

import (
	"slices"
	"strings"
)

// witnesses are texts one of which stands on a side of an anchor in every match.
type witnesses struct{ shortest, longest int }

// doubtful is an anchor, that of a rule, which may be of a match if there are witnesses.
type doubtful struct {
	span
	anchor [2]int
}

// witness has the automaton look for the texts of a side. known are the numbers of
// those that are looked for, of is what a text is for.
func (r *rules) witness(s *side, known map[string]int, of func(text string) *use) {
	if len(s.texts) == 0 {
		return
	}
	texts := slices.Compact(slices.Sorted(slices.Values(s.texts)))
	name := strings.Join(texts, "\x00")
	if known[name] == 0 {
		w := witnesses{shortest: len(texts[0])}
		known[name] = len(r.witnesses)
		for _, text := range texts {
			u := of(text)
			u.witnesses = append(u.witnesses, known[name])
			w.shortest, w.longest = min(w.shortest, len(text)), max(w.longest, len(text))
		}
		r.witnesses = append(r.witnesses, w)
	}
	s.witnesses = known[name]
}

// marks are where witnesses are in a text.
type marks struct {
	// ends are those of each of the witnesses, in order.
	ends [][]int
	// lines are where lines end; counted when they are asked for.
	lines   []int
	counted bool
}

func (m *marks) forget() {
	for i := range m.ends {
		m.ends[i] = m.ends[i][:0]
	}
	m.lines, m.counted = m.lines[:0], false
}

// between is how many lines end in text[from:to].
func (m *marks) between(text string, from, to int) int {
	if !m.counted {
		for at := 0; ; at++ {
			line := strings.IndexByte(text[at:], '\n')
			if line < 0 {
				break
			}
			at += line
			m.lines = append(m.lines, at)
		}
		m.counted = true
	}
	first, _ := slices.BinarySearch(m.lines, from)
	last, _ := slices.BinarySearch(m.lines, to)
	return last - first
}

// witnessed reports whether beside an anchor stands what has to. Of the extent between
// them only the lengths and the lines are looked at, so that it is true for every match.
func (r *rules) witnessed(a *anchor, text string, at span, m *marks) bool {
	if s := &a.before; s.witnesses != 0 {
		ends := m.ends[s.witnesses]
		i, _ := slices.BinarySearch(ends, at.from-s.between.least+1)
		if i == 0 || at.from-ends[i-1] > s.between.most || m.between(text, ends[i-1], at.from) > s.between.lines {
			return false
		}
	}
	if s := &a.after; s.witnesses != 0 {
		ends, w := m.ends[s.witnesses], &r.witnesses[s.witnesses]
		i, _ := slices.BinarySearch(ends, at.to+s.between.least+w.shortest)
		if i == len(ends) {
			return false
		}
		begin := max(at.to, ends[i]-w.longest)
		return begin-at.to <= s.between.most && m.between(text, at.to, begin) <= s.between.lines
	}
	return true
}
