package policy_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/key"
)

func TestDuration(t *testing.T) {
	for text, want := range map[string]string{
		"30d": "30d", "1w": "7d", "2w1d": "15d", "24h": "1d", "90s": "1m30s", "0s": "0s", "0d": "0s",
		"1d12h": "1d12h", "250ms": "250ms", "1us2ns": "1us2ns", "36500d": "36500d", "001m": "1m",
	} {
		if d, err := policy.ParseDuration(text); err != nil || d.String() != want {
			t.Errorf("%s: got %v, %v, want %s", text, d, err, want)
		}
	}
	for _, bad := range []string{
		"", "0", "5", "d", "-1h", "+1h", "1.5h", "1,5h", "1h ", " 1h", "1 h", "1m1h", "1h1h", "1H", "1y", "1M",
		"36501d", "36500d1ns", "99999999999999999999d", "9223372036854775807w", "1µs", "1h\n", "1hd",
	} {
		if d, err := policy.ParseDuration(bad); err == nil {
			t.Errorf("%q was accepted as %v", bad, d)
		}
	}
	if d := policy.Duration(-90 * time.Second); d.String() != "-1m30s" {
		t.Errorf("a negative duration prints as %s", d)
	}
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{"30d", "1w2d3h4m5s6ms7us8ns", "0s", "1.5h", "36500d", "1m1h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := policy.ParseDuration(s)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("the message has several lines: %q", err)
			}
			return
		}
		if d < 0 || d > policy.MaxDuration {
			t.Fatalf("%q is %d", s, d)
		}
		back, err := policy.ParseDuration(d.String())
		if err != nil || back != d {
			t.Fatalf("%q prints as %q, which is %v, %v", s, d, back, err)
		}
	})
}

func TestDefaultPolicy(t *testing.T) {
	p := policy.Default()
	c, err := policy.Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	resources := []policy.Resource{{Policy: &p}}
	if problems := policy.Lint(resources, policy.LintOptions{}); len(problems) > 0 {
		t.Error(problems)
	}
	checkRoundTrip(t, resources)
	if !p.Spec.Rotate.IsZero() || c.Name() != "default" {
		t.Errorf("got %+v", p)
	}
	if i, ok, err := c.Stage(policy.KeyInfo{}, policy.Party{}); i != 0 || !ok || err != nil {
		t.Errorf("a party is in stage %d, %v, %v", i, ok, err)
	}
	// A key without policy follows it, and so does one that names it.
	empty := load(t, "testdata/good/everything.yaml")
	if name := empty[3].Key.PolicyName(); name != policy.DefaultName {
		t.Errorf("a key without policy follows %q", name)
	}
}

func TestStage(t *testing.T) {
	c := compile(t, `stages:
  - {name: canary, match: 'party.labels.cohort == "canary" && key.labels.tier != "0"'}
  - {name: zoned, match: 'has(party.labels.zone)'}
  - {name: eu, match: 'party.region.startsWith("eu-") && !(party.kind in ["sdk"])'}
  - {name: dotted, match: 'party.labels["a.b/c"] == "x" || party.labels.exists(name, name.startsWith("wave-"))'}
  - {name: rest, match: 'party.name != "nobody"'}`)
	k := policy.KeyInfo{Name: "a", Labels: map[string]string{"tier": "1"}}
	for _, test := range []struct {
		key   policy.KeyInfo
		party policy.Party
		want  int
		ok    bool
	}{
		{k, policy.Party{Labels: map[string]string{"cohort": "canary"}}, 0, true},
		{policy.KeyInfo{}, policy.Party{Labels: map[string]string{"cohort": "canary"}}, 0, true}, // no tier is not tier 0
		{policy.KeyInfo{Labels: map[string]string{"tier": "0"}}, policy.Party{Labels: map[string]string{"cohort": "canary"}}, 4, true},
		{k, policy.Party{}, 4, true},
		{k, policy.Party{Labels: map[string]string{"zone": ""}}, 1, true},
		{k, policy.Party{Region: "eu-1", Kind: "agent"}, 2, true},
		{k, policy.Party{Region: "eu-1", Kind: "sdk"}, 4, true},
		{k, policy.Party{Labels: map[string]string{"a.b/c": "x"}}, 3, true},
		{k, policy.Party{Labels: map[string]string{"wave-2": ""}}, 3, true},
		{k, policy.Party{Name: "nobody"}, 0, false},
	} {
		if got, ok, err := c.Stage(test.key, test.party); got != test.want || ok != test.ok || err != nil {
			t.Errorf("%+v: got stage %d, %v, %v; want %d, %v", test.party, got, ok, err, test.want, test.ok)
		}
	}
}

// TestEvaluationIsBounded: a party whose labels are beyond all bounds makes an error, never a match.
func TestEvaluationIsBounded(t *testing.T) {
	c := compile(t, `stages: [{name: one, match: 'party.labels.all(a, a.matches("(x+)+y"))'}, {name: rest}]`)
	huge := policy.Party{Labels: map[string]string{strings.Repeat("x", 1<<20): ""}}
	if _, ok, err := c.Stage(policy.KeyInfo{}, huge); err == nil || ok {
		t.Errorf("got %v, %v", ok, err)
	}
}

func TestCompiledIsConcurrent(t *testing.T) {
	c := compile(t, `stages: [{name: a, match: 'party.labels.x == "1"'}, {name: rest}]`)
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for range 100 {
				want := i % 2
				party := policy.Party{Labels: map[string]string{"x": []string{"1", "0"}[want]}}
				if got, _, err := c.Stage(policy.KeyInfo{}, party); err != nil || got != want {
					t.Errorf("got %d, %v, want %d", got, err, want)
				}
			}
		})
	}
	group.Wait()
}

func TestApprovals(t *testing.T) {
	always := compile(t, "approvals: {required: 2}")
	tier := compile(t, `approvals: {required: 1, when: 'key.labels.tier == "0"'}`)
	critical := policy.KeyInfo{Labels: map[string]string{"tier": "0"}}
	for i, test := range []struct {
		c    *policy.Compiled
		k    policy.KeyInfo
		want int
	}{{always, policy.KeyInfo{}, 2}, {tier, critical, 1}, {tier, policy.KeyInfo{}, 0}, {compile(t, "quarantine: 1h"), critical, 0}} {
		if got, err := test.c.Approvals(test.k); got != test.want || err != nil {
			t.Errorf("case %d: got %d, %v, want %d", i, got, err, test.want)
		}
	}
}

func TestCompileRefusesWhatParseWould(t *testing.T) {
	p := policy.Default()
	p.Metadata.Name = "a/b"
	p.Spec.Stages[0].Match = "1"
	_, err := policy.Compile(p)
	if !errors.Is(err, policy.ErrInvalid) || !strings.Contains(err.Error(), "metadata.name: ") || !strings.Contains(err.Error(), "spec.stages[0].match: ") {
		t.Errorf("got %v", err)
	}
}

func TestCompileFreeze(t *testing.T) {
	freeze := load(t, "testdata/good/everything.yaml")[1].Freeze
	c, err := policy.CompileFreeze(*freeze)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[key.Name]bool{"prod/a": true, "test/a": false} {
		interval, ok, err := c.Applies(policy.KeyInfo{Name: name})
		if ok != want || err != nil || interval.Reason != "audit" {
			t.Errorf("%s: got %v, %v, %v", name, interval, ok, err)
		}
	}
	freeze.Spec.Match = "key.nam == 1"
	if _, err := policy.CompileFreeze(*freeze); !errors.Is(err, policy.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

// FuzzMatch: whatever compiles is evaluated within bounds, to the same answer
// twice, without a panic; whatever does not is refused with a place.
func FuzzMatch(f *testing.F) {
	for _, s := range []string{
		`party.labels.cohort == "canary"`, `has(party.labels.x) || "y" in key.labels`, "true", "party.labels.all(k, k.matches('a+'))",
		"party.lables.x", "key.name.size() > 3", "[1, 2].exists(x, x == 1)", "party", "has(party)", "has(1)", "party.labels[party.name] == key.owner",
		"timestamp('2026-01-01T00:00:00Z') > timestamp(0)", "1/0 == 1", "party.labels == key.labels", "type(party.labels) == map", "dyn(party.labels).x == ''",
	} {
		f.Add(s, "cohort", "canary")
	}
	f.Fuzz(func(t *testing.T, match, label, value string) {
		if len(label) > 256 || len(value) > 256 {
			return
		}
		p := policy.Default()
		p.Spec.Stages = slices.Insert(p.Spec.Stages, 0, p.Spec.Stages[0])
		p.Spec.Stages[0].Name, p.Spec.Stages[0].Match = "fuzz", match
		c, err := policy.Compile(p)
		if err != nil {
			if !errors.Is(err, policy.ErrInvalid) || !strings.Contains(err.Error(), "spec.stages[0].match") {
				t.Errorf("got %v", err)
			}
			return
		}
		party := policy.Party{ID: value, Name: label, Labels: map[string]string{label: value}}
		begin := time.Now()
		i, ok, err := c.Stage(policy.KeyInfo{}, party)
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("%q took %v", match, took)
		}
		if j, again, errAgain := c.Stage(policy.KeyInfo{}, party); i != j || ok != again || (err == nil) != (errAgain == nil) {
			t.Errorf("%q: got %d, %v, %v, then %d, %v, %v", match, i, ok, err, j, again, errAgain)
		}
		if err == nil && !ok {
			t.Errorf("%q: the stage without match took nobody", match)
		}
	})
}

func TestPlan(t *testing.T) {
	resources := load(t, "testdata/good/design.yaml")
	c, err := policy.Compile(*resources[0].Policy)
	if err != nil {
		t.Fatal(err)
	}
	k := resources[1].Key.Info()
	k.Labels = map[string]string{"tier": "0"}
	now := at(t, "2026-11-23 12:00 UTC")
	in := policy.PlanInput{
		Now: now, Key: k,
		Facts: policy.Facts{Key: k.Name, Created: at(t, "2026-11-01 00:00 UTC")},
		Parties: []policy.Party{
			{ID: "1", Name: "web-2"},
			{ID: "2", Name: "web-1", Labels: map[string]string{"cohort": "canary"}},
			{ID: "3"},
		},
		Topology: policy.Topology{Endpoints: []policy.Endpoint{{Name: "primary"}, {Name: "replica", Region: "eu"}}, Capacity: 2},
	}
	plan, err := c.Plan(in)
	if err != nil {
		t.Fatal(err)
	}
	start := plan.Decision.At
	if start.Before(at(t, "2026-12-01 01:00 UTC")) || !start.Before(at(t, "2026-12-01 03:00 UTC")) || plan.Manual || plan.Approvals != 1 {
		t.Errorf("got %+v", plan)
	}
	type step struct {
		phase, stage, who string
		begin, end        time.Duration
	}
	var got []step
	for _, s := range plan.Steps {
		got = append(got, step{s.Phase, s.Stage, strings.Join(s.Who, ","), s.Begin.Sub(start), s.End.Sub(start)})
	}
	const m, d = time.Minute, 24 * time.Hour
	want := []step{
		{"planned", "", "", 0, 0},
		{"minting", "", "", 0, 0},
		{"accepting", "", "primary,replica (eu)", 0, 0},
		{"presenting", "canary", "web-1", 0, 2 * m},
		{"presenting", "rest", "3,web-2", 2 * m, 3 * m},
		{"draining", "", "", 3 * m, 13 * m},
		{"revoking", "", "primary,replica (eu)", 13 * m, 13 * m},
		{"quarantine", "", "", 13 * m, 13*m + d},
		{"quarantine", "", "", 13*m + d, 13*m + 31*d},
		{"destroying", "", "", 13*m + 31*d, 13*m + 31*d},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}

	in.Parties = in.Parties[:1]
	in.Topology.Gap = true
	plan, err = c.Plan(in)
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	for _, p := range plan.Problems {
		codes = append(codes, p.Code)
	}
	if !slices.Equal(codes, []string{"gap-not-allowed", "empty-stage", "no-room"}) {
		t.Errorf("got %v", plan.Problems)
	}

	manual, err := compile(t, `stages: [{name: a, match: 'party.name == "a"'}]`).Plan(policy.PlanInput{Now: now, Key: k, Parties: in.Parties})
	if err != nil || !manual.Manual || !manual.Steps[0].Begin.Equal(now) || manual.Problems[len(manual.Problems)-1].Code != "no-stage" {
		t.Errorf("got %+v, %v", manual, err)
	}
}

func TestPlanOfUnattendedRotationHasAnEnd(t *testing.T) {
	c := compile(t, "stages: [{name: all, bake: 1m, ackTimeout: 2m}]\ndrain: {min: 1m, quiet: 1m, max: 1h, onMax: revoke}\nquarantine: 1h")
	plan, err := c.Plan(policy.PlanInput{Now: at(t, "2026-11-23 12:00 UTC"), Parties: []policy.Party{{ID: "1"}}})
	if err != nil {
		t.Fatal(err)
	}
	last := plan.Steps[len(plan.Steps)-1]
	if want := at(t, "2026-11-23 14:03 UTC"); !last.Latest.Equal(want) {
		t.Errorf("the latest end is %v, want %v", last.Latest, want)
	}
}

func TestDiff(t *testing.T) {
	parse := func(src string) []policy.Resource {
		resources, err := policy.Parse("d.yaml", []byte(src))
		if err != nil {
			t.Fatal(err)
		}
		return resources
	}
	const head = "apiVersion: keyturn/v1\nkind: %\nmetadata: {name: @}\n"
	doc := func(kind, name, spec string) string {
		return strings.NewReplacer("%", kind, "@", name).Replace(head) + "spec: " + spec + "\n---\n"
	}
	before := parse(doc("Policy", "p", "{stages: [{name: a, match: 'key.owner == \"x\"'}, {name: b}], quarantine: 24h}") +
		doc("Key", "k", "{provider: x, config: {admin: \"postgres://u:old@h/db?sslpassword=old\", password: old, n: [1, 2]}}") +
		doc("Key", "same", "{provider: x}") + doc("Key", "gone", "{provider: x}"))
	after := parse(doc("Key", "new", "{provider: x}") + doc("Key", "same", "{provider: x}") +
		doc("Policy", "p", "{stages: [{name: b, match: 'key.owner == \"x\"'}, {name: a, bake: 2m}], quarantine: 1d, judge: [{name: j, signal: auth_failures}]}") +
		doc("Key", "k", "{provider: x, config: {admin: \"postgres://u:n@w@h/db2?sslpassword=new\", password: new, n: [1]}}"))
	var got []string
	for _, c := range policy.Diff(before, after) {
		got = append(got, c.Op.String()+" "+c.Kind.String()+" "+c.Name)
		if c.Op == policy.Changed {
			for _, f := range c.Fields {
				got = append(got, f.Path+": "+f.Old+" → "+f.New)
			}
		}
	}
	want := []string{
		"changed Policy p",
		`spec.stages[b].match:  → "key.owner == \"x\""`,
		"spec.stages[b].onEmpty: skip → hold",
		"spec.stages[a].bake: 1m → 2m",
		"spec.stages[a].onEmpty: hold → skip",
		"spec.stages: [a, b] → [b, a]",
		"spec.judge[j].name:  → j",
		"spec.judge[j].signal:  → auth_failures",
		"spec.judge[j].max:  → 0",
		"spec.judge[j].minSamples:  → 1",
		"spec.judge:  → [j]",
		`spec.stages[a].match: "key.owner == \"x\"" → `,
		"deleted Key gone",
		"changed Key k",
		`spec.config.admin: "postgres://u:[redacted]@h/db?sslpassword=[redacted]" → "postgres://u:[redacted]@h/db2?sslpassword=[redacted]"`,
		"spec.config.password: [redacted] → [redacted]",
		"spec.config.n[1]: 2 → ",
		"created Key new",
		"unchanged Key same",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestEnumsRefuseTheirZeroValue(t *testing.T) {
	var s policy.Strategy
	if _, err := s.MarshalText(); err == nil || s.String() != "invalid" {
		t.Error("the zero strategy has a name")
	}
	p := policy.Default()
	p.Spec.OnFailure = 0
	if _, err := policy.Marshal(policy.Resource{Policy: &p}); err == nil {
		t.Error("an unset enumeration was printed")
	}
	if _, err := policy.Marshal(policy.Resource{}); !errors.Is(err, policy.ErrInvalid) {
		t.Errorf("an empty resource was printed: %v", err)
	}
}

// TestRegionsMoveInOrder: a stage that orders regions is gone through region by
// region; parties of other regions and of none come last.
func TestRegionsMoveInOrder(t *testing.T) {
	c := compile(t, `stages:
  - {name: canary, match: 'party.labels.cohort == "canary"', bake: 10s}
  - {name: rest, regions: [eu, us], bake: 1m, onEmpty: hold}`)
	var names []string
	for _, s := range c.Stages() {
		names = append(names, fmt.Sprintf("%s %s %v", s.Name, s.Bake, s.OnEmpty))
	}
	if want := []string{"canary 10s hold", "rest/eu 1m hold", "rest/us 1m hold", "rest 1m skip"}; !slices.Equal(names, want) {
		t.Errorf("got stages %q, want %q", names, want)
	}
	canary := policy.Party{ID: "first", Region: "us", Labels: map[string]string{"cohort": "canary"}}
	for i, party := range []policy.Party{canary, {Region: "eu"}, {Region: "us"}, {Region: "ap"}, {}} {
		if got, ok, err := c.Stage(policy.KeyInfo{}, party); got != min(i, 3) || !ok || err != nil {
			t.Errorf("a party in region %q belongs to stage %d, %v, %v; want %d", party.Region, got, ok, err, min(i, 3))
		}
	}
	spec := c.Spec()
	if got := spec.CutOver(); got != policy.Duration(130*time.Second) {
		t.Errorf("the cut-over takes at least %s", got)
	}
	plan, err := c.Plan(policy.PlanInput{Now: at(t, "2026-11-23 12:00 UTC"), Parties: []policy.Party{{ID: "a", Region: "eu"}, {ID: "b", Region: "us"}, {ID: "c", Region: "us"}, canary}})
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	for _, s := range plan.Steps {
		if s.Phase == "presenting" {
			steps = append(steps, s.Stage+" "+strings.Join(s.Who, ","))
		}
	}
	if want := []string{"canary first", "rest/eu a", "rest/us b,c"}; !slices.Equal(steps, want) {
		t.Errorf("the plan presents to %q, want %q", steps, want)
	}
}
