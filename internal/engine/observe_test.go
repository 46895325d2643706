package engine_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

func ruleDoc(name, spec string) string {
	return header + "kind: Rule\nmetadata: {name: " + name + "}\nspec: " + spec + "\n"
}

func (w *world) used(name key.Name, v key.Version, address string) engine.Observation {
	return engine.Observation{Key: name, Version: v, Source: "api-key", Application: "shop", Address: address, Count: 1, At: w.config.Now().UTC(), Identified: true}
}

// found returns what rules found, by the audit log: "RULE KEY RESULT by ACTOR".
func (w *world) found(t *testing.T) []string {
	t.Helper()
	list := []string{}
	for _, entry := range w.log(t) {
		if entry.Action == "rule.found" {
			list = append(list, strings.TrimPrefix(entry.Target, "Rule ")+" "+string(entry.Key)+" "+entry.To)
		}
	}
	return list
}

func (w *world) log(t *testing.T) (entries []audit.Entry) {
	t.Helper()
	page, err := w.ReadLog(t.Context(), 0, 1000, engine.LogFilter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range page.Entries {
		entry, err := audit.Decode([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, entry)
	}
	return entries
}

// A key used from a new network is replaced by itself, once, as a rule says; a dry
// run says so before and does nothing; one use after the revocation alerts only.
func TestRuleDeclaresEmergency(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("quick", "  emergency: {strategy: replace-first, grace: 0s}\n"), keyDoc("a", "quick"), keyDoc("b", "quick"))
	w.Start(t.Context())
	for _, name := range []key.Name{"a", "b"} {
		w.through(t, w.rotate(t, name))
	}
	w.Observe(w.used("a", 1, "10.0.0.1"), w.used("b", 1, "10.0.0.1"), w.used("no/such/key", 1, "10.0.0.1"))
	w.jump(time.Minute)
	if err := engine.JudgeUses(t.Context(), w.Engine); err != nil {
		t.Fatal(err)
	}
	w.Observe(w.used("b", 1, "192.0.2.7"))
	if err := engine.JudgeUses(t.Context(), w.Engine); err != nil {
		t.Fatal(err)
	}

	emergency := `{when: use.newNetwork, learn: 0s, then: emergency, strategy: contain-first, mode: enforce}`
	result, err := w.Apply(t.Context(), alice, engine.ApplyRequest{DryRun: true, Documents: []engine.Document{{Name: "r.yaml", Content: []byte(ruleDoc("elsewhere", emergency))}}})
	if err != nil {
		t.Fatal(err)
	}
	told := ""
	for _, p := range result.Problems {
		told += p.Error() + "\n"
	}
	if !strings.Contains(told, "would have found 1 anomaly") || !strings.Contains(told, "key b: rule elsewhere: 1 use of v1 within 5m, at last by shop at 192.0.2.7") {
		t.Errorf("the dry run says:\n%s", told)
	}
	if len(w.found(t)) != 0 || len(w.rotations(t, "b")) != 1 {
		t.Fatal("the dry run did something")
	}

	w.apply(t, ruleDoc("elsewhere", emergency), ruleDoc("noted", `{when: use.newNetwork, learn: 0s, then: suspend}`), ruleDoc("revoked", `{when: use.afterRevocation, then: emergency, mode: enforce}`),
		ruleDoc("blind", `{when: use.replay, then: emergency, mode: enforce, match: key.name == "b"}`))
	for range 2 { // told twice, it is one emergency
		w.Observe(w.used("a", 1, "192.0.2.9"))
		if err := engine.JudgeUses(t.Context(), w.Engine); err != nil {
			t.Fatal(err)
		}
	}
	list := w.rotations(t, "a")
	if len(list) != 2 || list[0].Kind != rotation.Emergency || list[0].Actor != "rule/elsewhere" || !strings.Contains(list[0].Reason, "192.0.2.9") {
		t.Fatalf("%+v", list)
	}
	view := w.through(t, list[0].ID)
	if view.To != 2 {
		t.Errorf("it brings in %v", view.To)
	}
	refused := w.used("a", 1, "192.0.2.9")
	refused.Refused = true
	w.Observe(refused, w.used("b", 1, ""))
	if err := engine.JudgeUses(t.Context(), w.Engine); err != nil {
		t.Fatal(err)
	}
	if n := len(w.rotations(t, "a")); n != 2 {
		t.Errorf("a refused use led to a rotation: there are %d", n)
	}
	if n := len(w.rotations(t, "b")); n != 1 {
		t.Errorf("no data led to a rotation: there are %d", n)
	}
	got := w.found(t)
	slices.Sort(got)
	want := []string{"blind b no-data", "elsewhere a emergency", "elsewhere b no-data", "noted a dry-run", "noted b no-data", "revoked a alert"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	alarms, err := w.Alarms(t.Context())
	if err != nil || len(alarms) != 5 {
		t.Errorf("%+v, %v", alarms, err)
	}
	w.jump(2 * time.Hour)
	if alarms, err = w.Alarms(t.Context()); err != nil || len(alarms) != 0 {
		t.Errorf("they do not end: %+v, %v", alarms, err)
	}
}

// A rule that fires everywhere stops at its limit and calls a human.
func TestRuleStopsAtItsLimit(t *testing.T) {
	w := newWorld(t)
	names := []key.Name{"a", "b", "c"}
	w.apply(t, policyDoc("quick", ""), keyDoc("a", "quick"), keyDoc("b", "quick"), keyDoc("c", "quick"),
		ruleDoc("all", `{when: 'use.source == "api-key"', then: suspend, mode: enforce, maxPerHour: 2}`))
	w.Start(t.Context())
	for _, name := range names {
		w.through(t, w.rotate(t, name))
	}
	for _, name := range names {
		w.Observe(w.used(name, 1, "10.0.0.1"))
	}
	if err := engine.JudgeUses(t.Context(), w.Engine); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(w.found(t), ", "); got != "all a suspend, all b suspend, all c limit" {
		t.Error(got)
	}
	if n := len(w.rotations(t, "c")); n != 1 {
		t.Errorf("key c has %d rotations", n)
	}
	view := w.through(t, w.rotations(t, "a")[0].ID)
	if view.Plan.Strategy != rotation.ContainFirst {
		t.Errorf("suspended by %v", view.Plan.Strategy)
	}
}

// Nobody hides in a crowd: who comes after the names that are kept is judged as
// somebody unknown, for whom there is no data.
func TestRuleInACrowd(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("quick", ""), keyDoc("a", "quick"), ruleDoc("thief", `{when: use.address == "192.0.2.1", then: alert, mode: enforce}`))
	for i := range 100 {
		w.Observe(w.used("a", 1, fmt.Sprintf("10.0.0.%d", i)))
	}
	w.Observe(w.used("a", 1, "192.0.2.1"))
	if err := engine.JudgeUses(t.Context(), w.Engine); err != nil {
		t.Fatal(err)
	}
	if got := w.found(t); !slices.Equal(got, []string{"thief a no-data"}) {
		t.Errorf("%q", got)
	}
}

// More rules than are evaluated are not taken.
func TestTooManyRules(t *testing.T) {
	w := newWorld(t)
	var all strings.Builder
	for i := range policy.MaxRules + 1 {
		all.WriteString(ruleDoc(fmt.Sprint("r", i), `{when: use.newNetwork, then: alert}`))
	}
	if codes := w.try(t, engine.ApplyRequest{}, all.String()); !slices.Contains(codes, "too-many") {
		t.Errorf("%q", codes)
	}
}

// Somebody who may not write a key cannot bring a rule over it.
func TestRuleNeedsItsKeys(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("quick", ""), keyDoc("team/a", "quick"), keyDoc("other/b", "quick"))
	own := engine.ApplyRequest{Allowed: func(name key.Name) bool { return strings.HasPrefix(string(name), "team/") }}
	if codes := w.try(t, own, ruleDoc("r", `{when: use.newNetwork, then: suspend}`)); len(codes) != 1 || codes[0] != "not-allowed" {
		t.Errorf("%q", codes)
	}
	if codes := w.try(t, own, ruleDoc("r", `{when: use.newNetwork, then: suspend, match: key.name.startsWith("team/")}`)); len(codes) != 0 {
		t.Errorf("%q", codes)
	}
}

// The sessions that a system reports of a version while it drains are judged: one
// of nobody who presents the key is found, by its own name and address.
func TestRuleJudgesSessions(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("quick", ""), keyDoc("a", "quick"), ruleDoc("strangers", `{when: use.source == "sessions" && !use.known, then: alert, mode: enforce}`))
	w.Start(t.Context())
	w.through(t, w.rotate(t, "a"))
	w.system.SetHolders(provider.Holder{Endpoint: "one", Address: "192.0.2.1", Application: "psql\x1b[2J", Sessions: 1})
	id := w.rotate(t, "a")
	eventually(t, "a finding", func() bool {
		if err := engine.JudgeUses(t.Context(), w.Engine); err != nil {
			t.Fatal(err)
		}
		return len(w.found(t)) > 0
	})
	w.system.SetHolders()
	w.through(t, id)
	if got := w.found(t); !slices.Equal(got, []string{"strangers a alert"}) {
		t.Errorf("%q", got)
	}
	alarms, err := w.Alarms(t.Context())
	if err != nil || len(alarms) != 1 || !strings.Contains(alarms[0].Message, "v1 within 5m, at last by psql?[2J at 192.0.2.1 (sessions)") {
		t.Errorf("%+v, %v", alarms, err)
	}
}
