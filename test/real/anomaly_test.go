package real

import (
	"fmt"
	"strings"
	"testing"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

const anomalyRule = `
apiVersion: keyturn/v1
kind: Rule
metadata: {name: elsewhere}
spec:
  when: use.source == "api-key" && use.newNetwork && !use.refused
  learn: 0s
  then: emergency
  strategy: replace-first
  mode: %s
`

func (w *world) findings(t *testing.T) string {
	t.Helper()
	page, err := w.control.ReadLog(t.Context(), &keyturnv1.ReadLogRequest{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, entry := range page.GetEntries() {
		if text := fmt.Sprint(entry); strings.Contains(text, "rule.found") {
			found = append(found, text)
		}
	}
	return strings.Join(found, "\n")
}

// TestAnomalyContainsAStolenAPIKey: an API key is used from a network that it was
// never used from. A rule that only tries notes it; the same rule enforced declares
// an emergency by itself: the key is replaced and refused, and its client goes on
// with the next one, without one refused request.
func TestAnomalyContainsAStolenAPIKey(t *testing.T) {
	t.Parallel()
	w := newAPIKeyWorld(t, apiKeyPolicy+"  emergency: {strategy: contain-first, grace: 2s}\n", "    keep: sealed\n")
	w.finish(t, w.rotateKey(t, apiKey, "first"), "done")
	stolen := w.reveal(t, apiKey, 0)
	l := &load{}
	w.caller(t, l, "caller")
	// The client's own network must be known first.
	w.apply(t, strings.NewReplacer("elsewhere", "own", "use.newNetwork", `use.network == "192.0.2.0/24"`).Replace(fmt.Sprintf(anomalyRule, "dry-run")))
	eventually(t, "the client's use is observed", func() bool { return strings.Contains(w.findings(t), "192.0.2.7") })
	w.apply(t, fmt.Sprintf(anomalyRule, "dry-run"))
	steal := func(address string) bool {
		v, err := w.verifyFrom(t.Context(), stolen, "curl", address)
		if err != nil {
			t.Fatal(err)
		}
		return v.Valid
	}
	eventually(t, "a dry run that notes the use", func() bool {
		if !steal("203.0.113.9") {
			t.Fatal("a dry run did something")
		}
		return strings.Contains(w.findings(t), "203.0.113.9")
	})
	response, err := w.control.Apply(t.Context(), &keyturnv1.ApplyRequest{
		DryRun: true, Documents: []*keyturnv1.Document{{Name: "rule.yaml", Content: fmt.Appendf(nil, anomalyRule, "enforce")}},
	})
	if err != nil || !strings.Contains(fmt.Sprint(response.GetProblems()), "203.0.113.9") {
		t.Fatalf("what the rule would have found: %v, %v", response.GetProblems(), err)
	}
	if list := w.rotationsOf(t); len(list) != 1 {
		t.Fatalf("a dry run began %d rotations", len(list)-1)
	}
	// The dry run found him a moment ago; enforced, the same rule acts where he is.
	w.apply(t, fmt.Sprintf(anomalyRule, "enforce"))
	eventually(t, "the old key is refused", func() bool { return !steal("203.0.113.9") })
	list := w.rotationsOf(t)
	if len(list) != 2 || list[0].GetKind() != "emergency" || list[0].GetActor() != "rule/elsewhere" || !strings.Contains(list[0].GetReason(), "by curl at ") {
		t.Fatalf("%v", list)
	}
	w.finish(t, list[0].GetId(), "done")
	l.more(t, 30)
	l.check(t)
	if v, err := w.verify(t.Context(), w.reveal(t, apiKey, 0), "test"); err != nil || !v.Valid || v.Version != 2 {
		t.Errorf("the successor: %+v, %v", v, err)
	}
}

func (w *world) rotationsOf(t *testing.T) []*keyturnv1.Rotation {
	t.Helper()
	response, err := w.control.ListRotations(t.Context(), &keyturnv1.ListRotationsRequest{Key: apiKey})
	if err != nil {
		t.Fatal(err)
	}
	return response.GetRotations()
}
