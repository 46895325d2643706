package archtest

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestKeyturn applies the rules to this module.
func TestKeyturn(t *testing.T) {
	m, err := Load("../..")
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Packages) < 6 || len(m.Texts) < 6 {
		t.Fatalf("only %d packages and %d texts were found", len(m.Packages), len(m.Texts))
	}
	for _, v := range Check(m, Keyturn()) {
		t.Error(v)
	}
}

// TestEveryRuleFails applies the rules to a fake module. A line that breaks one
// says so: "want RULE". Nothing else may be reported, and every rule must be.
func TestEveryRuleFails(t *testing.T) {
	m, err := Load("testdata/fake")
	if err != nil {
		t.Fatal(err)
	}
	none := []string{}
	got := Check(m, Rules{
		MaxLines: 50,
		Floors: []Place{
			{Path: "base", Floor: 0, Only: none, Foreign: none, Pure: true},
			{Path: "pure", Floor: 1, Only: []string{"base"}, Foreign: []string{"outside.example/good"}, Pure: true, NoContext: true},
			{Path: "store", Floor: 2, Only: []string{"base"}, Apart: true},
			{Path: "tester", Floor: 2, ForTests: true},
			{Path: "util", Floor: 2},
			{Path: "engine", Floor: 3, Only: []string{"base", "store"}},
			{Path: "middle", Floor: 4},
			{Path: "client", Floor: 5, Never: []string{"engine"}},
		},
		Init: []Exception{{Path: "nothing", Reason: ""}},
	})

	var found []string
	rules := map[string]bool{}
	for _, v := range got {
		if v.Problem == "" || v.Mend == "" {
			t.Errorf("%v lacks a problem or a mend", v)
		}
		rules[v.Rule] = true
		found = append(found, fmt.Sprintf("%s:%d: %s", v.File, v.Line, v.Rule))
	}
	want := append(wanted(m), "nothing:0: exception")
	slices.Sort(want)
	slices.Sort(found)
	for _, w := range want {
		if !slices.Contains(found, w) {
			t.Errorf("not reported: %s", w)
		}
	}
	for i, v := range found {
		if !slices.Contains(want, v) {
			t.Errorf("reported, but nothing is wrong there: %s", v)
		}
		if i > 0 && found[i-1] == v {
			t.Errorf("reported twice: %s", v)
		}
	}
	for _, rule := range []string{
		"floor", "reach", "pure", "clock", "reveal", "name", "comment", "long",
		"init", "variable", "skip", "sleep", "leftover", "machine", "exception",
	} {
		if !rules[rule] {
			t.Errorf("the fake module does not break rule %q", rule)
		}
	}
}

var marker = regexp.MustCompile(`\bwant(-file)? ([a-z]+)`)

// wanted reads the markers of the fake module.
func wanted(m *Module) []string {
	var want []string
	look := func(name string, content []byte) {
		for line, text := range numbered(content) {
			for _, match := range marker.FindAllSubmatch(text, -1) {
				if len(match[1]) > 0 {
					line = 0
				}
				want = append(want, fmt.Sprintf("%s:%d: %s", name, line, match[2]))
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
	return want
}

// TestMachine puts the texts together, because this file may not contain them.
func TestMachine(t *testing.T) {
	folder, registry := "/wo"+"rk/here", "pro"+"xy.golang"+".org"
	for text, want := range map[string]bool{
		"a path: " + folder: true, "https://" + registry: true, "var" + folder: false, "/var" + folder: false, "~" + folder: false,
		"the proxy of golang": false,
	} {
		if machine.MatchString(text) != want {
			t.Errorf("%q: want found %v", text, want)
		}
	}
}

// TestFloorsGoDown checks the table itself: no place twice, nothing allowed that
// stands on the same floor or higher, nothing both allowed and forbidden.
func TestFloorsGoDown(t *testing.T) {
	r := Keyturn()
	places := map[string]bool{}
	for _, p := range r.Floors {
		if places[p.Path] {
			t.Errorf("%s has two places", p.Path)
		}
		places[p.Path] = true
		for _, only := range p.Only {
			target := r.place(strings.TrimSuffix(only, "/..."))
			if target == nil {
				t.Errorf("%s may import %s, which has no place", p.Path, only)
				continue
			}
			if target.Floor >= p.Floor {
				t.Errorf("%s on floor %d may import %s on floor %d", p.Path, p.Floor, only, target.Floor)
			}
			if matches(p.Never, only) {
				t.Errorf("%s may import %s and must never reach it", p.Path, only)
			}
		}
		for _, beside := range p.Beside {
			if target := r.place(beside); target == nil || target.Floor != p.Floor {
				t.Errorf("%s names %s beside itself, which stands elsewhere", p.Path, beside)
			}
		}
	}
	if len(r.Floors) != len(places) || !slices.IsSortedFunc(r.Floors, func(a, b Place) int { return cmp.Compare(a.Floor, b.Floor) }) {
		t.Error("the table is not in the order of floors")
	}
}

// TestFloorsAreDocumented checks that the decision names every place of the table.
func TestFloorsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/design/0002-floors.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range floors() {
		row := fmt.Sprintf("| %d | `%s` |", p.Floor, p.Path)
		if !bytes.Contains(text, []byte(row)) {
			t.Errorf("docs/design/0002-floors.md has no row that begins with %s", row)
		}
	}
}
