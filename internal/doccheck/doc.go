// Package doccheck finds where the documentation has drifted from the source:
// requirements without a row in docs/coverage.md, rows that name a test or a
// command that does not exist, relative links that lead nowhere, code blocks that
// are not what stands in the file they are from, make targets
// and Go versions that are not those of the Makefile and go.mod.
//
// The package reads files and runs nothing; its test runs the built binary for
// the names of commands.
package doccheck

import "fmt"

// Problem is one place that is wrong.
type Problem struct {
	// File is the path below the module's root with forward slashes.
	File string
	// Line counts from 1; 0 means the whole file.
	Line int
	// Text says what is wrong and what to do about it.
	Text string
}

// String returns "file:line: text".
func (p Problem) String() string {
	if p.Line == 0 {
		return fmt.Sprintf("%s: %s", p.File, p.Text)
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text)
}
