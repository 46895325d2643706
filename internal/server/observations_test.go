package server_test

import (
	"context"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

const presenterRules = `
apiVersion: keyturn/v1
kind: Rule
metadata: {name: let-in}
spec: {when: 'use.source == "presenter" && !use.refused && use.known && use.network == "127.0.0.0/24" && use.count == 3', then: alert}
---
apiVersion: keyturn/v1
kind: Rule
metadata: {name: refused}
spec: {when: 'use.source == "presenter" && use.refused && use.application == "me" && use.count == 2', then: emergency, mode: enforce}
---
apiVersion: keyturn/v1
kind: Rule
metadata: {name: silent}
spec: {when: 'use.source == "nobody"', then: alert, match: 'key.name == "dev/db"'}
`

// What presenters report is judged: who was let in, and who was refused. What was
// found is told with the rules, and of a key only to those who may read it.
func TestPresentersReportsAreJudged(t *testing.T) {
	t.Parallel()
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	if problems := w.apply(t, w.root, presenterRules).GetProblems(); len(problems) > 0 {
		t.Fatal(problems)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	agent := w.token(t, "me", "agent", "dev/db")
	if _, err := w.watched(t, ctx, agent, watchOf("me", "dev/db")); err != nil {
		t.Fatal(err)
	}
	samples := []*keyturnv1.Sample{{Key: "dev/db", Version: 1, Attempts: 5, AuthFailures: 2, Healthy: true}}
	if _, err := w.delivery(agent).Report(ctx, &keyturnv1.ReportRequest{PartyId: "me", Samples: samples}); err != nil {
		t.Fatal(err)
	}
	rules := func(token string) map[string]*keyturnv1.Rule {
		response, err := w.control(token).ListRules(ctx, &keyturnv1.ListRulesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		byName := map[string]*keyturnv1.Rule{}
		for _, r := range response.GetRules() {
			byName[r.GetName()] = r
		}
		return byName
	}
	var list map[string]*keyturnv1.Rule
	until(t, "findings of both", func() bool {
		list = rules(w.root)
		return len(list["let-in"].GetFindings())+len(list["refused"].GetFindings()) == 2
	})
	in, refused := list["let-in"], list["refused"]
	if in.GetFindings()["dry-run"] != 1 || in.GetLastKey() != "dev/db" || in.GetLastVersion() != 1 || in.GetMode() != "dry-run" || in.GetLastMessage() == "" {
		t.Errorf("%v", in)
	}
	if refused.GetFindings()["alert"] != 1 || refused.GetLastResult() != "alert" || refused.GetThen() != "emergency" || refused.GetFindingsSince() == nil {
		t.Errorf("%v", refused)
	}
	if len(list) != 3 || len(list["silent"].GetFindings()) != 0 || list["silent"].GetLastAt() != nil {
		t.Errorf("%v", list)
	}
	other := rules(w.token(t, "reader", "viewer", "prod/*"))["refused"]
	if other.GetLastResult() != "alert" || other.GetLastKey() != "" || other.GetLastMessage() != "" {
		t.Errorf("somebody who may not read the key is told of it: %v", other)
	}
}
