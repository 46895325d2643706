package spelling_test

import (
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/spelling"
)

func TestNearest(t *testing.T) {
	known := []string{"stages", "stage", "drain", "joinTokenFile", strings.Repeat("x", 64) + "one"}
	for _, c := range []struct {
		word string
		most int
		want string
	}{
		{"stages", 2, "stages"},
		{"stags", 2, "stages"}, // the first of two that are as near
		{"satge", 1, "stage"},
		{"DRIAN", 1, "drain"},
		{"drn", 1, ""},
		{"drn", 2, "drain"},
		{"jointokenfile", 0, "joinTokenFile"},
		{"quarantine", 3, ""},
		{"", 2, ""},
		{strings.Repeat("x", 64) + "another", 0, strings.Repeat("x", 64) + "one"},
		{strings.Repeat("y", 1<<20), 3, ""},
	} {
		if got := spelling.Nearest(c.word, known, c.most); got != c.want {
			t.Errorf("%.20q within %d: %.20q, want %.20q", c.word, c.most, got, c.want)
		}
	}
	if got := spelling.Nearest("a", nil, 5); got != "" {
		t.Errorf("of none: %q", got)
	}
}
