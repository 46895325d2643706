package cli_test

import (
	"context"
	"errors"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

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
			FindingsSince: at(-600), LastAt: at(-90), LastResult: "limit", LastKey: "prod/orders/db", LastVersion: 2, LastMessage: "rule elsewhere: 1 use",
		},
		{Name: "noted", When: "use.rate > 100.0", Then: "alert", Mode: "dry-run"},
	}}, nil
}

// GetLearned returns what rules know of a key that a thief has used, or of one that
// nobody has.
func (f *fake) GetLearned(_ context.Context, request *keyturnv1.GetLearnedRequest) (*keyturnv1.GetLearnedResponse, error) {
	if request.GetName() != "prod/orders/api" {
		return &keyturnv1.GetLearnedResponse{}, nil
	}
	return &keyturnv1.GetLearnedResponse{
		Since: at(-60000), Sources: map[string]*timestamppb.Timestamp{"api-key": at(-60000)}, MoreNetworks: 1,
		Uses: []*keyturnv1.LearnedUse{
			{Kind: "network", Source: "api-key", Name: "203.0.113.0/24", First: at(-60), Last: at(-10)},
			{Kind: "network", Source: "api-key", Name: "10.0.0.0/24", Last: at(-20)},
			{Kind: "application", Source: "api-key", Name: "shop\x1b[2J", First: at(-60000), Last: at(-10)},
		},
		Rules: []*keyturnv1.LearnedRule{
			{Name: "elsewhere", Doubts: []*keyturnv1.Doubt{{Kind: "network", Source: "api-key", Name: "203.0.113.0/24", First: at(-60), Until: at(10020)}}},
			{Name: "noted", Roaming: true, LearnsUntil: at(120)},
		},
	}, nil
}

// ChangeLearned accepts and forgets whatever is named.
func (f *fake) ChangeLearned(_ context.Context, request *keyturnv1.ChangeLearnedRequest) (*keyturnv1.ChangeLearnedResponse, error) {
	if slices.Contains(request.GetNetworks(), "192.0.2.0/24") {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("nothing that was named is doubted of key prod/orders/api; keyturn rule learned prod/orders/api shows what is"))
	}
	return &keyturnv1.ChangeLearnedResponse{Names: slices.Concat(request.GetNetworks(), request.GetApplications())}, nil
}
