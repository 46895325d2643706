package archtest

import (
	"cmp"
	"fmt"
	"slices"
)

// Violation is one place that breaks a rule.
type Violation struct {
	// Rule is the rule's stable name, for example "floor".
	Rule string
	// File is the path below the module's root, Line counts from 1; 0 means the whole file.
	File string
	Line int
	// Problem says what is wrong, Mend what to do about it.
	Problem string
	Mend    string
}

// String returns "file:line: rule: problem; mend".
func (v Violation) String() string {
	at := v.File
	if v.Line > 0 {
		at = fmt.Sprintf("%s:%d", v.File, v.Line)
	}
	return fmt.Sprintf("%s: %s: %s; %s", at, v.Rule, v.Problem, v.Mend)
}

// Check applies every rule to the module and returns what breaks them, in the
// order of files and lines.
func Check(m *Module, r Rules) []Violation {
	var all []Violation
	for _, rule := range []func(*Module, Rules) []Violation{
		checkFloors, checkReach, checkPurity, checkClock, checkReveal,
		checkPackages, checkDeclarations, checkTests, checkLeftovers, checkMachine,
		checkExceptions,
	} {
		all = append(all, rule(m, r)...)
	}
	slices.SortStableFunc(all, func(a, b Violation) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Rule, b.Rule))
	})
	return all
}
