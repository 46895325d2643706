package oauth_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/compat/oauth"
)

// report sends one to a handler.
func report(h http.Handler, token, media, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/orders/oauth/report", strings.NewReader(body))
	r.Header.Set("Content-Type", media)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// TestReports: a service that may introspect may report whom it refused; what is not
// bounded, or cannot be printed, is not taken, and nothing of it.
func TestReports(t *testing.T) {
	f := &fake{}
	h := f.handler()
	const good = `{"refused":[{"client":"deploy","address":"::ffff:192.0.2.7","count":3,"replay":true},{"count":1}]}`
	if w := report(h, "verifier", "application/json", good); w.Code != http.StatusNoContent {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if want := []oauth.Reported{{Client: "deploy", Address: "192.0.2.7", Count: 3, Replay: true}, {Count: 1}}; fmt.Sprint(f.reported) != fmt.Sprint(want) {
		t.Errorf("%+v, want %+v", f.reported, want)
	}
	f.reported = nil
	line := `{"count":1},`
	for what, one := range map[string]struct {
		token, media, body string
		status             int
	}{
		"nobody":               {"", "application/json", good, 401},
		"somebody else":        {"viewer", "application/json", good, 401},
		"a form":               {"verifier", "application/x-www-form-urlencoded", good, 400},
		"no JSON":              {"verifier", "application/json", "refused", 400},
		"another JSON":         {"verifier", "application/json", `{"refused":7}`, 400},
		"no count":             {"verifier", "application/json", `{"refused":[{"client":"a"}]}`, 400},
		"a large count":        {"verifier", "application/json", `{"refused":[{"count":1000001}]}`, 400},
		"a name as an address": {"verifier", "application/json", `{"refused":[{"count":1,"address":"evil.example.com"}]}`, 400},
		"an address with zone": {"verifier", "application/json", `{"refused":[{"count":1,"address":"fe80::1%eth0"}]}`, 400},
		"a line end":           {"verifier", "application/json", `{"refused":[{"count":1,"client":"a\nb"}]}`, 400},
		"a long name":          {"verifier", "application/json", `{"refused":[{"count":1,"client":"` + strings.Repeat("a", 257) + `"}]}`, 400},
		"many lines":           {"verifier", "application/json", `{"refused":[` + strings.Repeat(line, 300) + `{"count":1}]}`, 400},
		"huge":                 {"verifier", "application/json", `{"refused":[{"client":"` + strings.Repeat("a", 50_000) + `"}]}`, 400},
		"one good, one bad":    {"verifier", "application/json", `{"refused":[{"count":1},{"count":0}]}`, 400},
		"as many as may be":    {"verifier", "application/json", `{"refused":[` + strings.Repeat(line, 299) + `{"count":1}]}`, 204},
		"nothing":              {"verifier", "application/json", `{}`, 204},
	} {
		f.reported = nil
		if w := report(h, one.token, one.media, one.body); w.Code != one.status || w.Code != 204 && len(f.reported) > 0 {
			t.Errorf("%s: %d %s, and %d lines are taken", what, w.Code, w.Body, len(f.reported))
		}
	}
}

// FuzzReport: what is taken is bounded, and can be printed.
func FuzzReport(f *testing.F) {
	f.Add(`{"refused":[{"client":"deploy","address":"192.0.2.7","count":3,"replay":true}]}`)
	f.Add(`{"refused":[{"count":1e6}]}`)
	f.Fuzz(func(t *testing.T, body string) {
		fake := &fake{}
		w := report(fake.handler(), "verifier", "application/json", body)
		if w.Code != http.StatusNoContent && (w.Code != http.StatusBadRequest || len(fake.reported) > 0) {
			t.Errorf("%d, and %d lines", w.Code, len(fake.reported))
		}
		for _, one := range fake.reported {
			if one.Count < 1 || one.Count > 1_000_000 || len(one.Client) > 256 || len(one.Address) > 45 || strings.ContainsAny(one.Client+one.Address, "\n\r\x00\x1b") {
				t.Errorf("%+v", one)
			}
		}
	})
}
