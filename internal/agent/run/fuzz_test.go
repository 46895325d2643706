package run

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzParseStat: the kernel's line is read as it was written, whatever a process
// calls itself; names cannot make another process of it.
func FuzzParseStat(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(own), "nginx", 1, int64(5))
	f.Add("1 (a) S", ") S 1 1 1", 7, int64(1<<40))
	f.Add("", "a\n(b", -1, int64(-1))
	f.Add(") (", "((", 0, int64(0))
	f.Add("1 (x) S a 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 b", "))", 2, int64(2))
	f.Fuzz(func(t *testing.T, line, name string, parent int, ticks int64) {
		if p, err := parseStat(line); err == nil {
			if !strings.Contains(line, "("+p.name+")") {
				t.Fatalf("%q holds the name %q", line, p.name)
			}
		} else if p != (process{}) {
			t.Fatalf("%+v beside %v", p, err)
		}
		written := fmt.Sprintf("42 (%s) Z %d%s %d 0 0\n", name, parent, strings.Repeat(" 1", 17), ticks)
		want := process{name: name, parent: parent, startTicks: ticks, zombie: true}
		if p, err := parseStat(written); err != nil || p != want {
			t.Fatalf("%q is read as %+v (%v)", written, p, err)
		}
	})
}

// FuzzParseSignal: what is accepted is the name of a signal.
func FuzzParseSignal(f *testing.F) {
	for _, s := range []string{"HUP", "SIGHUP", "hup", "sigusr1", "SIGSIGHUP", "", "SIG", "1", "0", "-9", "KILL ", "ſIGHUP"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSignal(s)
		if err != nil {
			if n != 0 {
				t.Fatalf("%v beside %v", n, err)
			}
			return
		}
		if again, err := ParseSignal(unix.SignalName(n)); err != nil || again != n {
			t.Fatalf("%q is %v, and that %v (%v)", s, n, again, err)
		}
		if n <= 0 || n >= 65 {
			t.Fatalf("%q is signal %d", s, n)
		}
	})
}
