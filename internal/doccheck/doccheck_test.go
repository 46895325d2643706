package doccheck_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/keyturn/keyturn/internal/doccheck"
)

const (
	root     = "../.."
	coverage = "docs/coverage.md"
)

func TestCoverage(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, coverage))
	if err != nil {
		t.Fatal(err)
	}
	tests, err := doccheck.Tests(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	if !tests["TestCoverage"] {
		t.Fatal("not even this test was found")
	}
	exists := commands(t)
	if exists == nil {
		exists = func([]string) bool { return false }
	}
	rows, problems := doccheck.ParseCoverage(coverage, text)
	problems = append(problems, doccheck.CheckCoverage(rows, doccheck.Requirements(), doccheck.Facts{Tests: tests, Command: exists})...)
	for _, p := range problems {
		t.Error(p)
	}
}

func TestPages(t *testing.T) {
	tree := os.DirFS(root)
	pages, err := doccheck.Pages(tree)
	if err != nil {
		t.Fatal(err)
	}
	if len(pages) < 4 {
		t.Fatalf("only %d pages were found", len(pages))
	}
	problems, err := doccheck.CheckNames(tree, pages)
	if err != nil {
		t.Fatal(err)
	}
	problems = append(problems, doccheck.CheckLinks(tree, pages)...)
	problems = append(problems, doccheck.CheckIndex(pages, "docs/design/0001-decisions.md")...)
	// Coverage rows and decisions may speak of what is planned.
	pages = slices.DeleteFunc(pages, func(p *doccheck.Page) bool {
		return p.Name == coverage || strings.HasPrefix(p.Name, "docs/design/")
	})
	if exists := commands(t); exists != nil {
		problems = append(problems, doccheck.CheckCommands(pages, exists)...)
	}
	for _, p := range problems {
		t.Error(p)
	}
}

// commands asks the real program, once for each question: help for a command
// names it in its usage line. It returns nil as long as there is no program.
func commands(t *testing.T) func(words []string) bool {
	t.Helper()
	if _, err := os.Stat(root + "/cmd/keyturn"); err != nil {
		return nil
	}
	var program string
	known := map[string]bool{}
	return func(words []string) bool {
		name := strings.Join(words, " ")
		if answer, asked := known[name]; asked {
			return answer
		}
		if program == "" {
			program = filepath.Join(t.TempDir(), "keyturn")
			build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./cmd/keyturn")
			build.Dir = root
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("build keyturn: %v\n%s", err, out)
			}
		}
		out, err := exec.CommandContext(t.Context(), program, append(slices.Clone(words), "--help")...).CombinedOutput()
		known[name] = err == nil && strings.Contains(string(out), "keyturn "+name)
		return known[name]
	}
}

const header = "| ID | Requirement | State | Reached by | Test |\n|---|---|---|---|---|\n"

func TestCoverageIsChecked(t *testing.T) {
	facts := doccheck.Facts{
		Tests:   map[string]bool{"TestReal": true, "run.txtar": true},
		Command: func(words []string) bool { return strings.Join(words, " ") == "policy lint" },
	}
	for name, test := range map[string]struct{ rows, want string }{
		"good":            {"| A | x | works | `keyturn policy lint FILE` | `TestReal/sub`, `run.txtar` |", ""},
		"planned":         {"| A | x | not yet | `keyturn later` | – |", ""},
		"bar":             {"| A | x \\| y | partly | a page | `TestReal` |", ""},
		"missing":         {"| B | x | not yet | – | – |", "B: unknown requirement; A has no row"},
		"twice":           {"| A | x | not yet | – | – |\n| A | x | not yet | – | – |", "two rows"},
		"state":           {"| A | x | done | – | – |", `state "done"; A has no row`},
		"cells":           {"| A | x | not yet | – |", "4 cells; A has no row"},
		"no test":         {"| A | x | partly | a page | – |", "names no test"},
		"no reach":        {"| A | x | works | – | `TestReal` |", "names no way"},
		"unknown test":    {"| A | x | not yet | – | `TestGone` |", "there is no test TestGone"},
		"unknown command": {"| A | x | works | `keyturn policy burn` | `TestReal` |", "no command keyturn policy burn"},
		"not a test":      {"| A | x | works | a page | by hand |", `"by hand" is not; names no test`},
		"not a name":      {"| A | x | works | a page | `go test` |", `"go test" is not; names no test`},
	} {
		t.Run(name, func(t *testing.T) {
			rows, problems := doccheck.ParseCoverage("c.md", []byte("# C\n\n"+header+test.rows+"\n"))
			problems = append(problems, doccheck.CheckCoverage(rows, []string{"A"}, facts)...)
			compare(t, problems, test.want)
		})
	}
}

func TestPagesAreChecked(t *testing.T) {
	for name, test := range map[string]struct{ page, want string }{
		"good":            {"# One two\n\n[a](b.md#a-heading) [c](#one-two) [d](https://x/y) [e](../LICENSE) [f](/LICENSE)\n[r]: b.md\n`make test` Go 1.26", ""},
		"code":            {"`[a](gone.md)`\n```\n[b](gone.md)\n```\n", ""},
		"file":            {"[a](gone.md)", "docs/a.md:1: link gone.md: there is no docs/gone.md"},
		"reference":       {"\n[a]: gone.md", "docs/a.md:2: link gone.md"},
		"anchor":          {"[a](b.md#gone)", "no heading"},
		"own anchor":      {"[a](#gone)", "no heading"},
		"outside":         {"[a](../../x)", "leaves the repository"},
		"target":          {"`make tset`", "no target tset"},
		"target in block": {"```sh\n$ make test tset\n```", "no target tset"},
		"version":         {"needs Go 1.21", "it says Go 1.21, go.mod says 1.26"},
		"command":         {"```\nkeyturn run --all\nkeyturn bake\n```\n`keyturn bake x`", "docs/a.md:3: there is no command keyturn bake; docs/a.md:5: there is no command keyturn bake"},
	} {
		t.Run(name, func(t *testing.T) {
			tree := fstest.MapFS{
				"LICENSE":            {Data: []byte("x")},
				"Makefile":           {Data: []byte("test: ## run\n\techo gone:\n")},
				"go.mod":             {Data: []byte("module m\n\ngo 1.26.0\n")},
				"docs/a.md":          {Data: []byte(test.page)},
				"docs/b.md":          {Data: []byte("# B\n## A `heading`\n")},
				"docs/testdata/c.md": {Data: []byte("[a](gone.md)")},
				".hidden/c.md":       {Data: []byte("[a](gone.md)")},
			}
			pages, err := doccheck.Pages(tree)
			if err != nil {
				t.Fatal(err)
			}
			problems, err := doccheck.CheckNames(tree, pages)
			if err != nil {
				t.Fatal(err)
			}
			problems = append(problems, doccheck.CheckLinks(tree, pages)...)
			problems = append(problems, doccheck.CheckCommands(pages, func(words []string) bool { return words[0] == "run" })...)
			compare(t, problems, test.want)
		})
	}
}

func TestIndexIsChecked(t *testing.T) {
	pages, err := doccheck.Pages(fstest.MapFS{
		"d/1.md":   {Data: []byte("[two](2.md), `[three](3.md)`")},
		"d/2.md":   {Data: []byte("two")},
		"d/3.md":   {Data: []byte("three")},
		"d/e/4.md": {Data: []byte("four")},
	})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, doccheck.CheckIndex(pages, "d/1.md"), "d/3.md: the index d/1.md has no link")
}

func TestTestsAreFound(t *testing.T) {
	got, err := doccheck.Tests(fstest.MapFS{
		"a/a_test.go":             {Data: []byte("package a\n\nfunc TestOne(t *testing.T) {}\nfunc (x) TestNo() {}\nfunc FuzzTwo(f *testing.F) {}\n")},
		"a/a.go":                  {Data: []byte("package a\n\nfunc TestNot() {}\n")},
		"a/testdata/x_test.go":    {Data: []byte("package a\n\nfunc TestFake(t *testing.T) {}\n")},
		"a/testdata/script.txtar": {Data: []byte("exec x\n")},
		"bin/b_test.go":           {Data: []byte("func TestBuilt(t *testing.T) {}\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"TestOne", "FuzzTwo", "script.txtar"} {
		if !got[want] {
			t.Errorf("%s was not found", want)
		}
		delete(got, want)
	}
	if len(got) > 0 {
		t.Errorf("found as well: %v", got)
	}
}

// compare expects one problem for each part of want, in order.
func compare(t *testing.T, problems []doccheck.Problem, want string) {
	t.Helper()
	var parts []string
	if want != "" {
		parts = strings.Split(want, "; ")
	}
	if len(problems) != len(parts) {
		t.Fatalf("got %v, want %d problems: %s", problems, len(parts), want)
	}
	for i, part := range parts {
		if !strings.Contains(problems[i].String(), part) {
			t.Errorf("got %q, want it to contain %q", problems[i], part)
		}
	}
}
