package mutant

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// TestOneMistakeAtATime: the binary makes the mistake that it is asked for, and none
// when it is asked for none.
func TestOneMistakeAtATime(t *testing.T) {
	t.Chdir("testdata/sum")
	list := []Mistake{
		{"sum.go", "total += n", "total -= n"},
		{"sum.go", "total += n", "total += n + 1"},
		{"sum.go", "s.count++", "s.count--"},
	}
	binary, err := Build(t.Context(), t.TempDir(), list)
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range []string{"", "sum is -6", "sum is 9", "count is -1"} {
		child := Command(t.Context(), binary, n, "TestSum")
		if n == 0 {
			child = exec.CommandContext(t.Context(), binary, "-test.v")
		}
		out, err := child.CombinedOutput()
		if (err != nil) != (want != "") || !strings.Contains(string(out), want) {
			t.Errorf("mistake %d: %v, want %q:\n%s", n, err, want, out)
		}
	}
}

// TestMistakesThatDoNotFit are errors, lest a mutant that changes nothing be missed.
func TestMistakesThatDoNotFit(t *testing.T) {
	for name, m := range map[string]Mistake{
		"gone":               {"testdata/sum/sum.go", "total *= n", ""},
		"twice":              {"testdata/sum/sum.go", "total", "sum"},
		"outside a function": {"testdata/sum/sum.go", "count int", "count uint"},
	} {
		if _, err := Build(t.Context(), t.TempDir(), []Mistake{m}); !errors.Is(err, errPlace) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
