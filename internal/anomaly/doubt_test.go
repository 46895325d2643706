package anomaly_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/anomaly"
)

// quiet is a key that was used from one network for a week.
func quiet() []anomaly.Use {
	var uses []anomaly.Use
	for at := time.Duration(0); at < 7*day; at += time.Hour {
		uses = append(uses, use(at, "10.0.0.1"))
	}
	return uses
}

// TestThiefTeachesNothing: somebody who uses a stolen key from another network every
// hour is found each time, and told of as one who was found before in those that he
// stays in; only where what was found is confirmed, or after the time for that, the
// key is one for which new networks are usual.
func TestThiefTeachesNothing(t *testing.T) {
	list := rules(t, `{when: use.newNetwork, then: emergency}`)
	m, verdicts := anomaly.Fold(anomaly.Memory{}, list, orders, quiet())
	if len(verdicts) > 0 {
		t.Fatal(told(verdicts))
	}
	var thief []anomaly.Use
	for i := range 48 {
		thief = append(thief, use(8*day+time.Duration(i)*time.Hour, fmt.Sprintf("203.0.%d.9", i)))
	}
	m, verdicts = anomaly.Fold(m, list, orders, thief)
	checkBounds(t, &m)
	if len(verdicts) != 48 || slices.ContainsFunc(verdicts, func(v anomaly.Verdict) bool { return v.Repeated }) {
		t.Fatalf("he was found %d times in 48 networks: %s", len(verdicts), told(verdicts))
	}
	// In one that he was found in he stays suspect, once a day; and he is found in others.
	var later []anomaly.Use
	for at := 10 * day; at < 13*day; at += 3 * time.Hour {
		later = append(later, use(at, "203.0.47.9"))
	}
	after, verdicts := anomaly.Fold(m, list, orders, later)
	if len(verdicts) != 2 || !verdicts[0].Repeated || !verdicts[1].Repeated || !strings.Contains(verdicts[0].String(), "confirmed by nobody") {
		t.Errorf("where he stays: %s", told(verdicts))
	}
	if _, verdicts = anomaly.Fold(after, list, orders, []anomaly.Use{use(13*day, "198.51.100.1")}); len(verdicts) != 1 || verdicts[0].Repeated {
		t.Errorf("in another network: %s", told(verdicts))
	}
	// A week after he was found nobody had objected.
	if _, verdicts = anomaly.Fold(after, list, orders, []anomaly.Use{use(18*day, "203.0.47.9"), use(18*day+time.Hour, "198.51.100.1")}); len(verdicts) != 0 {
		t.Errorf("after a week: %s", told(verdicts))
	}
	// Nor where somebody says that it is rightful.
	accepted, what := after.Accept(anomaly.Selection{All: true}, begin.Add(13*day))
	if _, verdicts = anomaly.Fold(accepted, list, orders, []anomaly.Use{use(14*day, "203.0.47.9"), use(14*day+time.Hour, "198.51.100.1")}); len(verdicts) != 0 || len(what) != anomaly.MaxDoubts {
		t.Errorf("%d were confirmed, then: %s", len(what), told(verdicts))
	}
}

// TestConfirmOnce: one network that is confirmed is known; one that is forgotten is
// new, and so is what was learnt without anybody's word.
func TestConfirmOnce(t *testing.T) {
	list := rules(t, `{when: use.newNetwork, then: alert}`, `{when: use.newApplication, then: alert, confirm: 0s}`)
	moved := use(8*day, "203.0.113.9")
	moved.Application = "billing"
	m, verdicts := anomaly.Fold(anomaly.Memory{}, list, orders, append(quiet(), moved))
	if len(verdicts) != 2 || len(m.Rules["r0"].Doubts) != 1 || len(m.Rules["r1"].Doubts) != 0 {
		t.Fatalf("%s, %+v", told(verdicts), m.Rules)
	}
	again := use(10*day, "203.0.113.9")
	again.Application = "billing"
	at := begin.Add(9 * day)
	for name, test := range map[string]struct {
		change func(anomaly.Memory) anomaly.Memory
		want   string
	}{
		"nobody says anything": {func(m anomaly.Memory) anomaly.Memory { return m }, "r0 again"},
		"confirmed": {func(m anomaly.Memory) anomaly.Memory {
			m, _ = m.Accept(anomaly.Selection{Networks: []string{"203.0.113.0/24"}}, at)
			return m
		}, ""},
		"another is confirmed": {func(m anomaly.Memory) anomaly.Memory {
			m, _ = m.Accept(anomaly.Selection{Networks: []string{"198.51.100.0/24"}, Applications: []string{"billing"}}, at)
			return m
		}, "r0 again"},
		"forgotten": {func(m anomaly.Memory) anomaly.Memory {
			m, names := m.Forget(anomaly.Selection{Networks: []string{"203.0.113.0/24"}, Applications: []string{"billing"}})
			if !slices.Equal(names, []string{"203.0.113.0/24", "billing"}) {
				t.Errorf("forgot %v", names)
			}
			return m
		}, "r0 r1"},
		"all is forgotten": {func(m anomaly.Memory) anomaly.Memory {
			m, _ = m.Forget(anomaly.Selection{All: true})
			return m
		}, ""},
	} {
		_, verdicts := anomaly.Fold(test.change(m), list, orders, []anomaly.Use{again})
		var got []string
		for _, v := range verdicts {
			if got = append(got, v.Rule); v.Repeated {
				got[len(got)-1] += " again"
			}
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
	if len(m.Rules["r0"].Doubts) != 1 || len(m.Networks) != 2 {
		t.Error("the memory that was given is changed")
	}
}

// TestDoubtIsOfWhatIsNew: a rule that matches for another reason doubts nothing, and
// goes on as it did; of two new things only the one that the condition asks for is.
func TestDoubtIsOfWhatIsNew(t *testing.T) {
	list := rules(t,
		`{when: use.rate > 100.0, then: alert, window: 1m}`, `{when: 'use.newNetwork || use.count > 50', then: alert}`, `{when: use.newApplication, then: alert}`,
		`{when: 'use.newNetwork && use.newApplication', then: alert}`, `{when: 'use.newNetwork || use.newApplication', then: alert}`)
	much := use(8*day, "203.0.113.9")
	much.Application, much.Count = "billing", 200
	m, verdicts := anomaly.Fold(anomaly.Memory{}, list, orders, append(quiet(), much))
	if len(verdicts) != 5 {
		t.Fatal(told(verdicts))
	}
	var got []string
	for _, rule := range list {
		var kinds []string
		for _, d := range m.Rules[rule.Name()].Doubts {
			kinds = append(kinds, string(d.Kind))
		}
		got = append(got, rule.Name()+":"+strings.Join(kinds, "+"))
	}
	if want := "r0: r1: r2:application r3:network+application r4:network+application"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	much.At = much.At.Add(2 * time.Hour)
	if _, verdicts = anomaly.Fold(m, list, orders, []anomaly.Use{much}); told(verdicts) != "r0@194h0m0s nodata=false uses=200; r1@194h0m0s nodata=false uses=200" || verdicts[0].Repeated || verdicts[1].Repeated {
		t.Errorf("two hours later: %s", told(verdicts))
	}
}

// TestMoreFollows: a rule that noted something in a dry run, or told of it, fires on
// the same again once more is to follow, at once and for what it doubts; not for less.
func TestMoreFollows(t *testing.T) {
	uses := append(quiet(), use(8*day, "203.0.113.9"))
	var m anomaly.Memory
	at := 8 * day
	for i, step := range []struct {
		rule  string
		fires bool
	}{
		{`{when: use.newNetwork, then: emergency}`, true}, // a dry run
		{`{when: use.newNetwork, then: alert}`, false},
		{`{when: use.newNetwork, then: alert, mode: enforce}`, true},
		{`{when: use.newNetwork, then: alert, mode: enforce}`, false},
		{`{when: use.newNetwork, then: emergency, mode: enforce}`, true},
		{`{when: use.newNetwork, then: alert, mode: enforce}`, false},
		{`{when: use.newNetwork, then: suspend, mode: enforce}`, true},
		{`{when: use.newNetwork, then: suspend, mode: enforce}`, false},
		{`{when: use.newNetwork, then: emergency}`, false},
	} {
		var verdicts []anomaly.Verdict
		m, verdicts = anomaly.Fold(m, rules(t, step.rule), orders, uses)
		if (len(verdicts) == 1) != step.fires || step.fires && verdicts[0].Repeated {
			t.Errorf("step %d, %s: %s", i, step.rule, told(verdicts))
		}
		at += 20 * time.Minute // longer than the window, shorter than the hour
		uses = []anomaly.Use{use(at, "203.0.113.9")}
	}
}
