package scan

import "regexp/syntax"

// assignment is the form that most rules have: a name, a sign such as "=", perhaps
// quotes, the value that is the secret, and what ends it. Names such as "key" stand
// everywhere; what is looked at first is whether such a value follows.
type assignment struct {
	// between stands between the name and the sign, at most betweenMost bytes of it.
	between     byteSet
	betweenMost int
	// sign is what a sign is made of, opening what it and the quotes behind it are, at
	// most openingMost bytes of it.
	sign, opening byteSet
	openingMost   int
	value         extent
	// end is what the value ends with, if the text does not; endMost how long that is.
	end     byteSet
	endMost int
	// closed: nothing of the end can be of the value, which is then all of a run.
	closed bool
}

// assignmentOf returns the anchors of a pattern of that form, which are in its name,
// and nothing if it has another.
func assignmentOf(parts []*syntax.Regexp) []anchor {
	at := -1
	for i, part := range parts {
		if e := extentOf(part); e.least == 1 && e.most == 4 && e.chars == setOf("=>:|?,") {
			at = i
		}
	}
	const behind = 3 // quotes, a value and its end at least
	if at < 0 || len(parts) < at+1+behind {
		return nil
	}
	sign, quotes := extentOf(parts[at]), extentOf(parts[at+1])
	last := parts[len(parts)-1]
	end, ok := firstOf(last)
	if !ok || quotes.least != 0 {
		return nil
	}
	a := assignment{
		sign: sign.chars, opening: sign.chars, openingMost: sign.most + quotes.most,
		value: extentOfAll(parts[at+2 : len(parts)-1]), end: end, endMost: extentOf(last).most,
	}
	a.opening.add(&quotes.chars)
	a.closed = a.end.apart(&a.value.chars)
	list := choose(parts[:at])
	for i := range list {
		own := a
		own.between, own.betweenMost = list[i].after.chars, list[i].after.most
		if !own.between.apart(&own.sign) {
			return nil
		}
		list[i].assigned = &own
	}
	return list
}

func setOf(text string) byteSet {
	var s byteSet
	for i := range len(text) {
		s[text[i]] = true
	}
	return s
}

// firstOf returns what a pattern may begin with, unless it matches the end of a text;
// false if that cannot be told.
func firstOf(re *syntax.Regexp) (byteSet, bool) {
	var s byteSet
	switch re.Op {
	case syntax.OpEndText:
	case syntax.OpCharClass:
		s = extentOf(re).chars
	case syntax.OpLiteral:
		one := *re
		one.Rune = re.Rune[:1]
		s = extentOf(&one).chars
	case syntax.OpCapture:
		return firstOf(re.Sub[0])
	case syntax.OpConcat:
		if extentOf(re.Sub[0]).least == 0 {
			return s, false
		}
		return firstOf(re.Sub[0])
	case syntax.OpAlternate:
		for _, sub := range re.Sub {
			first, ok := firstOf(sub)
			if !ok {
				return s, false
			}
			s.add(&first)
		}
	case syntax.OpNoMatch, syntax.OpEmptyMatch, syntax.OpBeginLine, syntax.OpEndLine, syntax.OpBeginText, syntax.OpWordBoundary,
		syntax.OpNoWordBoundary, syntax.OpAnyChar, syntax.OpAnyCharNotNL, syntax.OpStar, syntax.OpPlus, syntax.OpQuest, syntax.OpRepeat:
		return s, false
	}
	return s, true
}

// follows reports whether an assignment may go on behind its name, which ends at to,
// and where it ends then.
func (a *assignment) follows(text string, to int, last *seen) (int, bool) {
	sign := to
	for sign < len(text) && sign-to < a.betweenMost && a.between[text[sign]] {
		sign++
	}
	if sign == len(text) || !a.sign[text[sign]] {
		return 0, false
	}
	from := sign + 1
	for from < len(text) && from-sign < a.openingMost && a.opening[text[from]] {
		from++
	}
	end := from
	if last.value.from <= from && from < last.value.to {
		end = last.value.to
	} else {
		for end < len(text) && a.value.chars[text[end]] {
			end++
		}
	}
	// What opens a value may be of it.
	begin := from
	for begin > sign+1 && a.value.chars[text[begin-1]] {
		begin--
	}
	last.value = span{begin, end}
	if end-begin < a.value.least {
		return 0, false
	}
	if a.closed && (end-from > a.value.most || end < len(text) && !a.end[text[end]]) {
		return 0, false
	}
	return min(end+a.endMost, len(text)), true
}
