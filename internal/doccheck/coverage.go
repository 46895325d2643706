package doccheck

import (
	"bytes"
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

//go:embed requirements.txt
var requirements string

// Requirements returns the IDs that docs/coverage.md must have a row for, in order.
func Requirements() []string {
	var ids []string
	for line := range strings.Lines(requirements) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			ids = append(ids, line)
		}
	}
	return ids
}

// State is how far a requirement is kept. The zero value is invalid.
type State uint8

// The states.
const (
	// Works: a test would fail if the behaviour were removed.
	Works State = iota + 1
	// Partly: some of it works; the row says what is missing.
	Partly
	// NotYet: nothing of it works.
	NotYet
)

// parseState reads the words of the state column.
func parseState(text string) (State, bool) {
	switch text {
	case "works":
		return Works, true
	case "partly":
		return Partly, true
	case "not yet":
		return NotYet, true
	}
	return 0, false
}

// Row is one requirement of the coverage page.
type Row struct {
	// ID is unique, for example "W1" or "vault#6042".
	ID          string
	Requirement string
	State       State
	// Reach is how a user gets at it, Test what proves it; "–" means nothing.
	Reach string
	Test  string
	// File and Line are where the row stands.
	File string
	Line int
}

// nothing is what an empty cell holds.
const nothing = "–"

// ParseCoverage reads the rows of every table with the header
// "| ID | Requirement | State | Reached by | Test |".
func ParseCoverage(file string, text []byte) ([]Row, []Problem) {
	var (
		rows     []Row
		problems []Problem
		number   int
		inTable  bool
	)
	for line := range bytes.Lines(text) {
		number++
		cells := cells(string(line))
		switch {
		case cells == nil:
			inTable = false
			continue
		case slices.Equal(cells, []string{"ID", "Requirement", "State", "Reached by", "Test"}):
			inTable = true
			continue
		case !inTable, strings.Trim(strings.Join(cells, ""), "-:") == "":
			continue
		case len(cells) != 5:
			problems = append(problems, Problem{file, number, fmt.Sprintf("the row has %d cells, 5 are expected; write \\| for a bar inside a cell", len(cells))})
			continue
		}
		state, ok := parseState(cells[2])
		if !ok {
			problems = append(problems, Problem{file, number, fmt.Sprintf("%s: state %q is none of works, partly, not yet", cells[0], cells[2])})
			continue
		}
		rows = append(rows, Row{cells[0], cells[1], state, cells[3], cells[4], file, number})
	}
	return rows, problems
}

// cells splits a row of a table, nil when the line is none.
func cells(line string) []string {
	line = strings.TrimSpace(line)
	if !strings.HasPrefix(line, "|") || !strings.HasSuffix(line, "|") || len(line) < 2 {
		return nil
	}
	const bar = "\x00"
	parts := strings.Split(strings.ReplaceAll(line[1:len(line)-1], `\|`, bar), "|")
	for i, p := range parts {
		parts[i] = strings.TrimSpace(strings.ReplaceAll(p, bar, "|"))
	}
	return parts
}

// Facts is what the source really has.
type Facts struct {
	// Tests are the names of test, fuzz, benchmark and example functions, and the
	// file names of testscripts.
	Tests map[string]bool
	// Command reports whether the words after "keyturn" name a command.
	Command func(words []string) bool
}

// CheckCoverage compares the rows with the IDs that must be there and with the source.
func CheckCoverage(rows []Row, ids []string, facts Facts) []Problem {
	var problems []Problem
	seen := map[string]bool{}
	for _, row := range rows {
		report := func(format string, args ...any) {
			problems = append(problems, Problem{row.File, row.Line, row.ID + ": " + fmt.Sprintf(format, args...)})
		}
		switch {
		case seen[row.ID]:
			report("the requirement has two rows; delete one")
		case !slices.Contains(ids, row.ID):
			report("unknown requirement; add it to internal/doccheck/requirements.txt")
		}
		seen[row.ID] = true

		tests, unreadable := testNames(row.Test)
		for _, word := range unreadable {
			report("%q is not the name of a test; write TestName, TestName/subtest, FuzzName, BenchmarkName, ExampleName or name.txtar in backticks", word)
		}
		for _, test := range tests {
			function, _, _ := strings.Cut(test, "/")
			if !facts.Tests[function] {
				report("there is no test %s; mend the name, or the state", test)
			}
		}
		if row.State == NotYet {
			continue
		}
		if len(tests) == 0 {
			report("it is said to work and names no test; name one, or write not yet")
		}
		if row.Reach == nothing || row.Reach == "" {
			report("it is said to work and names no way to reach it")
		}
		for _, words := range Commands(row.Reach) {
			if !facts.Command(words) {
				report("there is no command keyturn %s", strings.Join(words, " "))
			}
		}
	}
	for _, id := range ids {
		if !seen[id] {
			problems = append(problems, Problem{Text: fmt.Sprintf("%s has no row", id)})
		}
	}
	return problems
}

var (
	quoted   = regexp.MustCompile("`([^`]+)`")
	testName = regexp.MustCompile(`^((Test|Fuzz|Benchmark|Example)[A-Za-z0-9_]*(/\S+)?|[A-Za-z0-9_.-]+\.(txtar|txt))$`)
)

// testNames returns the names in backticks in a cell, and the words that are no names.
func testNames(cell string) (names, unreadable []string) {
	if cell == nothing || cell == "" {
		return nil, nil
	}
	found := quoted.FindAllStringSubmatch(cell, -1)
	if len(found) == 0 {
		return nil, []string{cell}
	}
	for _, match := range found {
		if testName.MatchString(match[1]) {
			names = append(names, match[1])
		} else {
			unreadable = append(unreadable, match[1])
		}
	}
	return names, unreadable
}

var commandWord = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

// Commands returns the words of each command in backticks, without "keyturn",
// up to the first flag, argument or punctuation.
func Commands(text string) [][]string {
	var all [][]string
	for _, match := range quoted.FindAllStringSubmatch(text, -1) {
		if words := command(match[1]); words != nil {
			all = append(all, words)
		}
	}
	return all
}

// command returns the words of a command line that starts with keyturn, nil for another.
func command(line string) []string {
	fields := strings.Fields(line)
	if len(fields) < 2 || fields[0] != "keyturn" && fields[0] != "bin/keyturn" && fields[0] != "./bin/keyturn" {
		return nil
	}
	var words []string
	for _, field := range fields[1:] {
		if !commandWord.MatchString(field) {
			break
		}
		words = append(words, field)
	}
	return words
}
