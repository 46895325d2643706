package engine_test

import (
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
)

// What was before a time is left out of what a rule would have found since, but
// learnt from; without documents it is about the rules in force.
func TestRuleOverThePastSince(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("quick", ""), keyDoc("a", "quick"), ruleDoc("in-force", `{when: use.newNetwork, learn: 0s, then: alert}`))
	begin := w.config.Now()
	w.judge(t, w.used("a", 1, "10.0.0.1"))
	w.jump(time.Hour)
	w.judge(t, w.used("a", 1, "192.0.2.1"))
	w.jump(2 * time.Hour)
	w.judge(t, w.used("a", 1, "192.0.2.1"), w.used("a", 1, "198.51.100.1"))
	for since, want := range map[time.Duration]string{
		-time.Hour:        "would have found 2 anomalies since ",
		90 * time.Minute:  "would have found 1 anomaly since ",
		4 * time.Hour:     "would have found 0 anomalies since ",
		-1000 * time.Hour: "would have found 2 anomalies over the recorded past",
	} {
		result, err := w.Apply(t.Context(), alice, engine.ApplyRequest{DryRun: true, PastSince: begin.Add(since)})
		if err != nil {
			t.Fatal(err)
		}
		if len(result.Problems) == 0 || !strings.Contains(result.Problems[0].Message, "rule in-force "+want) {
			t.Errorf("since %v: %v", since, result.Problems)
		}
	}
}
