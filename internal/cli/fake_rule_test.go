package cli_test

import (
	"context"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/policy"
)

// tryRules tells what rules would have found, as the server does.
func (f *fake) tryRules(request *keyturnv1.ApplyRequest, parsed []policy.Resource, response *keyturnv1.ApplyResponse) {
	over := "over the recorded past (30 days at most)"
	if since := request.GetPastSince(); since != nil && since.AsTime().After(noon().AddDate(0, 0, -30)) {
		over = "since " + since.AsTime().Format("2006-01-02T15:04:05Z07:00")
	}
	var names []string
	if len(request.GetDocuments()) == 0 && request.GetPastSince() != nil {
		names = append(names, "in-force")
	}
	for _, r := range parsed {
		if request.GetDryRun() && r.Rule != nil {
			names = append(names, r.Name())
		}
	}
	for _, name := range names {
		response.Problems = append(response.Problems, &keyturnv1.Problem{
			Severity: "warning", Code: "rule-past", Message: "rule " + name + " would have found 2 anomalies " + over,
		})
	}
}

// ListRules returns a rule that found something and one that did not.
func (f *fake) ListRules(context.Context, *keyturnv1.ListRulesRequest) (*keyturnv1.ListRulesResponse, error) {
	return &keyturnv1.ListRulesResponse{Rules: []*keyturnv1.Rule{
		{
			Name: "elsewhere", When: "use.newNetwork", Then: "emergency", Mode: "enforce", Findings: map[string]uint64{"emergency": 1, "limit": 2},
			FindingsSince: at(-600), LastAt: at(-90), LastResult: "limit", LastKey: "prod/orders/db", LastVersion: 2, LastMessage: "rule elsewhere: 1 uses",
		},
		{Name: "noted", When: "use.rate > 100.0", Then: "alert", Mode: "dry-run"},
	}}, nil
}
