package scan

import (
	"math"
	"regexp/syntax"
	"slices"
	"strings"

	"github.com/zricethezav/gitleaks/v8/config"
)

// allowMark is the comment that has a line left alone.
const allowMark = "gitleaks:allow"

// wants reports whether a rule looks at files of a path.
func (r *rule) wants(path string) bool {
	return (r.Path == nil || r.Path.MatchString(path)) && !pathAllowed(r.Allowlists, path)
}

// pathAllowed reports whether a list leaves files of a path alone.
func pathAllowed(lists []*config.Allowlist, path string) bool {
	if path == "" {
		return false
	}
	return slices.ContainsFunc(lists, func(a *config.Allowlist) bool {
		if a.MatchCondition == config.AllowlistMatchAnd && (len(a.Regexes) > 0 || len(a.StopWords) > 0) {
			return false // the finding counts too
		}
		return a.PathAllowed(path)
	})
}

// lines are those of a match, and what was decided about them: once, however many
// matches are in a line.
type lines struct {
	at      span
	text    string
	marked  bool
	allowed map[*config.Allowlist]bool
}

// read has the lines of a match in a text be these.
func (l *lines) read(text string, match span) {
	if at := linesOf(text, match); at != l.at || l.allowed == nil {
		line := text[at.from:at.to]
		*l = lines{at: at, text: line, marked: strings.Contains(line, allowMark), allowed: map[*config.Allowlist]bool{}}
	}
}

// allow reports whether a list's patterns leave the lines alone.
func (l *lines) allow(a *config.Allowlist) bool {
	verdict, known := l.allowed[a]
	if !known {
		verdict = a.RegexAllowed(l.text)
		l.allowed[a] = verdict
	}
	return verdict
}

// judge adds the matches of a pattern in text[from:to] that its rule does not leave
// alone, as the library decides it.
func (r *rules) judge(found []match, one *rule, path, text string, from, to int, l *lines) []match {
	for _, at := range one.Regex.FindAllStringIndex(text[from:to], -1) {
		begin := from + at[0]
		rest := strings.TrimLeft(text[begin:from+at[1]], "\n")
		whole := strings.TrimRight(rest, "\n")
		m := match{rule: one, at: span{from + at[1] - len(rest), from + at[1] - len(rest) + len(whole)}}
		secret := one.secretOf(whole)
		m.secret, m.secretAt = whole[secret.from:secret.to], span{m.at.from + secret.from, m.at.from + secret.to}
		if one.Entropy != 0 && entropy(m.secret) <= one.Entropy {
			continue
		}
		l.read(text, span{begin, begin + len(whole)}) // so the library counts
		m.lineAt = l.at.from
		if l.marked || allowed(r.global, path, m.secret, whole, l) || allowed(one.Allowlists, path, m.secret, whole, l) {
			continue
		}
		found = append(found, m)
	}
	return found
}

// secretOf returns where the secret in a match is: the rule's group, or the first that
// is not empty, or all of it.
func (r *rule) secretOf(whole string) span {
	groups := r.Regex.FindStringSubmatchIndex(whole)
	if r.SecretGroup > 0 && len(groups) > 2*r.SecretGroup {
		return span{max(0, groups[2*r.SecretGroup]), max(0, groups[2*r.SecretGroup+1])}
	}
	for i := 2; i < len(groups); i += 2 {
		if groups[i] < groups[i+1] {
			return span{groups[i], groups[i+1]}
		}
	}
	return span{0, len(whole)}
}

// linesOf returns the lines that a match is in, as the library takes them: from the
// end of the line before to that of the last. Where the last line of a text has no
// end, it takes all of the text before it as well, which this does not.
func linesOf(text string, at span) span {
	lines := span{max(0, strings.LastIndexByte(text[:min(at.from+1, len(text))], '\n')), len(text)}
	if line := strings.IndexByte(text[at.to:], '\n'); line >= 0 {
		lines.to = at.to + line
	}
	return lines
}

// allowed reports whether one of the lists leaves a secret alone.
func allowed(lists []*config.Allowlist, path, secret, whole string, l *lines) bool {
	return slices.ContainsFunc(lists, func(a *config.Allowlist) bool {
		pattern := func() bool {
			switch a.RegexTarget {
			case "match":
				return a.RegexAllowed(whole)
			case "line":
				return l.allow(a)
			}
			return a.RegexAllowed(secret)
		}
		stop := func() bool {
			found, _ := a.ContainsStopWord(secret)
			return found
		}
		if a.MatchCondition != config.AllowlistMatchAnd {
			return stop() || pattern()
		}
		return len(a.Commits) == 0 && (len(a.Paths) == 0 || a.PathAllowed(path)) && (len(a.Regexes) == 0 || pattern()) && (len(a.StopWords) == 0 || stop())
	})
}

// entropy is that of Shannon over the runes of a text, in bits.
func entropy(text string) float64 {
	counts := map[rune]int{}
	for _, r := range text {
		counts[r]++
	}
	sum, part := 0.0, 1/float64(len(text))
	for _, n := range counts {
		share := float64(n) * part
		sum -= share * math.Log2(share)
	}
	return sum
}

// dullOf returns what values are made of that a rule leaves alone, whatever their
// length; nil if it leaves none.
func dullOf(one *config.Rule) *byteSet {
	for _, a := range one.Allowlists {
		if a.MatchCondition == config.AllowlistMatchAnd || a.RegexTarget != "" && a.RegexTarget != "secret" {
			continue
		}
		for _, re := range a.Regexes {
			parsed, err := syntax.Parse(re.String(), syntax.Perl)
			if err != nil || parsed.Op != syntax.OpConcat || len(parsed.Sub) != 3 {
				continue
			}
			if class := parsed.Sub[1]; parsed.Sub[0].Op == syntax.OpBeginText && class.Op == syntax.OpPlus && parsed.Sub[2].Op == syntax.OpEndText {
				e := extentOf(class)
				return &e.chars
			}
		}
	}
	return nil
}

// withoutGeneric leaves out what a generic rule finds where one that knows better
// does.
func withoutGeneric(found []match) []match {
	better := map[int][]string{}
	for i := range found {
		if m := &found[i]; !m.rule.generic() {
			better[m.lineAt] = append(better[m.lineAt], m.secret)
		}
	}
	return slices.DeleteFunc(found, func(m match) bool {
		return m.rule.generic() && slices.ContainsFunc(better[m.lineAt], func(secret string) bool { return strings.Contains(secret, m.secret) })
	})
}

func (r *rule) generic() bool { return isGeneric(r.RuleID) }

func isGeneric(rule string) bool { return strings.Contains(strings.ToLower(rule), "generic") }
