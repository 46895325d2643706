package breaker_test

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/internal/engine/breaker"
)

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

func config() breaker.Config {
	return breaker.Config{
		Failures: 3, First: time.Second, Last: 8 * time.Second, Abandoned: 2,
		Spread: func(d time.Duration) time.Duration { return d - 1 }, // the longest pauses
	}
}

func wantBounds(t *testing.T, what string, s *breaker.Set, now time.Time, want map[string]int) {
	t.Helper()
	if got := s.Bounds(now, 8); !maps.Equal(got, want) {
		t.Errorf("%s: bounds %v, want %v", what, got, want)
	}
}

func TestOpensAndCloses(t *testing.T) {
	s, now := breaker.New(config()), epoch
	fail := func() { s.Failed("db", "no answer", now.Add(-time.Second), now) }
	fail()
	fail()
	wantBounds(t, "two failures", s, now, nil)
	s.Answered("db")
	fail()
	fail()
	wantBounds(t, "two more, an answer between", s, now, nil)
	now = now.Add(time.Minute)
	fail()
	wantBounds(t, "three in a row", s, now, map[string]int{"db": 0})
	silent, is := s.Find("db")
	if !is || !silent.Since.Equal(epoch.Add(-time.Second)) || silent.Cause != "no answer" {
		t.Errorf("%+v %v", silent, is)
	}
	if next := s.Next(now); !next.Equal(now.Add(time.Second - 1)) {
		t.Errorf("next at %v", next)
	}
	now = now.Add(time.Second)
	wantBounds(t, "after the pause", s, now, map[string]int{"db": 1})
	for i, pause := range []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second, 8 * time.Second, 8 * time.Second} {
		fail()
		at := now.Add(pause)
		wantBounds(t, fmt.Sprint("before pause ", i), s, at.Add(-time.Millisecond), map[string]int{"db": 0})
		wantBounds(t, fmt.Sprint("after pause ", i), s, at, map[string]int{"db": 1})
		now = at
	}
	s.Answered("db")
	wantBounds(t, "after an answer", s, now, nil)
	if _, is := s.Find("db"); is || len(s.List()) != 0 {
		t.Error("it is still silent")
	}
}

func TestAbandonedCallsAreBounded(t *testing.T) {
	s := breaker.New(config())
	s.Abandoned("db", epoch)
	wantBounds(t, "one", s, epoch, map[string]int{"db": 7})
	s.Answered("db") // other calls still return
	s.Abandoned("db", epoch)
	wantBounds(t, "two", s, epoch, map[string]int{"db": 0})
	wantBounds(t, "an hour later", s, epoch.Add(time.Hour), map[string]int{"db": 0})
	if silent, is := s.Find("db"); !is || silent.Abandoned != 2 || !silent.Since.Equal(epoch) {
		t.Errorf("%+v %v", silent, is)
	}
	s.Returned("db")
	wantBounds(t, "one has returned", s, epoch, map[string]int{"db": 7})
	s.Returned("db")
	s.Returned("db")
	wantBounds(t, "both have", s, epoch, nil)
}

func TestForgets(t *testing.T) {
	s := breaker.New(config())
	for i := range breaker.MaxTargets + 100 {
		for range 3 {
			s.Failed(fmt.Sprint(i), "gone", epoch, epoch)
		}
	}
	if n := len(s.List()); n != breaker.MaxTargets {
		t.Errorf("%d targets are remembered", n)
	}
	later := epoch.Add(time.Hour)
	wantBounds(t, "nobody asks any more", s, later, nil)
	if n := len(s.List()); n != 0 {
		t.Errorf("%d are silent for ever", n)
	}
}

// Whatever happens, a target that answers is never bounded by failures, and one
// that does not is asked again within the longest pause.
func TestAlwaysAskedAgain(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := config()
		c.Spread = func(d time.Duration) time.Duration {
			return time.Duration(rapid.Int64Range(0, int64(d)-1).Draw(rt, "spread"))
		}
		s, now := breaker.New(c), epoch
		failures := 0
		rt.Repeat(map[string]func(*rapid.T){
			"fail": func(*rapid.T) { s.Failed("db", "x", now, now); failures++ },
			"answer": func(*rapid.T) {
				s.Answered("db")
				failures = 0
			},
			"wait": func(rt *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 9000).Draw(rt, "ms")) * time.Millisecond)
			},
			"": func(rt *rapid.T) {
				bound, bounded := s.Bounds(now, 8)["db"]
				if failures < c.Failures && bounded {
					rt.Fatalf("bounded by %d after %d failures", bound, failures)
				}
				if bounded && bound > 1 {
					rt.Fatalf("%d calls at once of a silent target", bound)
				}
				if next := s.Next(now); !next.IsZero() && next.Sub(now) > c.Last {
					rt.Fatalf("not asked before %v", next.Sub(now))
				}
			},
		})
	})
}
