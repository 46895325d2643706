package scan

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/viper"
	"github.com/zricethezav/gitleaks/v8/config"
)

// rules are those of the library, searched for in another way. The library runs the
// pattern of a rule over all of a text if one of the rule's keywords is anywhere in it.
// Here one pass finds the anchors of all patterns, what stands around each is looked
// at, and a pattern is run only where it may match. What is found is the same. Its
// methods may be called concurrently, each with a scratch of its own.
type rules struct {
	names  map[string]string
	list   []rule
	global []*config.Allowlist
	// texts finds anchors and keywords; of says what each is for, lengths how long it is.
	texts   *automaton
	of      []use
	lengths []int
	// anchors is how many there are.
	anchors int
	// witnesses are the texts that matches hold beside an anchor, from 1 on.
	witnesses []witnesses
}

// rule is one of the library's.
type rule struct {
	config.Rule
	keywords []string
	// anchors: a match holds one of them; none: the pattern is run over all of a text.
	anchors []anchor
	// first is the number of the first of them.
	first int
	// gated: a match need not hold a keyword, and one has to be in the text.
	gated bool
	// whole is what a match may be.
	whole extent
	// dull is what values are made of that the rule leaves alone.
	dull *byteSet
}

// use is what a text in the automaton is for: an anchor of rules, a keyword of rules, of
// those that are gated, a witness.
type use struct {
	anchors                    [][2]int
	keywords, gates, witnesses []int
}

// loadRules reads the library's default rules, by a viper of its own: that of the
// library's own function belongs to the whole process.
func loadRules() (*rules, error) {
	v := viper.New()
	v.SetConfigType("toml")
	if err := v.ReadConfig(strings.NewReader(config.DefaultConfig)); err != nil {
		return nil, err
	}
	var raw config.ViperConfig
	if err := v.Unmarshal(&raw); err != nil {
		return nil, err
	}
	all, err := raw.Translate()
	if err != nil {
		return nil, err
	}
	r := &rules{names: map[string]string{ruleKeyturn: describeKeyturn, RuleManaged: DescribeManaged}, global: all.Allowlists}
	for _, id := range slices.Sorted(maps.Keys(all.Rules)) {
		one := all.Rules[id]
		if one.Regex == nil {
			continue // it looks at names of files
		}
		r.names[id] = one.Description
		if err := r.add(&one); err != nil {
			return nil, fmt.Errorf("rule %s: %w", id, err)
		}
	}
	if err := r.build(); err != nil {
		return nil, err
	}
	return r, nil
}

// add takes a rule. What the library's default rules do not use, none may.
func (r *rules) add(from *config.Rule) error {
	if len(from.RequiredRules) > 0 || from.SkipReport || len(from.Keywords) == 0 {
		return errors.New("it needs other rules, or has no keywords")
	}
	parsed, err := syntax.Parse(from.Regex.String(), syntax.Perl)
	if err != nil {
		return err
	}
	one := rule{Rule: *from, anchors: anchorsOf(parsed), first: r.anchors, dull: dullOf(from), whole: extentOf(parsed)}
	for _, keyword := range from.Keywords {
		one.keywords = append(one.keywords, strings.ToLower(keyword))
	}
	for i := range one.anchors {
		text := one.anchors[i].text
		one.gated = one.gated || !slices.ContainsFunc(one.keywords, func(keyword string) bool { return strings.Contains(text, keyword) })
	}
	one.gated = one.gated || len(one.anchors) == 0
	r.anchors += len(one.anchors)
	r.list = append(r.list, one)
	return nil
}

// build makes the automaton.
func (r *rules) build() error {
	uses := map[string]*use{}
	of := func(text string) *use {
		if uses[text] == nil {
			uses[text] = &use{}
		}
		return uses[text]
	}
	for which := range r.list {
		one := &r.list[which]
		for i := range one.anchors {
			u := of(one.anchors[i].text)
			u.anchors = append(u.anchors, [2]int{which, i})
		}
		for _, keyword := range one.keywords {
			u := of(keyword)
			u.keywords = append(u.keywords, which)
			if one.gated {
				u.gates = append(u.gates, which)
			}
		}
	}
	known := map[string]int{}
	r.witnesses = make([]witnesses, 1)
	for which := range r.list {
		for i := range r.list[which].anchors {
			if a := &r.list[which].anchors[i]; !a.alone() {
				r.witness(&a.before, known, of)
				r.witness(&a.after, known, of)
			}
		}
	}
	texts := slices.Sorted(maps.Keys(uses))
	for _, text := range texts {
		r.of, r.lengths = append(r.of, *uses[text]), append(r.lengths, len(text))
	}
	var err error
	r.texts, err = newAutomaton(texts)
	return err
}

// scratch is what a search needs, kept from one text to the next.
type scratch struct {
	// places are where each rule may match, gates which have a keyword in the text.
	places [][]place
	gates  []bool
	last   []seen
	// touched are the rules with places, doubtful anchors that are of a match only
	// beside a witness.
	touched  []int
	doubtful []doubtful
	marks    marks
	lines    lines
	// hits are those of the automaton, folds where folded letters are.
	hits  hits
	folds []int
	// path is the last that was looked at, left whether it is left alone.
	path string
	left bool
}

// place is where a match may be.
type place struct {
	span
	// dull: if it holds a secret, the rule leaves it alone.
	dull bool
}

func (r *rules) newScratch() *scratch {
	return &scratch{places: make([][]place, len(r.list)), gates: make([]bool, len(r.list)), last: make([]seen, r.anchors), marks: marks{ends: make([][]int, len(r.witnesses))}}
}

// match is what a rule found.
type match struct {
	rule *rule
	// at is where in the text, lineAt where its line begins, secretAt where in the text
	// its secret is.
	at, secretAt span
	lineAt       int
	secret       string
}

// search returns what the rules find in a text, in the order of the rules.
func (r *rules) search(path, text string, s *scratch) []match {
	if s.path != path {
		s.path, s.left = path, pathAllowed(r.global, path)
	}
	if path != "" && s.left {
		return nil
	}
	if strings.ContainsRune(text, longS) || strings.ContainsRune(text, kelvin) || strings.ContainsRune(text, dottedI) {
		r.considerFolds(text, s)
	}
	r.texts.walk(text, &s.hits, func(to int, which int32) {
		use, from := &r.of[which], to-r.lengths[which]
		for _, gate := range use.gates {
			s.gates[gate] = true
		}
		for _, witness := range use.witnesses {
			s.marks.ends[witness] = append(s.marks.ends[witness], to)
		}
		for _, a := range use.anchors {
			if r.list[a[0]].anchors[a[1]].alone() {
				r.consider(a[0], a[1], text, s, span{from, to})
			} else {
				s.doubtful = append(s.doubtful, doubtful{span{from, to}, a})
			}
		}
	})
	for _, d := range s.doubtful {
		if r.witnessed(&r.list[d.anchor[0]].anchors[d.anchor[1]], text, d.span, &s.marks) {
			r.consider(d.anchor[0], d.anchor[1], text, s, d.span)
		}
	}
	for which := range r.list {
		if len(r.list[which].anchors) == 0 && s.gates[which] {
			s.add(which, place{span: span{0, len(text)}})
		}
	}
	var found []match
	slices.Sort(s.touched)
	for _, which := range s.touched {
		one := &r.list[which]
		if (!one.gated || s.gates[which]) && one.wants(path) {
			found = r.matches(found, one, path, text, s, s.places[which])
		}
		s.places[which] = s.places[which][:0]
	}
	s.touched, s.doubtful, s.lines = s.touched[:0], s.doubtful[:0], lines{}
	s.marks.forget()
	clear(s.gates)
	clear(s.last)
	return withoutGeneric(found)
}

// dottedI is, but for the kelvin sign, the one letter outside ASCII that the library
// takes for a letter of ASCII where it looks for keywords.
const dottedI = '\u0130'

// considerFolds notes the places in a text around letters that case folding makes
// equal to letters of ASCII: anchors do not find a match that has one. All rules that
// have a keyword in the text, as the library reads it, may match there.
func (r *rules) considerFolds(text string, s *scratch) {
	r.texts.walk(strings.ToLower(text), &s.hits, func(_ int, which int32) {
		for _, named := range r.of[which].keywords {
			s.gates[named] = true
		}
	})
	s.folds = s.folds[:0]
	for at, letter := range text {
		if letter == longS || letter == kelvin {
			s.folds = append(s.folds, at)
		}
	}
	for which := range r.list {
		if !s.gates[which] {
			continue
		}
		one, reached := &r.list[which], 0
		for _, at := range s.folds {
			if at < reached {
				continue
			}
			w := span{at, at}
			for ; w.from > 0 && at-w.from < one.whole.most && one.mayHold(text[w.from-1]); w.from-- {
			}
			for ; w.to < len(text) && w.to-at < one.whole.most && one.mayHold(text[w.to]); w.to++ {
			}
			if one.whole.most == unbounded {
				reached = w.to
			}
			s.add(which, place{span: w})
		}
	}
}

// mayHold reports whether a byte may be of a match, if folded letters are.
func (r *rule) mayHold(c byte) bool { return c >= utf8.RuneSelf || r.whole.chars[c] }

// consider notes where a match may be that holds an anchor.
func (r *rules) consider(which, i int, text string, s *scratch, at span) {
	one := &r.list[which]
	a, last := &one.anchors[i], &s.last[one.first+i]
	w, ok := a.around(text, at.from, at.to, last)
	if !ok {
		return
	}
	p := place{span: w}
	if one.dull != nil && a.assigned != nil {
		value := text[last.value.from:last.value.to]
		p.dull = true
		for i := 0; i < len(value) && p.dull; i++ {
			p.dull = one.dull[value[i]]
		}
	}
	s.add(which, p)
}

func (s *scratch) add(which int, p place) {
	if len(s.places[which]) == 0 {
		s.touched = append(s.touched, which)
	}
	s.places[which] = append(s.places[which], p)
}

// matches adds what a rule finds at places: one place after the other, those taken
// together that touch.
func (r *rules) matches(found []match, one *rule, path, text string, s *scratch, places []place) []match {
	slices.SortFunc(places, func(a, b place) int { return cmp.Compare(a.from, b.from) })
	for i := 0; i < len(places); {
		w := places[i]
		for i++; i < len(places) && places[i].from <= w.to+2*utf8.UTFMax; i++ {
			w.to = max(w.to, places[i].to)
			w.dull = w.dull && places[i].dull
		}
		if w.dull {
			continue
		}
		// One rune more on each side: patterns ask for the ends of words and of the text.
		from, to := runeStart(text, w.from), runeEnd(text, w.to)
		found = r.judge(found, one, path, text, from, to, &s.lines)
	}
	return found
}

// runeStart is the beginning of the rune before an offset.
func runeStart(text string, at int) int {
	for i := 0; i < utf8.UTFMax-1 && at > 0 && at < len(text) && !utf8.RuneStart(text[at]); i++ {
		at--
	}
	_, size := utf8.DecodeLastRuneInString(text[:at])
	return at - size
}

// runeEnd is the end of the rune that begins at or about an offset.
func runeEnd(text string, at int) int {
	for i := 0; i < utf8.UTFMax-1 && at < len(text) && !utf8.RuneStart(text[at]); i++ {
		at++
	}
	_, size := utf8.DecodeRuneInString(text[at:])
	return at + size
}
