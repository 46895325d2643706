package archtest

import (
	"bytes"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// leftover finds the marks of unfinished work. The brackets keep this file from
// finding itself; the same below.
var leftover = regexp.MustCompile(`\b(TO[D]O|FIX[M]E|XX[X]|HAC[K])\b`)

// machine finds paths of one machine and host names of package registries.
var machine = regexp.MustCompile(`(^|[^A-Za-z0-9_.~/-])/(w[o]rk|f[a]rm|r[o]ot)/|\.libr[a]ry/` +
	`|\b(proxy|sum)[.]golang[.]org\b|\bregistry[.]npmjs[.]org\b|\bpypi[.]org\b|\bdeb[.]debian[.]org\b|\bindex[.]crates[.]io\b`)

// checkLeftovers reports marks of unfinished work: in Go in comments, elsewhere anywhere.
func checkLeftovers(m *Module, _ Rules) []Violation {
	var out []Violation
	report := func(file string, line int, mark []byte) {
		out = append(out, Violation{
			Rule: "leftover", File: file, Line: line,
			Problem: fmt.Sprintf("%s marks unfinished work", mark),
			Mend:    "finish it, or file an issue",
		})
	}
	for _, p := range m.Packages {
		for _, f := range p.Files {
			start := m.fset.File(f.Syntax.FileStart)
			for _, at := range leftover.FindAllIndex(f.Content, -1) {
				pos := start.Pos(at[0])
				if isComment(f.Syntax.Comments, pos) {
					report(f.Name, m.line(pos), f.Content[at[0]:at[1]])
				}
			}
		}
	}
	for _, text := range m.Texts {
		if foreign(text.Name) {
			continue
		}
		for line, content := range numbered(text.Content) {
			for _, mark := range leftover.FindAll(content, -1) {
				report(text.Name, line, mark)
			}
		}
	}
	return out
}

// checkMachine reports paths of the machine a file was written on, and host
// names of package registries: neither means anything to a user.
func checkMachine(m *Module, r Rules) []Violation {
	var out []Violation
	look := func(name string, content []byte) {
		if foreign(name) || excepted(r.Machine, name) {
			return
		}
		for line, content := range numbered(content) {
			if found := machine.Find(content); found != nil {
				out = append(out, Violation{
					Rule: "machine", File: name, Line: line,
					Problem: fmt.Sprintf("%q belongs to one machine", bytes.TrimSpace(found)),
					Mend:    "use a relative path, a temporary folder, or the tool's own configuration",
				})
			}
		}
	}
	for _, p := range m.Packages {
		for _, f := range p.Files {
			look(f.Name, f.Content)
		}
	}
	for _, text := range m.Texts {
		look(text.Name, text.Content)
	}
	return out
}

// foreign reports whether a file is not written by hand: sums, licences, and
// inputs that a fuzzer found.
func foreign(name string) bool {
	base := path.Base(name)
	return base == "go.sum" || base == "LICENSE" || slices.Contains(strings.Split(name, "/"), "fuzz") && inTestdata(name)
}

// numbered yields the lines of a text, counted from 1.
func numbered(content []byte) func(yield func(int, []byte) bool) {
	return func(yield func(int, []byte) bool) {
		n := 0
		for line := range bytes.Lines(content) {
			n++
			if !yield(n, line) {
				return
			}
		}
	}
}

// checkExceptions reports exceptions that give no reason.
func checkExceptions(_ *Module, r Rules) []Violation {
	var out []Violation
	for _, list := range [...][]Exception{r.Plaintext, r.Clock, r.Init, r.Variables, r.Skip, r.Sleep, r.Machine} {
		for _, e := range list {
			if e.Reason == "" || e.Path != path.Clean(e.Path) {
				out = append(out, Violation{
					Rule: "exception", File: e.Path,
					Problem: "the exception gives no reason, or its path is not clean",
					Mend:    "say why in internal/archtest/exceptions.go, or delete it",
				})
			}
		}
	}
	return out
}
