package signals_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	dto "github.com/prometheus/client_model/go"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/signals"
	"github.com/keyturn/keyturn/key"
)

const root = "../../"

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// everything returns all of Keyturn's metrics, each with at least one series.
func everything(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	now := newClock().Now()
	state := rotation.State{
		Versions:   []rotation.Version{{Number: 2, Label: key.Current, MintedAt: now}},
		Verifiers:  []rotation.Verifier{{ID: "primary", Region: "eu"}},
		Presenters: []rotation.Presenter{{ID: "a"}},
		Rotations:  []rotation.Rotation{{ID: [16]byte{9}, Kind: rotation.Manual, Phase: rotation.Revoking, From: 1, PhaseSince: now}},
	}
	f := begin(t, signals.Config{
		Connected: func() int { return 0 },
		Webhooks:  []signals.Webhook{{Name: "x", URL: "https://x.example", Format: signals.Generic}},
	}, &source{keys: []engine.KeyView{viewOf("prod/db", state)}, silent: []engine.SilentTarget{{Name: "db:5432", Since: now}}})
	s := newStory(f.clock, "prod/db", rotation.Manual)
	s.add(rotation.Transition{Kind: rotation.PresenterTold, Version: 2, Subject: "a"})
	s.add(rotation.Transition{Kind: rotation.PresenterAcked, Version: 2, Subject: "a", To: "applied"})
	s.add(rotation.Transition{Kind: rotation.VerifierChange, Version: 2, Subject: "primary", To: "accept-pending"})
	s.add(rotation.Transition{Kind: rotation.VerifierChange, Version: 2, Subject: "primary", To: "accepted"})
	s.add(rotation.Transition{Kind: rotation.VerifierChange, Version: 1, Subject: "primary", To: "refuse-pending"})
	s.add(rotation.Transition{Kind: rotation.VerifierChange, Version: 1, Subject: "primary", To: "refused"})
	s.tell(f)
	f.Sampled(signals.Sample{Key: "prod/db", Attempts: 1})
	f.Examined([]engine.Check{{Name: "audit completeness", Status: "ok"}})
	f.Reconciled(1, true)
	f.SetFetched("prod/db", 2)
	f.Found(engine.Finding{Rule: "new-network", Key: "prod/db", Result: "alert"})
	f.eventually(func() bool { _, there := f.value("keyturn_sweep_timestamp_seconds"); return there })
	f.end()
	families, err := f.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*dto.MetricFamily{}
	for _, family := range families {
		if strings.HasPrefix(family.GetName(), "keyturn_") {
			found[family.GetName()] = family
		}
	}
	return found
}

// labels returns the names of a metric's labels and the values seen.
func labels(family *dto.MetricFamily) map[string][]string {
	found := map[string][]string{}
	for _, m := range family.GetMetric() {
		for _, pair := range m.GetLabel() {
			if !slices.Contains(found[pair.GetName()], pair.GetValue()) {
				found[pair.GetName()] = append(found[pair.GetName()], pair.GetValue())
			}
		}
	}
	return found
}

// TestMetricsAreDocumented compares docs/reference/metrics.md with the registry.
func TestMetricsAreDocumented(t *testing.T) {
	var want []string
	for name, family := range everything(t) {
		var names []string
		for label := range labels(family) {
			names = append(names, "`"+label+"`")
		}
		slices.Sort(names)
		want = append(want, fmt.Sprintf("| `%s` | %s | %s | %s |", name, strings.ToLower(family.GetType().String()),
			orDash(strings.Join(names, ", ")), family.GetHelp()))
	}
	slices.Sort(want)
	var got []string
	for line := range strings.Lines(read(t, "docs/reference/metrics.md")) {
		if strings.HasPrefix(line, "| `keyturn_") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("docs/reference/metrics.md lacks the line\n%s", line)
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("docs/reference/metrics.md has a line that is not true:\n%s", line)
		}
	}
}

func orDash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}

type ruleFile struct {
	Groups []struct {
		Name     string
		Interval string
		Rules    []rule
	}
}

type rule struct {
	Record, Alert, Expr, For string
	Labels, Annotations      map[string]string
}

var (
	metric  = regexp.MustCompile(`\bkeyturn[_:][a-zA-Z0-9_:]+(\{[^}]*\})?`)
	matcher = regexp.MustCompile(`([a-z_]+)(=~|!~|!=|=)"([^"]*)"`)
	suffix  = regexp.MustCompile(`_(bucket|sum|count)$`)
)

// TestRulesFitTheMetrics reads the rules and looks up each metric, label and
// label value that they name.
func TestRulesFitTheMetrics(t *testing.T) {
	var file ruleFile
	if err := yaml.UnmarshalWithOptions([]byte(read(t, "deploy/prometheus/keyturn.rules.yaml")), &file, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	families := everything(t)
	recorded, slis, names := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, group := range file.Groups {
		for _, r := range group.Rules {
			name := r.Record + r.Alert
			if names[name] || (r.Record == "") == (r.Alert == "") || r.Expr == "" {
				t.Errorf("rule %q is there twice, or is neither a record nor an alert", name)
			}
			names[name] = true
			for _, match := range metric.FindAllStringSubmatch(r.Expr, -1) {
				checkMetric(t, name, match[0], families, recorded)
			}
			if r.Record != "" {
				recorded[r.Record] = true
				continue
			}
			slis[r.Labels["sli"]] = true
			checkAlert(t, &r)
		}
	}
	for _, sli := range []string{"M1", "M2", "M3", "M4", "M5", "M6", "M7", "M8", "M10"} {
		if !slis[sli] {
			t.Errorf("no alert watches %s", sli)
		}
	}
	if len(recorded) < 10 {
		t.Errorf("only %d recording rules were read", len(recorded))
	}
}

func checkMetric(t *testing.T, rule, use string, families map[string]*dto.MetricFamily, recorded map[string]bool) {
	t.Helper()
	name, matchers, _ := strings.Cut(use, "{")
	if strings.Contains(name, ":") {
		if !recorded[name] {
			t.Errorf("%s uses %s, which no rule before records", rule, name)
		}
		return
	}
	family := families[name]
	if family == nil {
		family = families[suffix.ReplaceAllString(name, "")]
		if family.GetType() != dto.MetricType_HISTOGRAM {
			t.Errorf("%s uses %s, which does not exist", rule, name)
			return
		}
	}
	have := labels(family)
	for _, m := range matcher.FindAllStringSubmatch(matchers, -1) {
		label, value := m[1], m[3]
		if label == "le" && strings.HasSuffix(name, "_bucket") {
			checkBound(t, rule, value, family)
			continue
		}
		if have[label] == nil {
			t.Errorf("%s: %s has no label %s", rule, name, label)
			continue
		}
		for v := range strings.SplitSeq(value, "|") {
			if !slices.Contains(have[label], v) {
				t.Errorf("%s: %s never has %s=%q", rule, name, label, v)
			}
		}
	}
}

// checkBound checks that a target is the bound of a bucket: otherwise nothing
// would ever match.
func checkBound(t *testing.T, rule, value string, family *dto.MetricFamily) {
	t.Helper()
	value = strings.TrimSuffix(value, "([.]0)?")
	for _, b := range family.GetMetric()[0].GetHistogram().GetBucket() {
		if fmt.Sprint(b.GetUpperBound()) == value {
			return
		}
	}
	t.Errorf("%s: %s has no bucket up to %s", rule, family.GetName(), value)
}

func checkAlert(t *testing.T, r *rule) {
	t.Helper()
	if s := r.Labels["severity"]; s != "page" && s != "ticket" {
		t.Errorf("%s: severity %q", r.Alert, s)
	}
	if r.For != "" {
		if _, err := time.ParseDuration(r.For); err != nil {
			t.Errorf("%s: %v", r.Alert, err)
		}
	}
	if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
		t.Errorf("%s has no summary or no description", r.Alert)
	}
	runbook, ok := strings.CutPrefix(r.Annotations["runbook_url"], signals.DefaultRunbooks)
	if !ok || !strings.HasSuffix(runbook, ".md") {
		t.Errorf("%s: runbook_url %q", r.Alert, r.Annotations["runbook_url"])
		return
	}
	read(t, "docs/runbooks/"+runbook)
}

var holdReason = regexp.MustCompile(`HoldReason = "([a-z-]+)"`)

// TestEveryHoldHasARunbook reads the reasons from the machine's source, so that a
// new one cannot be forgotten.
func TestEveryHoldHasARunbook(t *testing.T) {
	var want []rotation.HoldReason
	for _, match := range holdReason.FindAllStringSubmatch(read(t, "internal/rotation/state.go"), -1) {
		want = append(want, rotation.HoldReason(match[1]))
		page := read(t, "docs/runbooks/"+match[1]+".md")
		for _, heading := range []string{"## What happened", "## What is safe", "## What to do"} {
			if !strings.Contains(page, heading) {
				t.Errorf("the runbook of %s lacks %q", match[1], heading)
			}
		}
	}
	read(t, "docs/runbooks/"+string(signals.RegionBehind)+".md")
	for _, reason := range []rotation.HoldReason{signals.TargetSilent, signals.StoreFull, signals.KeysStanding, signals.Anomaly, signals.SecretLeaked, signals.PartnerLate, signals.PartnerRefused, signals.APIKeyExpiring} {
		read(t, "docs/runbooks/"+string(reason)+".md")
	}
	if got := signals.HoldReasons(); len(want) == 0 || !slices.Equal(got, want) {
		t.Errorf("HoldReasons() = %v, the machine has %v", got, want)
	}
}
