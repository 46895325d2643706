package archtest

import (
	"fmt"
	"slices"
	"strings"
)

// checkFloors reports packages without a place and imports that a place forbids.
func checkFloors(m *Module, r Rules) []Violation {
	var out []Violation
	for _, p := range m.Packages {
		from := r.place(p.Dir)
		if from == nil {
			out = append(out, Violation{
				Rule: "floor", File: p.Files[0].Name, Line: m.line(p.Files[0].Syntax.Package),
				Problem: fmt.Sprintf("folder %s stands on no floor", p.Dir),
				Mend:    "give it a line in internal/archtest/floors.go and a reason in docs/design/0002-floors.md",
			})
			continue
		}
		for _, f := range p.Files {
			for _, i := range f.Imports {
				if problem := r.judge(m, from, p.Dir, f.Test, i.Path); problem != "" {
					out = append(out, Violation{
						Rule: "floor", File: f.Name, Line: m.line(i.Pos),
						Problem: fmt.Sprintf("%s imports %s: %s", p.Dir, i.Path, problem),
						Mend:    "turn the dependency round by an interface of the lower package, or move the code",
					})
				}
			}
		}
	}
	return out
}

// judge returns what is wrong with an import, or "".
func (r Rules) judge(m *Module, from *Place, dir string, test bool, imported string) string {
	to, ok := m.inside(imported)
	if !ok {
		return judgeForeign(from, test, imported)
	}
	target := r.place(to)
	switch {
	case target == nil:
		return "" // reported where that package stands, or the compiler reports that there is none
	case test && target.ForTests:
		return ""
	case target == from:
		return judgeNeighbour(from, dir, to, test)
	case matches(from.Beside, to):
		return ""
	case target.Floor >= from.Floor:
		return fmt.Sprintf("floor %d must not look up to floor %d", from.Floor, target.Floor)
	case target.ForTests && !from.ForTests:
		return "it serves tests only"
	case test || from.Only == nil || matches(from.Only, to):
		return ""
	case len(from.Only) == 0:
		return "it may import nothing of this module"
	}
	return "it may import only " + strings.Join(from.Only, ", ")
}

func judgeNeighbour(from *Place, dir, to string, test bool) string {
	if from.Apart && !test && !within(dir, to) && !within(to, dir) {
		return fmt.Sprintf("the folders below %s must not know each other", from.Path)
	}
	return ""
}

func judgeForeign(from *Place, test bool, imported string) string {
	first, _, _ := strings.Cut(imported, "/")
	if !strings.Contains(first, ".") || test || from.Foreign == nil {
		return "" // the standard library, or free to choose
	}
	for _, module := range from.Foreign {
		if within(imported, module) {
			return ""
		}
	}
	if len(from.Foreign) == 0 {
		return "it may import the standard library only"
	}
	return "of other modules it may import only " + strings.Join(from.Foreign, ", ")
}

// checkReach reports packages that reach, directly or through others, what their
// place forbids by Never, with the way there.
func checkReach(m *Module, r Rules) []Violation {
	graph := map[string][]string{}
	for _, p := range m.Packages {
		for _, f := range p.Files {
			for _, i := range f.Imports {
				if to, ok := m.inside(i.Path); ok && !f.Test && !slices.Contains(graph[p.Dir], to) {
					graph[p.Dir] = append(graph[p.Dir], to)
				}
			}
		}
	}
	var out []Violation
	for _, p := range m.Packages {
		place := r.place(p.Dir)
		if place == nil {
			continue
		}
		for _, never := range place.Never {
			if way := reach(graph, p.Dir, never); way != nil {
				out = append(out, Violation{
					Rule: "reach", File: p.Files[0].Name, Line: m.line(p.Files[0].Syntax.Package),
					Problem: fmt.Sprintf("%s must never reach %s, but %s", p.Dir, never, strings.Join(way, " imports ")),
					Mend:    "cut the way",
				})
			}
		}
	}
	return out
}

// reach returns a shortest way from a folder into target, nil when there is none.
func reach(graph map[string][]string, from, target string) []string {
	before := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		if at != from && within(at, target) {
			var way []string
			for ; at != ""; at = before[at] {
				way = append(way, at)
			}
			slices.Reverse(way)
			return way
		}
		for _, next := range graph[at] {
			if _, seen := before[next]; !seen {
				before[next] = at
				queue = append(queue, next)
			}
		}
	}
	return nil
}
