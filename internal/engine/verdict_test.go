package engine

import (
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/rotation"
)

// TestVerdict: the judge's whole decision. Nothing but complete, good data passes.
func TestVerdict(t *testing.T) {
	sample := func(who string, attempts, failures uint64, healthy bool) Sample {
		return Sample{Presenter: who, At: time.Unix(1, 0), Attempts: attempts, AuthFailures: failures, Healthy: healthy}
	}
	plan := rotation.Plan{Stages: []rotation.Stage{{Name: "canary"}, {Name: "rest"}}}
	presenters := []rotation.Presenter{{ID: "c1", Stage: 0}, {ID: "c2", Stage: 0}, {ID: "r1", Stage: 1}}
	none := []JudgeRule{{Name: "auth", Signal: "auth_failures", Max: 0}}
	some := []JudgeRule{{Name: "auth", Signal: "auth_failures", Max: 2, MinSamples: 4}}
	good := []Sample{sample("c1", 5, 0, true), sample("c2", 5, 0, true)}
	tests := []struct {
		name    string
		stage   int
		rules   []JudgeRule
		samples []Sample
		want    rotation.Outcome
	}{
		{"no reports", 0, none, nil, rotation.NoData},
		{"one presenter is silent", 0, none, good[:1], rotation.NoData},
		{"reports without an attempt", 0, none, []Sample{sample("c1", 0, 0, true), sample("c2", 5, 0, true)}, rotation.NoData},
		{"all is well", 0, none, good, rotation.OK},
		{"a later stage is not asked", 0, none, good, rotation.OK},
		{"the last stage asks everybody", 1, none, good, rotation.NoData},
		{"the last stage", 1, none, append([]Sample{sample("r1", 1, 0, true)}, good...), rotation.OK},
		{"one failure too many", 0, none, append([]Sample{sample("c1", 5, 1, true)}, good...), rotation.Contradicted},
		{"a failure counts before all have reported", 0, none, []Sample{sample("c1", 5, 1, true)}, rotation.Contradicted},
		{"unwell without a failed log-in", 0, none, append([]Sample{sample("c1", 5, 0, false)}, good...), rotation.Contradicted},
		{"unwell before all have reported", 0, none, []Sample{sample("c1", 0, 0, false)}, rotation.Contradicted},
		{"strangers do not count", 0, none, []Sample{sample("x", 5, 0, true), sample("y", 5, 0, true)}, rotation.NoData},
		{"too few samples", 0, some, good, rotation.NoData},
		{"enough samples", 0, some, append(good, good...), rotation.OK},
		{"failures within what is allowed", 0, some, append([]Sample{sample("c1", 5, 2, true), sample("c2", 5, 0, true)}, good...), rotation.OK},
		{"failures add up over presenters", 0, some, append([]Sample{sample("c1", 5, 2, true), sample("c2", 5, 1, true)}, good...), rotation.Contradicted},
	}
	for _, test := range tests {
		state := rotation.State{Presenters: presenters}
		r := rotation.Rotation{Plan: plan, Stage: test.stage}
		got := verdict(&state, &r, test.rules, test.samples)
		if got.outcome != test.want || (got.err == nil) != (test.want == rotation.OK) {
			t.Errorf("%s: got %v (%v), want %v", test.name, got.outcome, got.err, test.want)
		}
	}
}
