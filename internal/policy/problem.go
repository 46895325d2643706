package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/keyturn/keyturn/internal/spelling"
)

// ErrInvalid is what every error of Parse and Compile is, by errors.Is.
var ErrInvalid = errors.New("invalid resource")

// Position is a place in a file. Line and Col count from 1, Col in characters;
// zero means unknown.
type Position struct {
	Line, Col int
}

// Problem is one thing that is wrong, or suspicious, about resources.
type Problem struct {
	// File, Line and Col say where; Line is 0 when the resource did not come from a file.
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
	Col  int    `json:"column,omitempty"`
	// Resource is the kind and name, for example "Policy database", if known.
	Resource string `json:"resource,omitempty"`
	// Path leads to the field, for example "spec.stages[0].bake".
	Path     string   `json:"path,omitempty"`
	Severity Severity `json:"severity"`
	// Code is stable and machine-readable, for example "unknown-field".
	Code string `json:"code"`
	// Message says what is wrong, Hint what would be right.
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// Error implements error: "FILE:LINE:COL: PATH: MESSAGE; HINT".
func (p Problem) Error() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File + ":")
		if p.Line > 0 {
			fmt.Fprintf(&b, "%d:%d:", p.Line, p.Col)
		}
		b.WriteByte(' ')
	}
	if p.Severity == Warning {
		b.WriteString("warning: ")
	}
	switch {
	case p.Path != "":
		b.WriteString(p.Path + ": ")
	case p.Line == 0 && p.Resource != "":
		b.WriteString(p.Resource + ": ")
	}
	b.WriteString(p.Message)
	if p.Hint != "" {
		b.WriteString("; " + p.Hint)
	}
	return b.String()
}

// Is reports whether target is ErrInvalid.
func (p Problem) Is(target error) bool { return target == ErrInvalid }

// Problems is a list of problems, in the order of files and lines. It is the
// type of every error that Parse and Compile return.
type Problems []Problem

// Error implements error: one line per problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Is reports whether target is ErrInvalid.
func (ps Problems) Is(target error) bool { return target == ErrInvalid }

// Err returns the problems of severity Error as an error, nil when there is none.
func (ps Problems) Err() error {
	var errs Problems
	for _, p := range ps {
		if p.Severity != Warning {
			errs = append(errs, p)
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return errs
}

// problem places a finding in the resource's file.
func (r Resource) problem(f finding) Problem {
	at := r.Source.Locate(f.path)
	if text := r.Source.places[f.path]; f.line == 1 && text.inline {
		at.Col += text.inset + f.col - 1
	}
	return Problem{
		File: r.Source.File, Line: at.Line, Col: at.Col, Resource: r.String(), Path: f.path,
		Severity: f.severity, Code: f.code, Message: f.message, Hint: f.hint,
	}
}

func (ps Problems) sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
}

// finding is a problem of one resource. Its path is relative to the resource;
// line and col point into a text, from 1, when line is not 0.
type finding struct {
	severity      Severity
	path, code    string
	message, hint string
	line, col     int
}

// reporter receives what a check finds.
type reporter func(finding)

// within returns a reporter whose paths lie under prefix.
func (r reporter) within(prefix string) reporter {
	return func(f finding) {
		f.path = joinPath(prefix, f.path)
		r(f)
	}
}

func (r reporter) err(path, code, message, hint string) {
	r(finding{severity: Error, path: path, code: code, message: message, hint: hint})
}

func (r reporter) warn(path, code, message, hint string) {
	r(finding{severity: Warning, path: path, code: code, message: message, hint: hint})
}

// hintError is an error in two parts.
type hintError struct{ problem, hint string }

func (e *hintError) Error() string { return e.problem + "; " + e.hint }

// splitHint returns the two parts of an error, the second empty if there is none.
func splitHint(err error) (problem, hint string) {
	if h, ok := errors.AsType[*hintError](err); ok {
		return h.problem, h.hint
	}
	return err.Error(), ""
}

// quote quotes s for a message, shortened to something readable.
func quote(s string) string {
	const most = 60
	if len(s) > most {
		return strconv.Quote(shorten(s, most))
	}
	return strconv.Quote(s)
}

// shorten cuts s to at most n bytes and an ellipsis, between characters.
func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// joinPath appends a field, an index or another path to a path.
func joinPath(path, field string) string {
	switch {
	case path == "":
		return field
	case field == "", field[0] == '[':
		return path + field
	}
	return path + "." + field
}

// mapPath appends the key of a map to a path; unusual keys are quoted in brackets.
func mapPath(path, key string) string {
	plain := key != ""
	for _, r := range key {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-' {
			plain = false
		}
	}
	if plain {
		return joinPath(path, key)
	}
	return path + "[" + strconv.Quote(key) + "]"
}

func indexPath(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// suggest returns `did you mean "x"?` for the nearest known word, or else a list
// of them.
func suggest(word string, known []string) string {
	if best := spelling.Nearest(word, known, max(1, min(len(word), 12)/3)); best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	if len(known) == 0 {
		return ""
	}
	const most = 20
	if len(known) > most {
		return "known are " + strings.Join(known[:most], ", ") + ", …"
	}
	return "known are " + strings.Join(known, ", ")
}
