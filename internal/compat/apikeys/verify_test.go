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

// keys are verified by their text.
type keys map[string]error

func (k keys) Verify(text string, _ apikey.Caller) (apikey.Verdict, error) {
	err, known := k[text]
	if !known {
		return apikey.Verdict{}, apikey.ErrRefused
	}
	return apikey.Verdict{Key: "partners/acme", Version: 2, Client: "ACME", Scopes: []string{"a"}, Left: 3}, err
}

// Identify tells that it was asked instead of Verify by the version.
func (k keys) Identify(text string) (apikey.Verdict, error) {
	v, err := k.Verify(text, apikey.Caller{})
	v.Version++
	return v, err
}

func verify(t testing.TB, patterns []string, body string) *httptest.ResponseRecorder {
	t.Helper()
	handlers := apikeys.New(apikeys.Config{
		Keys: keys{"good": nil, "often": apikey.ErrLimited, "unsure": apikey.ErrUnsure},
		Principal: func(context.Context) (authz.Principal, error) {
			if patterns == nil {
				return authz.Principal{}, authz.ErrDenied
			}
			return authz.Principal{Name: "api", Role: authz.Verifier, Keys: patterns}, nil
		},
		Refuse: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusForbidden)
		},
	})
	w := httptest.NewRecorder()
	handlers.Verify(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/apikeys/verify", strings.NewReader(body)))
	return w
}

func TestVerify(t *testing.T) {
	all, others := []string{"**"}, []string{"prod/**"}
	for _, test := range []struct {
		patterns []string
		body     string
		status   int
		answer   string
	}{
		{all, `{"key":"good"}`, 200, `{"valid":true,"key":"partners/acme","version":2,"client":"ACME","scopes":["a"],"remaining":3}`},
		{[]string{"partners/*"}, `{"key":"good","address":"x"}`, 200, `{"valid":true,"key":"partners/acme","version":2,"client":"ACME","scopes":["a"],"remaining":3}`},
		{all, `{"key":"often"}`, 200, `{"valid":false,"limited":true,"key":"partners/acme","version":2,"client":"ACME","scopes":["a"],"remaining":3}`},
		{all, `{"key":"bad"}`, 200, `{"valid":false}`},
		{all, `{"key":""}`, 200, `{"valid":false}`},
		{others, `{"key":"good"}`, 200, `{"valid":false}`},
		{others, `{"key":"often"}`, 200, `{"valid":false}`},
		{all, `{"key":"unsure"}`, 503, `{"error":"API keys cannot be verified here now; try another server, or this one later"}`},
		{all, `{`, 400, ""},
		{all, `{"key":"` + strings.Repeat("x", 5000) + `"}`, 400, ""},
		{nil, `{"key":"good"}`, 403, ""},
	} {
		w := verify(t, test.patterns, test.body)
		if w.Code != test.status || test.answer != "" && w.Body.String() != test.answer {
			t.Errorf("%v %.40s: %d %s", test.patterns, test.body, w.Code, w.Body)
		}
	}
}

// FuzzVerify: whatever is sent, the answer is JSON, and nothing but a good key is valid.
func FuzzVerify(f *testing.F) {
	f.Add(`{"key":"good"}`)
	f.Add(`{"key":"bad","address":"\u0000","application":[]}`)
	f.Add(`[[[[`)
	f.Fuzz(func(t *testing.T, body string) {
		w := verify(t, []string{"**"}, body)
		var answer apikeys.VerifyResponse
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			t.Fatalf("answer %q: %v", w.Body, err)
		}
		var request apikeys.VerifyRequest
		err := json.Unmarshal([]byte(body), &request)
		if answer.Valid != (err == nil && len(body) <= 4<<10 && request.Key == "good") {
			t.Fatalf("%q is answered with %s", body, w.Body)
		}
	})
}
