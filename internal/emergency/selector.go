package emergency

import (
	"fmt"
	"strings"

	"github.com/keyturn/keyturn/internal/engine"
)

// maxTerms and maxSelector bound a selector, in terms and in bytes.
const (
	maxTerms    = 32
	maxSelector = 2048
)

// Selector chooses keys by their labels; every term must hold. The zero value
// chooses every key.
type Selector struct{ terms []term }

// term is one condition on a label.
type term struct {
	label, value string
	// any: the value does not matter. not: the condition must not hold.
	any, not bool
}

// ParseSelector reads terms separated by commas: "label=value", "label!=value",
// "label" for any value, and "!label". It fails with engine.ErrInvalid.
func ParseSelector(text string) (Selector, error) {
	var s Selector
	if len(text) > maxSelector {
		return s, fmt.Errorf("%w: selector: it has %d characters, at most %d are allowed", engine.ErrInvalid, len(text), maxSelector)
	}
	if strings.TrimSpace(text) == "" {
		return s, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		t, ok := parseTerm(strings.TrimSpace(part))
		if !ok {
			return s, fmt.Errorf("%w: selector: %q is no condition on a label; write for example tier=1,team=orders", engine.ErrInvalid, part)
		}
		if s.terms = append(s.terms, t); len(s.terms) > maxTerms {
			return s, fmt.Errorf("%w: selector: it has more than %d terms", engine.ErrInvalid, maxTerms)
		}
	}
	return s, nil
}

func parseTerm(text string) (term, bool) {
	label, value, has := strings.Cut(text, "=")
	t := term{label: label, value: value, any: !has}
	if has {
		t.label, t.not = strings.CutSuffix(label, "!")
	} else {
		t.label, t.not = strings.CutPrefix(label, "!")
	}
	t.label, t.value = strings.TrimSpace(t.label), strings.TrimSpace(t.value)
	return t, t.label != "" && !strings.ContainsAny(t.label, "!= ") && !strings.ContainsAny(t.value, "=! ")
}

// Matches reports whether all terms hold. A label that is absent has no value: it
// differs from every one.
func (s Selector) Matches(labels map[string]string) bool {
	for _, t := range s.terms {
		value, has := labels[t.label]
		if holds := has && (t.any || value == t.value); holds == t.not {
			return false
		}
	}
	return true
}

// Empty reports whether the selector chooses every key.
func (s Selector) Empty() bool { return len(s.terms) == 0 }

// String is the selector in its one canonical form.
func (s Selector) String() string {
	texts := make([]string, len(s.terms))
	for i, t := range s.terms {
		switch {
		case t.any && t.not:
			texts[i] = "!" + t.label
		case t.any:
			texts[i] = t.label
		case t.not:
			texts[i] = t.label + "!=" + t.value
		default:
			texts[i] = t.label + "=" + t.value
		}
	}
	return strings.Join(texts, ",")
}
