package cli_test

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"

	"github.com/keyturn/keyturn/internal/cli"
)

// screen is a terminal: what was written, and the lines as they look at the end.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

// lines are what a terminal shows.
func (s *screen) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, line := range strings.Split(s.text.String(), "\n") {
		if i := strings.LastIndex(line, "\r\x1b[2K"); i >= 0 {
			line = line[i+len("\r\x1b[2K"):]
		}
		list = append(list, strings.NewReplacer("\x1b[2m", "", "\x1b[0m", "").Replace(line))
	}
	return list
}

// TestLiveProgress: each state has a line with the time it took, the last one is
// redrawn as time passes, and none is wider than the terminal.
func TestLiveProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &screen{}
		update, end := cli.LiveProgress(s, time.Now, 40)
		update(&keyturnv1.Rotation{Phase: "planned"})
		time.Sleep(1500 * time.Millisecond)
		update(&keyturnv1.Rotation{Phase: "planned"})
		update(&keyturnv1.Rotation{Phase: "accepting", Waiting: []*keyturnv1.Waiting{{Message: "a verifier with a very long name has not answered\x1b[31m"}}})
		time.Sleep(62 * time.Second)
		if got := s.lines(); len(got) != 2 || !strings.HasSuffix(got[1], "1m1s") {
			t.Errorf("before the end: %q", got)
		}
		update(&keyturnv1.Rotation{Phase: "done", Ended: true})
		end()
		lines := s.lines()
		if len(lines) != 4 || !strings.HasSuffix(lines[0], "planned  1s") || !strings.Contains(lines[1], "…") || !strings.HasSuffix(lines[2], "done  0s") || lines[3] != "" {
			t.Errorf("at the end: %q", lines)
		}
		for _, line := range lines {
			if utf8.RuneCountInString(line) > 40 {
				t.Errorf("%q is wider than the terminal", line)
			}
			if strings.Contains(line, "\x1b") {
				t.Errorf("%q has control characters of others", line)
			}
		}
	})
}

func TestHeadline(t *testing.T) {
	for want, r := range map[string]*keyturnv1.Rotation{
		"draining, on hold: version 1 is still used after 1h (mend it, then keyturn rotation resume 0123456789ab)": oldRotation(),
		"done": {Phase: "done", Ended: true, Waiting: []*keyturnv1.Waiting{{Message: "x"}}},
		"accepting, waiting: region eu: not there: a and 2 more": {Phase: "accepting", Waiting: []*keyturnv1.Waiting{{Message: "not there", Region: "eu", Names: []string{"a"}, Total: 3}}},
		"draining, version 1 is held by 2 clients":               {Phase: "draining", From: 1, Holders: []*keyturnv1.Holder{{}, {}}},
		"planned, on hold: it waits":                             {Phase: "planned", Hold: &keyturnv1.Hold{Message: "it waits"}},
	} {
		if got := cli.Headline(r); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
