package anomaly_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/anomaly"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/key"
)

var begin = time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)

func rules(t testing.TB, specs ...string) []*policy.CompiledRule {
	t.Helper()
	var list []*policy.CompiledRule
	for i, spec := range specs {
		text := fmt.Sprintf("apiVersion: keyturn/v1\nkind: Rule\nmetadata: {name: r%d}\nspec: %s\n", i, spec)
		resources, err := policy.Parse("rules.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		compiled, err := policy.CompileRule(*resources[0].Rule)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, compiled)
	}
	return list
}

var orders = policy.KeyInfo{Name: "prod/orders", Labels: map[string]string{"tier": "1"}}

func use(after time.Duration, address string) anomaly.Use {
	return anomaly.Use{
		At: begin.Add(after), Source: "api-key", Version: 1, State: "active", Label: "current", Application: "shop", Address: address, Count: 1,
		Known: policy.Yes,
	}
}

func told(verdicts []anomaly.Verdict) string {
	var list []string
	for _, v := range verdicts {
		list = append(list, fmt.Sprintf("%s@%v nodata=%t uses=%d", v.Rule, v.Use.At.Sub(begin), v.NoData != nil, v.Uses))
	}
	return strings.Join(list, "; ")
}

// TestConditions folds uses and says which rule must fire when.
func TestConditions(t *testing.T) {
	day := 24 * time.Hour
	refused := func(u anomaly.Use) anomaly.Use { u.Refused, u.Revoked = true, true; return u }
	many := func(u anomaly.Use, n int) anomaly.Use { u.Count = n; return u }
	for name, test := range map[string]struct {
		rule string
		uses []anomaly.Use
		want string
	}{
		"the first network is not new": {`{when: use.newNetwork, then: alert}`, []anomaly.Use{use(2*day, "10.0.0.1"), use(4*day, "10.0.0.9")}, ""},
		"a network while learning":     {`{when: use.newNetwork, then: alert}`, []anomaly.Use{use(0, "10.0.0.1"), use(time.Hour, "10.0.1.1"), use(2*day, "10.0.1.7")}, ""},
		"a new network":                {`{when: use.newNetwork, then: alert}`, []anomaly.Use{use(0, "10.0.0.1"), use(2*day, "192.0.2.1")}, "r0@48h0m0s nodata=false uses=1"},
		"new for one window":           {`{when: use.newNetwork, then: alert, window: 2h}`, []anomaly.Use{use(0, "10.0.0.1"), use(2*day, "192.0.2.1"), use(2*day+90*time.Minute, "192.0.2.2"), use(2*day+3*time.Hour, "192.0.2.3")}, "r0@48h0m0s nodata=false uses=1"},
		"a network that is allowed":    {`{when: 'use.newNetwork && !inNetwork(use.address, "192.0.2.0/24")', then: alert}`, []anomaly.Use{use(0, "10.0.0.1"), use(2*day, "192.0.2.1")}, ""},
		"IPv4 within IPv6":             {`{when: '!inNetwork(use.address, "192.0.2.0/24")', then: alert}`, []anomaly.Use{use(0, "::ffff:192.0.2.1")}, ""},
		"at least three":               {`{when: use.newNetwork, then: alert, learn: 0s, atLeast: 3}`, []anomaly.Use{use(0, "10.0.0.1"), use(time.Second, "192.0.2.1"), use(2*time.Second, "192.0.2.1"), use(3*time.Second, "192.0.2.2")}, "r0@3s nodata=false uses=3"},
		"too few in the window":        {`{when: 'use.region == ""', then: alert, window: 1m, atLeast: 3}`, []anomaly.Use{use(0, "10.0.0.1"), use(time.Minute, "10.0.0.1"), use(2*time.Minute, "10.0.0.1")}, ""},
		"an impossible rate":           {`{when: use.rate > 100.0, then: alert, window: 1m}`, []anomaly.Use{many(use(0, "10.0.0.1"), 80), many(use(30*time.Second, "10.0.0.1"), 80)}, "r0@30s nodata=false uses=80"},
		"a rate that is possible":      {`{when: use.rate > 100.0, then: alert, window: 1m}`, []anomaly.Use{many(use(0, "10.0.0.1"), 80), many(use(2*time.Minute, "10.0.0.1"), 80)}, ""},
		"after revocation":             {`{when: use.afterRevocation, then: alert}`, []anomaly.Use{use(0, "10.0.0.1"), refused(use(time.Second, "10.0.0.1"))}, "r0@1s nodata=false uses=1"},
		"a refused use teaches nothing": {
			`{when: use.newNetwork && !use.refused, then: alert, learn: 0s}`,
			[]anomaly.Use{use(0, "10.0.0.1"), refused(use(time.Second, "192.0.2.1")), use(2*time.Hour, "192.0.2.1")},
			"r0@2h0m0s nodata=false uses=1",
		},
		"many networks":          {`{when: use.networks >= 3, then: alert}`, []anomaly.Use{use(0, "10.0.0.1"), use(time.Second, "10.0.1.1"), use(2*time.Second, "10.0.2.1")}, "r0@2s nodata=false uses=1"},
		"told once an hour":      {`{when: 'use.region == ""', then: alert}`, []anomaly.Use{use(0, ""), use(time.Minute, ""), use(time.Hour, "")}, "r0@0s nodata=false uses=1; r0@1h0m0s nodata=false uses=1"},
		"no address is no data":  {`{when: '!inNetwork(use.address, "10.0.0.0/8")', then: alert}`, []anomaly.Use{use(0, ""), use(time.Minute, ""), use(time.Hour, "")}, "r0@0s nodata=true uses=0; r0@1h0m0s nodata=true uses=0"},
		"a wrong address":        {`{when: '!inNetwork(use.address, "10.0.0.0/8")', then: alert}`, []anomaly.Use{use(0, "unix")}, "r0@0s nodata=true uses=0"},
		"nobody tells of replay": {`{when: use.replay, then: alert}`, []anomaly.Use{use(0, "10.0.0.1")}, "r0@0s nodata=true uses=0"},
		"what does not matter":   {`{when: 'use.version > 1 && use.replay', then: alert}`, []anomaly.Use{use(0, "10.0.0.1")}, ""},
		"another key":            {`{when: 'use.version == 1', match: 'key.labels.tier == "0"', then: alert}`, []anomaly.Use{use(0, "10.0.0.1")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, verdicts := anomaly.Fold(anomaly.Memory{}, rules(t, test.rule), orders, test.uses)
			if got := told(verdicts); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			for _, v := range verdicts {
				if !strings.Contains(v.String(), "rule r0") {
					t.Errorf("the verdict does not name its rule: %s", v)
				}
			}
		})
	}
}

func random(r *rand.Rand, n int) []anomaly.Use {
	var uses []anomaly.Use
	at := time.Duration(0)
	for range n {
		at += time.Duration(r.IntN(int(10 * time.Minute)))
		u := use(at, fmt.Sprintf("10.%d.%d.1", r.IntN(2), r.IntN(60)))
		u.Version, u.Count, u.Refused = key.Version(1+r.IntN(20)), r.IntN(50), r.IntN(5) == 0
		u.Application = fmt.Sprint("app-", r.IntN(100))
		if r.IntN(10) == 0 {
			u.Address = ""
		}
		uses = append(uses, u)
	}
	return uses
}

// TestFoldDivided: however uses are divided into calls, and with the memory stored
// between them, the verdicts and the memory are the same; and that is bounded.
func TestFoldDivided(t *testing.T) {
	list := rules(t, `{when: use.newNetwork, then: alert, learn: 1h}`, `{when: use.rate > 10.0 || use.newApplication, then: suspend, window: 1h, atLeast: 20}`,
		`{when: '!inNetwork(use.address, "10.0.0.0/9")', then: emergency}`)
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		uses := random(r, 400)
		whole, want := anomaly.Fold(anomaly.Memory{}, list, orders, uses)
		if len(want) == 0 {
			t.Fatal("nothing was found")
		}
		var memory anomaly.Memory
		var got []anomaly.Verdict
		for rest := uses; len(rest) > 0; {
			n := 1 + r.IntN(len(rest))
			before := memory
			kept, err := json.Marshal(before)
			if err != nil {
				t.Fatal(err)
			}
			var verdicts []anomaly.Verdict
			memory, verdicts = anomaly.Fold(before, list, orders, rest[:n])
			if after, _ := json.Marshal(before); string(after) != string(kept) {
				t.Fatal("Fold changed what it was given")
			}
			got, rest = append(got, verdicts...), rest[n:]
			text, err := json.Marshal(memory)
			if err != nil {
				t.Fatal(err)
			}
			memory = anomaly.Memory{}
			if err := json.Unmarshal(text, &memory); err != nil {
				t.Fatal(err)
			}
			checkBounds(t, &memory)
		}
		a, _ := json.Marshal(whole)
		b, _ := json.Marshal(memory)
		if told(got) != told(want) || string(a) != string(b) {
			t.Fatalf("seed %d: divided %s\nwhole %s", seed, told(got), told(want))
		}
	}
}

func checkBounds(t *testing.T, m *anomaly.Memory) {
	t.Helper()
	if len(m.Networks) > anomaly.MaxSeen || len(m.Applications) > anomaly.MaxSeen || len(m.Recent) > anomaly.MaxRecent {
		t.Fatalf("%d networks, %d applications, %d counts", len(m.Networks), len(m.Applications), len(m.Recent))
	}
	if most := anomaly.MaxPrints * 8; len(m.Older.Young) > most || len(m.Older.Old) > most || len(m.Sources) > anomaly.MaxSources || len(m.News) > 31 {
		t.Fatalf("%d and %d bytes of prints, %d sources, %d spans", len(m.Older.Young), len(m.Older.Old), len(m.Sources), len(m.News))
	}
	for name, r := range m.Rules {
		if len(r.Matches) > anomaly.MaxMatches || len(r.Fired) > anomaly.MaxFired || len(r.Doubts) > anomaly.MaxDoubts || len(r.Doubted) > 151 || len(r.Learnt) > 31 {
			t.Fatalf("rule %s: %d matches, %d fired, %d doubts, %d and %d spans", name, len(r.Matches), len(r.Fired), len(r.Doubts), len(r.Doubted), len(r.Learnt))
		}
	}
}

// TestForgets: what a rule that is gone remembered is gone with it.
func TestForgets(t *testing.T) {
	m, _ := anomaly.Fold(anomaly.Memory{}, rules(t, `{when: 'use.version == 1', then: alert}`), orders, []anomaly.Use{use(0, "10.0.0.1")})
	if len(m.Rules) != 1 {
		t.Fatal("the rule remembers nothing")
	}
	if m, _ = anomaly.Fold(m, nil, orders, []anomaly.Use{use(0, "10.0.0.1")}); len(m.Rules) != 0 || len(m.Networks) != 1 {
		t.Errorf("%+v", m)
	}
}

func TestNetwork(t *testing.T) {
	got := []string{}
	for _, address := range []string{"10.1.2.3", "::ffff:10.1.2.3", "2001:db8:1:2::3", "fe80::1%eth0", "", "unix", "10.1.2.3:80"} {
		got = append(got, anomaly.Network(address))
	}
	want := []string{"10.1.2.0/24", "10.1.2.0/24", "2001:db8:1::/48", "fe80::/48", "", "", ""}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// FuzzRule decodes rules and tries them: a rule that compiles never panics, its
// memory is bounded, it fires for its own uses only, and no data never matches.
func FuzzRule(f *testing.F) {
	for _, spec := range []string{
		`{when: use.newNetwork, then: alert}`, `{when: use.rate > 1.0, then: suspend, mode: enforce}`, `{when: use.replay, then: emergency, strategy: contain-first}`,
		`{when: 'inNetwork(use.address, "10.0.0.0/8")', match: 'key.labels.tier == "1"', then: alert, window: 1s, learn: 0s, atLeast: 2}`,
		`{when: 'use.address.matches("^10[.]") && use.at.getHours() < 5', then: alert}`,
	} {
		f.Add(spec, "10.0.0.1", uint8(3))
	}
	f.Fuzz(func(t *testing.T, spec, address string, n uint8) {
		text := "apiVersion: keyturn/v1\nkind: Rule\nmetadata: {name: r}\nspec: " + spec + "\n"
		resources, err := policy.Parse("f.yaml", []byte(text))
		if err != nil || len(resources) != 1 || resources[0].Rule == nil {
			return
		}
		rule, err := policy.CompileRule(*resources[0].Rule)
		if err != nil {
			return
		}
		var uses []anomaly.Use
		for i := range n {
			uses = append(uses, use(time.Duration(i)*time.Minute, address))
		}
		m, verdicts := anomaly.Fold(anomaly.Memory{}, []*policy.CompiledRule{rule}, orders, uses)
		checkBounds(t, &m)
		for _, v := range verdicts {
			switch {
			case v.Rule != "r" || v.Spec.Then == 0 || v.Spec.Mode == 0:
				t.Errorf("incomplete: %+v", v)
			case v.NoData == nil && v.Uses < v.Spec.AtLeast:
				t.Errorf("it fired for %d uses, %d are needed", v.Uses, v.Spec.AtLeast)
			case v.NoData != nil && v.Uses != 0:
				t.Errorf("no data matched: %+v", v)
			}
		}
	})
}
