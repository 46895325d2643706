package postgres

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/keyturn/keyturn/provider"
)

// reader collects the problems of a config.
type reader struct{ problems []error }

func (r *reader) add(path, problem, hint string) {
	r.problems = append(r.problems, &provider.ConfigError{Path: path, Problem: problem, Hint: hint})
}

func (r *reader) block(path string, fields map[string]any) block {
	return block{r: r, path: path, fields: fields}
}

// block is a map whose fields are read one by one; an absent field reads as its
// zero value, a wrong one as well and is reported.
type block struct {
	r      *reader
	path   string
	fields map[string]any
}

func (b block) add(field, problem, hint string) {
	path := b.path
	switch {
	case path == "":
		path = field
	case field != "":
		path += "." + field
	}
	b.r.add(path, problem, hint)
}

func (b block) has(field string) bool {
	_, ok := b.fields[field]
	return ok
}

// only reports every field that is not known.
func (b block) only(known ...string) {
	for _, field := range sortedKeys(b.fields) {
		if !slices.Contains(known, field) {
			b.add(field, "there is no such field", "known are "+strings.Join(known, ", "))
		}
	}
}

func (b block) required(field, hint string) string {
	if !b.has(field) {
		b.add(field, "it is missing", hint)
		return ""
	}
	return b.text(field)
}

func (b block) text(field string) string {
	value, ok := b.fields[field]
	if !ok {
		return ""
	}
	text, ok := value.(string)
	if !ok || text == "" || !utf8.ValidString(text) || strings.Contains(text, "\x00") {
		b.add(field, "it is not a text", "write a text that is not empty, in quotes if it looks like a number")
		return ""
	}
	return text
}

func (b block) boolean(field string, otherwise bool) bool {
	value, ok := b.fields[field]
	if !ok {
		return otherwise
	}
	on, ok := value.(bool)
	if !ok {
		b.add(field, "it is neither true nor false", "write true or false")
	}
	return on
}

func (b block) duration(field string, otherwise time.Duration) time.Duration {
	if !b.has(field) {
		return otherwise
	}
	text, _ := b.fields[field].(string)
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 || d > time.Hour {
		b.add(field, "it is not a time between 0 and 1h", "write for example 30s or 2m")
	}
	return d
}

func (b block) list(field string) []any {
	value, ok := b.fields[field]
	if !ok {
		return nil
	}
	list, ok := value.([]any)
	if !ok {
		b.add(field, "it is not a list", "write it in brackets: [a, b]")
	}
	return list
}

// listOK reports whether the field is a list of texts, so that no second problem
// is reported about it.
func (b block) listOK(field string) bool {
	list, ok := b.fields[field].([]any)
	return !b.has(field) || ok && !slices.ContainsFunc(list, func(v any) bool { _, text := v.(string); return !text })
}

// names reads a list of roles. Only where predefined says so may they be among
// those that PostgreSQL brings along.
func (b block) names(field string, predefined bool) []string {
	var names []string
	for i, item := range b.list(field) {
		name, _ := item.(string)
		if predefined && strings.HasPrefix(name, "pg_") && len(name) <= maxName && utf8.ValidString(name) && !strings.Contains(name, "\x00") {
			names = append(names, name)
			continue
		}
		if problem, hint := roleNameProblem(name); problem != "" {
			b.add(fmt.Sprintf("%s[%d]", field, i), problem, hint)
			continue
		}
		names = append(names, name)
	}
	return names
}

// name reads one role.
func (b block) name(field string) string {
	if !b.has(field) {
		return ""
	}
	name, _ := b.fields[field].(string)
	if problem, hint := roleNameProblem(name); problem != "" {
		b.add(field, problem, hint)
		return ""
	}
	return name
}

// roleNameProblem says why PostgreSQL would not take name as that of a login or
// group role. Names are used exactly as written, upper case included.
func roleNameProblem(name string) (problem, hint string) {
	switch {
	case name == "" || !utf8.ValidString(name) || strings.Contains(name, "\x00"):
		return "it is not the name of a role", "write a text that is not empty"
	case len(name) > maxName:
		return fmt.Sprintf("the name has %d bytes, PostgreSQL keeps %d", len(name), maxName), "choose a shorter name"
	case name == "public" || name == "none":
		return fmt.Sprintf("%q is reserved by PostgreSQL", name), "choose another name"
	case strings.HasPrefix(name, "pg_"):
		return fmt.Sprintf("%q begins with pg_, which PostgreSQL reserves", name), "choose another name"
	}
	return "", ""
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
