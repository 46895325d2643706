package scan

import (
	"regexp/syntax"
	"slices"
	"strings"
	"unicode/utf8"
)

// unbounded is more than any text has, in bytes.
const unbounded = 1 << 40

// byteSet is a set of bytes.
type byteSet [256]bool

func (s *byteSet) add(other *byteSet) {
	for c, has := range other {
		s[c] = s[c] || has
	}
}

// apart reports whether two sets share nothing.
func (s *byteSet) apart(other *byteSet) bool {
	for c, has := range s {
		if has && other[c] {
			return false
		}
	}
	return true
}

// all reports whether a set has every byte.
func (s *byteSet) all() bool {
	for _, has := range s {
		if !has {
			return false
		}
	}
	return true
}

// extent is what a part of a pattern may match: from least to most bytes, all of
// chars, with so many ends of lines at most. Assertions count as nothing, so that it
// is never too little.
type extent struct {
	least, most, lines int
	chars              byteSet
}

// Letters outside ASCII that case folding makes equal to letters in it. What is around
// them in a text is searched as the library does it, so that no extent has them.
const (
	longS  = '\u017f'
	kelvin = '\u212a'
)

func extentOf(re *syntax.Regexp) extent {
	var e extent
	switch re.Op {
	case syntax.OpNoMatch, syntax.OpEmptyMatch, syntax.OpBeginLine, syntax.OpEndLine, syntax.OpBeginText, syntax.OpEndText,
		syntax.OpWordBoundary, syntax.OpNoWordBoundary:
	case syntax.OpLiteral:
		for _, r := range re.Rune {
			size := e.rune(r, re.Flags&syntax.FoldCase != 0)
			e.least, e.most = e.least+1, e.most+size
			if r == '\n' {
				e.lines++
			}
		}
	case syntax.OpCharClass:
		e.least, e.most = 1, 1
		for i := 0; i < len(re.Rune); i += 2 {
			for r := re.Rune[i]; r <= re.Rune[i+1]; r++ {
				if size := e.rune(r, false); size > 1 {
					e.most = size
					break // all bytes of other runes are in the set now
				}
			}
		}
		e.lines = e.line()
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		for c := range e.chars {
			e.chars[c] = c != '\n' || re.Op == syntax.OpAnyChar
		}
		e.least, e.most, e.lines = 1, utf8.UTFMax, e.line()
	case syntax.OpCapture:
		return extentOf(re.Sub[0])
	case syntax.OpStar:
		return extentOf(re.Sub[0]).times(0, -1)
	case syntax.OpPlus:
		return extentOf(re.Sub[0]).times(1, -1)
	case syntax.OpQuest:
		return extentOf(re.Sub[0]).times(0, 1)
	case syntax.OpRepeat:
		return extentOf(re.Sub[0]).times(re.Min, re.Max)
	case syntax.OpConcat:
		return extentOfAll(re.Sub)
	case syntax.OpAlternate:
		e = extentOf(re.Sub[0])
		for _, sub := range re.Sub[1:] {
			other := extentOf(sub)
			e.least, e.most, e.lines = min(e.least, other.least), max(e.most, other.most), max(e.lines, other.lines)
			e.chars.add(&other.chars)
		}
	}
	return e
}

// rune adds a rune and returns how many bytes it has at most.
func (e *extent) rune(r rune, fold bool) int {
	switch {
	case r == longS || r == kelvin:
		return 1
	case r >= utf8.RuneSelf:
		for c := utf8.RuneSelf; c < len(e.chars); c++ {
			e.chars[c] = true
		}
		return utf8.UTFMax
	}
	e.chars[r] = true
	if fold {
		e.chars[lowerByte(byte(r))], e.chars[upperByte(byte(r))] = true, true
	}
	return 1
}

// line is 1 if the end of a line is in the set, and 0 else.
func (e *extent) line() int {
	if e.chars['\n'] {
		return 1
	}
	return 0
}

// times is the extent repeated from least to most times; most below 0 is no bound.
func (e extent) times(least, most int) extent {
	e.least = min(e.least*least, unbounded)
	if most < 0 {
		most = unbounded
	}
	if e.most > 0 {
		e.most = min(most, unbounded/e.most) * e.most
	}
	if e.lines > 0 {
		e.lines = min(most, unbounded/e.lines) * e.lines
	}
	return e
}

// plus is an extent and then another.
func (e extent) plus(other *extent) extent {
	e.least, e.most, e.lines = min(e.least+other.least, unbounded), min(e.most+other.most, unbounded), min(e.lines+other.lines, unbounded)
	e.chars.add(&other.chars)
	return e
}

func extentOfAll(list []*syntax.Regexp) extent {
	var e extent
	for _, sub := range list {
		other := extentOf(sub)
		e = e.plus(&other)
	}
	return e
}

// side is what stands on one side of an anchor.
type side struct {
	extent
	// next is what stands right beside it, least bytes of it at least.
	next extent
	// texts: one of them is on this side, in lower case, and between is what stands
	// between it and the anchor; none: not known.
	texts   []string
	between extent
	// witnesses is the number of those texts among all such; any: chars are all there are.
	witnesses int
	any       bool
}

// sideOf is the side that a list of parts makes, from the anchor on.
func sideOf(parts []*syntax.Regexp) side {
	s := side{extent: extentOfAll(parts)}
	s.any = s.chars.all()
	for _, part := range parts {
		if next := extentOf(part); next.most > 0 {
			s.next = next
			break
		}
	}
	return s
}

// textsOf returns texts one of which is in whatever parts match, the longest that
// there are, and which parts they are; nil if there are none.
func textsOf(parts []*syntax.Regexp) (best []string, at span) {
	score := 1 // a byte is everywhere
	for from := range parts {
		for to := from + 1; to <= len(parts); to++ {
			texts, ok := exactAll(parts[from:to])
			if !ok {
				break
			}
			if least := leastOf(texts); least > score {
				best, at, score = texts, span{from, to}, least
			}
		}
	}
	return best, at
}

func leastOf(texts []string) int {
	least := goodAnchor
	for _, text := range texts {
		least = min(least, len(text))
	}
	return least
}

// anchor is a text that a match of a pattern holds, in lower case, and what may stand
// on its sides in the match.
type anchor struct {
	text          string
	before, after side
	// assigned: the match is an assignment, by the name of which the anchor is found.
	assigned *assignment
}

// Bounds of what is made of one pattern.
const (
	maxAnchors = 64
	maxChoices = 16
	// goodAnchor is how long an anchor need not be longer.
	goodAnchor = 12
)

// anchorsOf returns anchors one of which every match of a pattern holds; none if
// there are no such texts.
func anchorsOf(re *syntax.Regexp) []anchor {
	if re.Op == syntax.OpCapture {
		return anchorsOf(re.Sub[0])
	}
	if re.Op == syntax.OpAlternate {
		var all []anchor
		for _, sub := range re.Sub {
			list := anchorsOf(sub)
			if list == nil || len(all)+len(list) > maxAnchors {
				return nil
			}
			all = append(all, list...)
		}
		return distinct(all)
	}
	parts := flatten(re)
	if list := assignmentOf(parts); list != nil {
		return distinct(list)
	}
	return choose(parts)
}

// distinct leaves out anchors that are there twice, as a name in several cases is.
func distinct(list []anchor) []anchor {
	var kept []anchor
	for _, a := range list {
		if !slices.ContainsFunc(kept, a.equal) {
			kept = append(kept, a)
		}
	}
	return kept
}

func (a *anchor) equal(b anchor) bool {
	if a.text != b.text || a.before.extent != b.before.extent || a.after.extent != b.after.extent || (a.assigned == nil) != (b.assigned == nil) {
		return false
	}
	return a.assigned != nil && *a.assigned == *b.assigned
}

// alone reports whether a match with the anchor need hold nothing besides.
func (a *anchor) alone() bool {
	return a.assigned != nil || len(a.before.texts) == 0 && len(a.after.texts) == 0
}

// choose returns the best anchors in a list of parts: long ones, and few.
func choose(parts []*syntax.Regexp) []anchor {
	var best []anchor
	score := 0
	consider := func(list []anchor) {
		var texts []string
		for i := range list {
			texts = append(texts, list[i].text)
		}
		least := leastOf(texts)
		if len(list) > 0 && (least > score || least == score && len(list) < len(best)) {
			best, score = list, least
		}
	}
	for from := range parts {
		for to := from + 1; to <= len(parts); to++ {
			texts, ok := exactAll(parts[from:to])
			if !ok {
				break
			}
			consider(anchorsAt(texts, parts[:from], parts[to:]))
		}
		if parts[from].Op == syntax.OpAlternate {
			consider(surround(anchorsOf(parts[from]), parts[:from], parts[from+1:]))
		}
	}
	return best
}

// anchorsAt are the anchors of texts between parts.
func anchorsAt(texts []string, before, after []*syntax.Regexp) []anchor {
	var list []anchor
	for _, text := range texts {
		a := anchor{text: text, before: sideOf(reversed(before)), after: sideOf(after)}
		var at span
		a.before.texts, at = textsOf(before)
		a.before.between = extentOfAll(before[at.to:])
		a.after.texts, at = textsOf(after)
		a.after.between = extentOfAll(after[:at.from])
		list = append(list, a)
	}
	return list
}

// surround adds to the sides of anchors what stands around all of them.
func surround(list []anchor, before, after []*syntax.Regexp) []anchor {
	for i := range list {
		list[i].before.surround(reversed(before))
		list[i].after.surround(after)
		if a := list[i].assigned; a != nil && len(after) > 0 {
			list[i].assigned = nil // its end is not that of the match
		}
	}
	return list
}

func (s *side) surround(parts []*syntax.Regexp) {
	outer := sideOf(parts)
	if s.most == 0 {
		*s = outer
		return
	}
	s.extent = s.extent.plus(&outer.extent)
	s.any = s.chars.all()
}

func reversed(parts []*syntax.Regexp) []*syntax.Regexp {
	list := make([]*syntax.Regexp, len(parts))
	for i, part := range parts {
		list[len(parts)-1-i] = part
	}
	return list
}

// flatten returns the parts that a pattern has one after the other.
func flatten(re *syntax.Regexp) []*syntax.Regexp {
	switch re.Op {
	case syntax.OpCapture:
		return flatten(re.Sub[0])
	case syntax.OpConcat:
		var all []*syntax.Regexp
		for _, sub := range re.Sub {
			all = append(all, flatten(sub)...)
		}
		return all
	case syntax.OpNoMatch, syntax.OpEmptyMatch, syntax.OpBeginLine, syntax.OpEndLine, syntax.OpBeginText, syntax.OpEndText,
		syntax.OpWordBoundary, syntax.OpNoWordBoundary, syntax.OpLiteral, syntax.OpCharClass, syntax.OpAnyChar, syntax.OpAnyCharNotNL,
		syntax.OpStar, syntax.OpPlus, syntax.OpQuest, syntax.OpRepeat, syntax.OpAlternate:
	}
	return []*syntax.Regexp{re}
}

// exact returns all that a pattern matches, in lower case, if that is little.
func exact(re *syntax.Regexp) ([]string, bool) {
	switch re.Op {
	case syntax.OpEmptyMatch, syntax.OpBeginLine, syntax.OpEndLine, syntax.OpBeginText, syntax.OpEndText, syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		return []string{""}, true
	case syntax.OpLiteral:
		return ascii(string(re.Rune))
	case syntax.OpCharClass:
		e := extentOf(re)
		var list []string
		for c, has := range e.chars {
			if has && !('A' <= c && c <= 'Z') {
				list = append(list, string(rune(c)))
			} else if has && !e.chars[lowerByte(byte(c))] {
				list = append(list, string(rune(lowerByte(byte(c)))))
			}
		}
		return list, e.most == 1 && len(list) <= maxChoices
	case syntax.OpCapture:
		return exact(re.Sub[0])
	case syntax.OpQuest:
		list, ok := exact(re.Sub[0])
		return append(list, ""), ok
	case syntax.OpConcat:
		return exactAll(re.Sub)
	case syntax.OpAlternate:
		var all []string
		for _, sub := range re.Sub {
			list, ok := exact(sub)
			if !ok {
				return nil, false
			}
			all = append(all, list...)
		}
		return all, len(all) <= maxAnchors
	case syntax.OpNoMatch, syntax.OpAnyChar, syntax.OpAnyCharNotNL, syntax.OpStar, syntax.OpPlus, syntax.OpRepeat:
	}
	return nil, false
}

func exactAll(parts []*syntax.Regexp) ([]string, bool) {
	all := []string{""}
	for _, part := range parts {
		list, ok := exact(part)
		if !ok || len(all)*len(list) > maxAnchors {
			return nil, false
		}
		var longer []string
		for _, head := range all {
			for _, tail := range list {
				longer = append(longer, head+tail)
			}
		}
		all = longer
	}
	return all, true
}

// ascii returns a text in lower case, if it is ASCII.
func ascii(text string) ([]string, bool) {
	for i := range len(text) {
		if text[i] >= utf8.RuneSelf {
			return nil, false
		}
	}
	return []string{strings.ToLower(text)}, true
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

func upperByte(c byte) byte {
	if 'a' <= c && c <= 'z' {
		return c - 'a' + 'A'
	}
	return c
}

// leads reports whether what stands before an anchor may.
func (s *side) leads(text string) bool {
	if len(text) < s.least {
		return false
	}
	for i := range s.next.least {
		if !s.next.chars[text[len(text)-1-i]] {
			return false
		}
	}
	return true
}

// follows reports whether what stands behind an anchor may.
func (s *side) follows(text string) bool {
	if len(text) < s.least {
		return false
	}
	for i := range s.next.least {
		if !s.next.chars[text[i]] {
			return false
		}
	}
	return true
}

// span is a part of a text.
type span struct{ from, to int }

// seen is the last place of an anchor in a text. By it a long run of bytes is gone
// through once, however many anchors it holds.
type seen struct {
	span
	at int
	// lines is how many lines end from behind it, an offset, to where it goes.
	lines, behind int
	// value is the last value of an assignment.
	value span
}

// around returns where a match that holds the anchor at text[from:to] may begin and
// end, and false if there can be none. last is the earlier place of the same anchor.
func (a *anchor) around(text string, from, to int, last *seen) (span, bool) {
	w := span{from, to}
	if !a.before.leads(text[:from]) {
		return w, false
	}
	if a.assigned != nil {
		end, ok := a.assigned.follows(text, to, last)
		if !ok {
			return w, false
		}
		w.to = end
	} else {
		if !a.after.follows(text[to:]) {
			return w, false
		}
		w.to = a.after.reach(text, to, last)
	}
	if a.before.any {
		w.from = max(0, from-a.before.most)
	}
	for w.from > 0 && from-w.from < a.before.most && a.before.chars[text[w.from-1]] {
		if w.from == last.at {
			w.from = min(w.from, last.from)
			break
		}
		w.from--
	}
	last.span, last.at = w, from
	return w, true
}

// reach returns how far a side goes from an offset on. From there to where it went
// for an earlier place it goes at least, if it has no bound.
func (s *side) reach(text string, from int, last *seen) int {
	if s.any && s.lines >= unbounded {
		return min(len(text), from+s.most)
	}
	to, lines := from, 0
	if s.most == unbounded && from < last.to {
		to, lines = last.to, last.lines-strings.Count(text[last.behind:from], "\n")
	}
	for to < len(text) && to-from < s.most && s.chars[text[to]] {
		if text[to] == '\n' {
			if lines == s.lines {
				break
			}
			lines++
		}
		to++
	}
	last.behind, last.lines = from, lines
	return to
}
