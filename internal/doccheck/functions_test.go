package doccheck_test

import (
	"os"
	"testing"
	"testing/fstest"

	"github.com/keyturn/keyturn/internal/doccheck"
)

func TestArchitectureNamesRealFunctions(t *testing.T) {
	checked, problems, err := doccheck.CheckFunctions(os.DirFS(root), "ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	if checked < 40 {
		t.Errorf("only %d functions were found in the page", checked)
	}
	for _, p := range problems {
		t.Error(p)
	}
}

func TestFunctionsAreChecked(t *testing.T) {
	const header = "| when | folder | functions | what happens |\n|---|---|---|---|\n"
	for name, test := range map[string]struct{ row, want string }{
		"good":      {"| x | `a` | `run` `Stop` `Map` | y |", ""},
		"gone":      {"| x | `a` | `run` `walk` | y |", "p.md:3: there is no function walk in a"},
		"in a test": {"| x | `a` | `TestRun` | y |", "no function TestRun"},
		"folder":    {"| x | `b` | `run` | y |", "no Go code in b"},
	} {
		t.Run(name, func(t *testing.T) {
			_, problems, err := doccheck.CheckFunctions(fstest.MapFS{
				"a/a.go":      {Data: []byte("package a\n\nfunc run() {}\n\nfunc (s *S) Stop() {}\n\nfunc Map[T any]() {}\n")},
				"a/a_test.go": {Data: []byte("package a\n\nfunc TestRun(t *testing.T) {}\n")},
				"p.md":        {Data: []byte(header + test.row + "\n")},
			}, "p.md")
			if err != nil {
				t.Fatal(err)
			}
			compare(t, problems, test.want)
		})
	}
}
