package doccheck_test

import (
	"os"
	"testing"
	"testing/fstest"

	"github.com/keyturn/keyturn/internal/doccheck"
)

// TestFuzzTargetsAreListed: the page on what reads bytes from outside names every
// fuzz target that there is, and no other.
func TestFuzzTargetsAreListed(t *testing.T) {
	found, problems, err := doccheck.CheckFuzz(os.DirFS(root), "docs/design/0011-isolation.md")
	if err != nil {
		t.Fatal(err)
	}
	if found < 30 {
		t.Errorf("only %d fuzz targets were found", found)
	}
	for _, p := range problems {
		t.Error(p)
	}
}

func TestFuzzTargetsAreChecked(t *testing.T) {
	const header = "| what | decoder | fuzz target |\n|---|---|---|\n"
	for name, test := range map[string]struct{ rows, want string }{
		"good":       {"| x | `a` behind `c` | `FuzzOne` |\n| y | `a/b` | `FuzzOne`, `FuzzTwo` |", ""},
		"gone":       {"| x | `a`, `a/b` | `FuzzOne`, `FuzzTwo`, `FuzzThree` |", "p.md:3: there is no fuzz target FuzzThree in `a`, `a/b`"},
		"not listed": {"| x | `a` | `FuzzOne` |\n| y | `a/b` | `FuzzOne` |", "no row has the fuzz target FuzzTwo and its folder `a/b`"},
		"elsewhere":  {"| x | `a/b` | `FuzzOne`, `FuzzTwo` |", "no row has the fuzz target FuzzOne and its folder `a`"},
	} {
		t.Run(name, func(t *testing.T) {
			_, problems, err := doccheck.CheckFuzz(fstest.MapFS{
				"a/a_test.go":          {Data: []byte("package a\n\nfunc FuzzOne(f *testing.F) {}\n\nfunc TestOne(t *testing.T) {}\n")},
				"a/b/b_test.go":        {Data: []byte("package b\n\nfunc FuzzOne(f *testing.F) {}\n\nfunc FuzzTwo(f *testing.F) {}\n")},
				"a/testdata/x_test.go": {Data: []byte("package a\n\nfunc FuzzNo(f *testing.F) {}\n")},
				"p.md":                 {Data: []byte(header + test.rows + "\n")},
			}, "p.md")
			if err != nil {
				t.Fatal(err)
			}
			compare(t, problems, test.want)
		})
	}
}
