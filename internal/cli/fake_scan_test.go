package cli_test

import (
	"context"
	"strings"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// managedPassword is the secret of a key that the fake server manages.
const managedPassword = "Zk3vQ9xT7bLm2NcR8sWdY4hJpA6fGuE5iKoV1qXe"

// MatchLeaks knows one secret.
func (f *fake) MatchLeaks(_ context.Context, request *keyturnv1.MatchLeaksRequest) (*keyturnv1.MatchLeaksResponse, error) {
	response := &keyturnv1.MatchLeaksResponse{}
	for i, candidate := range request.GetCandidates() {
		if string(candidate.GetText()) == managedPassword {
			response.Matches = append(response.Matches, &keyturnv1.LeakMatch{
				Candidate: uint32(i), Key: "prod/orders/db", Version: 3, State: "active", Live: true, Owner: "team-orders", Secret: "password", Action: "page",
			})
		}
	}
	return response, nil
}

// ListLeaks has two, in two pages.
func (f *fake) ListLeaks(_ context.Context, request *keyturnv1.ListLeaksRequest) (*keyturnv1.ListLeaksResponse, error) {
	if request.GetPageToken() == "" {
		return &keyturnv1.ListLeaksResponse{NextPageToken: "next", Leaks: []*keyturnv1.Leak{
			{Key: "prod/orders/db", Version: 3, FirstAt: at(-5), LastAt: at(-1), Place: "config.env:3", Times: 4, Action: "emergency", RotationId: strings.Repeat("d", 32)},
		}}, nil
	}
	return &keyturnv1.ListLeaksResponse{Leaks: []*keyturnv1.Leak{{Key: "prod/web/api", Version: 1, FirstAt: at(-5), LastAt: at(-5), Place: "GitHub commit https://github.com/a/b", Times: 1, Action: "page"}}}, nil
}
