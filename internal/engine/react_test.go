package engine_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// judge lets the rules judge uses now.
func (w *world) judge(t *testing.T, uses ...engine.Observation) {
	t.Helper()
	w.Observe(uses...)
	if err := engine.JudgeUses(t.Context(), w.Engine); err != nil {
		t.Fatal(err)
	}
}

func refused(one engine.Observation) engine.Observation {
	one.Refused, one.Identified = true, false
	return one
}

// A version that was revoked in good order, and never compromised, is found when it
// is tried. As long as it drains it is not, whoever is refused with it; nor when it
// was used before it was revoked, and that is told late.
func TestUseAfterRevocation(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("quick", "  quarantine: 1h\n"), keyDoc("a", "quick"), ruleDoc("revoked", `{when: use.afterRevocation, then: alert, mode: enforce}`))
	w.Start(t.Context())
	w.through(t, w.rotate(t, "a"))
	w.system.SetHolders(provider.Holder{Endpoint: "one", Address: "10.0.0.1", Application: "shop", Sessions: 1})
	id := w.rotate(t, "a")
	w.wait(t, id, func(view engine.RotationView) bool { return view.Phase == rotation.Draining })
	w.judge(t, w.used("a", 1, "10.0.0.1"), refused(w.used("a", 1, "10.0.0.1")), refused(w.used("a", 2, "10.0.0.1")))
	if got := w.found(t); len(got) > 0 {
		t.Fatalf("while the version drains: %q", got)
	}
	w.system.SetHolders()
	w.through(t, id)
	w.judge(t, w.used("a", 1, "10.0.0.1"), refused(w.used("a", 2, "10.0.0.1")))
	if got := w.found(t); len(got) > 0 {
		t.Fatalf("uses of before, and of the current version: %q", got)
	}
	w.judge(t, refused(w.used("a", 1, "192.0.2.1")))
	if got := w.found(t); !slices.Equal(got, []string{"revoked a alert"}) {
		t.Fatalf("%q", got)
	}
	w.jump(2 * time.Hour)
	w.wait(t, id, func(view engine.RotationView) bool { return view.Phase == rotation.Done })
	w.judge(t, refused(w.used("a", 1, "192.0.2.1")))
	if got := w.found(t); len(got) != 2 {
		t.Errorf("after the quarantine: %q", got)
	}
	view, err := w.Key(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := view.State.Version(1); ok && v.State == key.Compromised {
		t.Errorf("version 1 is %v", v.State)
	}
}

// A rule that finds in the replacement what it found in the key that it replaced
// does not replace it again, nor does another rule; after a day it may.
func TestRuleLeavesItsOwnRotationAlone(t *testing.T) {
	w := newWorld(t)
	misfiring := `{when: 'use.source == "api-key"', then: emergency, mode: enforce, maxPerHour: 100}`
	w.apply(t, policyDoc("quick", "  emergency: {strategy: replace-first, grace: 0s}\n"), keyDoc("a", "quick"), ruleDoc("first", misfiring), ruleDoc("second", misfiring))
	w.Start(t.Context())
	w.through(t, w.rotate(t, "a"))
	w.judge(t, w.used("a", 1, "10.0.0.1"))
	list := w.rotations(t, "a")
	if len(list) != 2 || list[0].Actor != "rule/first" {
		t.Fatalf("%+v", list)
	}
	w.through(t, list[0].ID)
	for range 3 {
		w.judge(t, w.used("a", 2, "10.0.0.1"))
		w.jump(2 * time.Hour)
	}
	got := w.found(t)
	want := []string{"first a emergency", "second a alert"}
	for range 3 {
		want = append(want, "first a misfire", "second a misfire")
	}
	if !slices.Equal(got, want) {
		t.Fatalf("got  %q\nwant %q", got, want)
	}
	if n := len(w.rotations(t, "a")); n != 2 {
		t.Fatalf("there are %d rotations", n)
	}
	w.jump(24 * time.Hour)
	w.judge(t, w.used("a", 2, "10.0.0.1"))
	if list = w.rotations(t, "a"); len(list) != 3 {
		t.Errorf("after a day: %q", w.found(t))
	}
	rules, err := w.Rules(t.Context())
	if err != nil || len(rules) != 2 || rules[0].Results["misfire"] != 3 || rules[0].Results["emergency"] != 2 || rules[0].Last.Result != "emergency" {
		t.Errorf("%+v, %v", rules, err)
	}
}

// Rules declare so many emergencies for one key within an hour, and no more,
// although others rotate it between.
func TestRulesStopAtTheLimitOfAKey(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("quick", "  emergency: {strategy: contain-first, grace: 0s}\n"), keyDoc("a", "quick"),
		ruleDoc("all", `{when: 'use.source == "api-key"', then: emergency, mode: enforce, maxPerHour: 100}`))
	w.Start(t.Context())
	var want []string
	for i := range engine.DefaultActsOfKey + 1 {
		view := w.through(t, w.rotate(t, "a"))
		w.judge(t, w.used("a", view.To, "10.0.0.1"))
		if i < engine.DefaultActsOfKey {
			want = append(want, "all a emergency")
			w.through(t, w.rotations(t, "a")[0].ID)
		}
	}
	if got := w.found(t); !slices.Equal(got, append(want, "all a limit")) {
		t.Errorf("%q", got)
	}
}

// How many that is, the server's configuration says.
func TestLimitsOfRulesAreConfigured(t *testing.T) {
	w := newWorld(t)
	w.config.ActsOfKey, w.config.Acts = 1, 2
	w.Engine = w.another(t)
	w.apply(t, policyDoc("quick", "  emergency: {strategy: contain-first, grace: 0s}\n"), keyDoc("a", "quick"), keyDoc("b", "quick"), keyDoc("c", "quick"),
		ruleDoc("all", `{when: 'use.source == "api-key"', then: emergency, mode: enforce, maxPerHour: 100}`))
	w.Start(t.Context())
	for _, name := range []key.Name{"a", "a", "b", "c"} {
		w.judge(t, w.used(name, w.through(t, w.rotate(t, name)).To, "10.0.0.1"))
		for _, r := range w.rotations(t, name) {
			w.through(t, r.ID)
		}
	}
	if got, want := w.found(t), []string{"all a emergency", "all a limit", "all b emergency", "all c limit"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// All rules together declare so many emergencies within an hour, and no more.
func TestRulesStopTogether(t *testing.T) {
	w := newWorld(t)
	documents := []string{policyDoc("quick", "")}
	for i := range engine.DefaultActs + 1 {
		documents = append(documents, keyDoc(fmt.Sprintf("k%02d", i), "quick"),
			ruleDoc(fmt.Sprintf("r%02d", i), fmt.Sprintf(`{when: 'use.source == "api-key"', match: key.name == "k%02d", then: suspend, mode: enforce, maxPerHour: 1}`, i)))
	}
	w.apply(t, documents...)
	w.Start(t.Context())
	var ids []key.RotationID
	var uses []engine.Observation
	for i := range engine.DefaultActs + 1 {
		name := key.Name(fmt.Sprintf("k%02d", i))
		ids = append(ids, w.rotate(t, name))
		uses = append(uses, w.used(name, 1, "10.0.0.1"))
	}
	for _, id := range ids {
		w.through(t, id)
	}
	w.judge(t, uses...)
	got := strings.Join(w.found(t), ", ")
	if n := strings.Count(got, " suspend"); n != engine.DefaultActs || !strings.HasSuffix(got, "r10 k10 limit") {
		t.Errorf("%d are suspended: %s", n, got)
	}
}

// What is patient waits for something of its key that is not, for two minutes at
// most, and is judged as it happened then.
func TestPatientUsesWait(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("quick", ""), keyDoc("a", "quick"), keyDoc("b", "quick"), ruleDoc("all", `{when: use.count > 0, then: alert, mode: enforce, window: 1s}`))
	patient := func(name key.Name) engine.Observation {
		one := w.used(name, 1, "10.0.0.1")
		one.Patient = true
		return one
	}
	judged := func(want ...string) {
		t.Helper()
		if err := engine.JudgeUrgent(t.Context(), w.Engine); err != nil {
			t.Fatal(err)
		}
		if got := w.found(t); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	w.Observe(patient("a"), patient("b"))
	judged([]string{}...)
	w.Observe(refused(w.used("b", 1, "10.0.0.1")))
	judged("all b alert")
	w.jump(time.Minute)
	judged("all b alert")
	w.jump(time.Minute)
	judged("all b alert", "all a alert")
}
