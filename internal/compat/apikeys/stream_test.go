package apikeys_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/compat/apikeys"
)

// snapshots keeps the reports that it got.
type snapshots struct{ reports []apikey.Report }

func (*snapshots) Snapshot(_ context.Context, _ apikey.Verifier, send func([]byte) error) error {
	return send([]byte("{}\n"))
}

func (s *snapshots) Report(_ *apikey.Verifier, report *apikey.Report) error {
	s.reports = append(s.reports, *report)
	return nil
}

// FuzzReport: a report is taken as it was sent or not at all, and only from a
// verifier that has a name and an age within bounds.
func FuzzReport(f *testing.F) {
	f.Add("verifier=a", `{"rev":3,"uses":[{"key":"partners/acme","version":1,"count":2}]}`)
	f.Add("verifier=a&maxAge=1ms", `{}`)
	f.Add("verifier=%00", `{"leaving":true}`)
	f.Fuzz(func(t *testing.T, query, body string) {
		taken := &snapshots{}
		stream := apikeys.NewStream(apikeys.StreamConfig{
			Snapshots: taken,
			Principal: func(context.Context) (authz.Principal, error) {
				return authz.Principal{ID: "id", Name: "api", Role: authz.Verifier, Keys: []string{"**"}}, nil
			},
			Refuse: func(w http.ResponseWriter, _ *http.Request, err error) {
				http.Error(w, err.Error(), http.StatusForbidden)
			},
			Guard: func(ctx context.Context, _ *authz.Principal) (context.Context, func()) { return ctx, func() {} },
		})
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/apikeys/report", strings.NewReader(body))
		r.URL.RawQuery = query
		w := httptest.NewRecorder()
		stream.Report(w, r)
		var sent apikey.Report
		good := json.Unmarshal([]byte(body), &sent) == nil && len(body) <= 1<<20
		switch w.Code {
		case http.StatusOK:
			name := r.URL.Query().Get("verifier")
			if !good || len(taken.reports) != 1 || taken.reports[0].Rev != sent.Rev || len(taken.reports[0].Uses) != len(sent.Uses) || name == "" || len(name) > 128 || strings.ContainsAny(name, "\x00 \n") {
				t.Fatalf("%q %q was taken as %+v", query, body, taken.reports)
			}
		case http.StatusBadRequest:
			if len(taken.reports) != 0 {
				t.Fatalf("%q %q was refused and taken", query, body)
			}
		default:
			t.Fatalf("status %d", w.Code)
		}
	})
}
