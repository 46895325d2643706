package scan

import (
	"context"
	"maps"
	"slices"
	"strings"

	ahocorasick "github.com/BobuSumisu/aho-corasick"
	"github.com/spf13/viper"
	"github.com/zricethezav/gitleaks/v8/config"
	"github.com/zricethezav/gitleaks/v8/detect"
	"github.com/zricethezav/gitleaks/v8/regexp"
	"github.com/zricethezav/gitleaks/v8/report"
)

// What a rule looks at around one of its keywords, in bytes: more than any of the
// rules spans, private keys included.
const (
	windowBefore = 1 << 10
	windowAfter  = overlap
)

// rules are those of the library. It runs every rule whose keyword is somewhere in a
// text over all of the text; here each has a detector of its own, which sees only
// what is near its keywords. Its methods may be called concurrently.
type rules struct {
	names     map[string]string
	detectors []*detect.Detector
	// patterns are those of the rules: nothing else of one is looked at without a match.
	patterns []*regexp.Regexp
	keywords *ahocorasick.Trie
	// of are the detectors that a keyword is of.
	of [][]int
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
	r := &rules{names: map[string]string{ruleKeyturn: describeKeyturn, RuleManaged: DescribeManaged}}
	of := map[string][]int{}
	for _, id := range slices.Sorted(maps.Keys(all.Rules)) {
		rule := all.Rules[id]
		if len(rule.Keywords) == 0 || rule.Regex == nil {
			continue // it looks at names of files
		}
		r.names[id] = rule.Description
		one := all
		one.Rules, one.Keywords = map[string]config.Rule{id: rule}, map[string]struct{}{}
		for _, required := range rule.RequiredRules {
			other := all.Rules[required.RuleID]
			other.SkipReport = true
			one.Rules[required.RuleID] = other
		}
		for _, keyword := range rule.Keywords {
			keyword = strings.ToLower(keyword)
			one.Keywords[keyword] = struct{}{}
			of[keyword] = append(of[keyword], len(r.detectors))
		}
		r.detectors, r.patterns = append(r.detectors, detect.NewDetector(one)), append(r.patterns, rule.Regex)
	}
	keywords := slices.Sorted(maps.Keys(of))
	for _, keyword := range keywords {
		r.of = append(r.of, of[keyword])
	}
	r.keywords = ahocorasick.NewTrieBuilder().AddStrings(keywords).Build()
	return r, nil
}

// span is a part of a text.
type span struct{ from, to int }

// search returns what the rules find in a piece.
func (r *rules) search(ctx context.Context, p *piece) []report.Finding {
	windows := make([][]span, len(r.detectors))
	r.keywords.Walk(lower(p.text), func(end, n, pattern int64) bool {
		at := int(end-n) + 1
		for _, which := range r.of[pattern] {
			list := windows[which]
			if last := len(list) - 1; last >= 0 && list[last].to >= at-windowBefore {
				list[last].to = min(at+windowAfter, len(p.text))
				continue
			}
			windows[which] = append(list, span{max(0, at-windowBefore), min(at+windowAfter, len(p.text))})
		}
		return true
	})
	var found []report.Finding
	for which, list := range windows {
		for _, w := range list {
			from := lineStart(p.text, w.from)
			text := p.text[from:lineEnd(p.text, w.to)]
			if !r.patterns[which].MatchString(text) {
				continue
			}
			start := p.at(from)
			fragment := detect.Fragment{Raw: text, FilePath: p.place.Path, StartLine: start.Line} //nolint:staticcheck // DetectContext takes no other
			for _, f := range r.detectors[which].DetectContext(ctx, fragment) {
				if f.StartLine == start.Line {
					f.StartColumn += start.Column - 1
				}
				found = append(found, f)
			}
		}
	}
	return withoutGeneric(found)
}

// withoutGeneric leaves out what a generic rule finds where one that knows better
// does, as the library does it within one text.
func withoutGeneric(found []report.Finding) []report.Finding {
	better := map[int][]string{}
	for i := range found {
		if f := &found[i]; !strings.Contains(f.RuleID, "generic") {
			better[f.StartLine] = append(better[f.StartLine], f.Secret)
		}
	}
	return slices.DeleteFunc(found, func(f report.Finding) bool {
		return strings.Contains(f.RuleID, "generic") &&
			slices.ContainsFunc(better[f.StartLine], func(secret string) bool { return strings.Contains(secret, f.Secret) })
	})
}

// maxLine is how far the beginning or end of a line is looked for.
const maxLine = 4 << 10

func lineStart(text string, at int) int {
	from := max(0, at-maxLine)
	if line := strings.LastIndexByte(text[from:at], '\n'); line >= 0 {
		return from + line + 1
	}
	return from
}

func lineEnd(text string, at int) int {
	to := min(len(text), at+maxLine)
	if line := strings.IndexByte(text[at:to], '\n'); line >= 0 {
		return at + line
	}
	return to
}

// lower returns the ASCII letters of a text in lower case, and all else as it is.
func lower(text string) []byte {
	b := []byte(text)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return b
}
