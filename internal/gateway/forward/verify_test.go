package forward_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/client/apikeycheck"
	"github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/compat/apikeys"
	"github.com/keyturn/keyturn/internal/gateway/forward"
)

// server verifies as a server of the same keys does.
type server struct{ *world }

// Verify implements apikeys.Keys.
func (s server) Verify(text string, caller apikey.Caller) (apikey.Verdict, error) {
	s.asked = append(s.asked, text+" from "+caller.Address)
	return s.Identify(text)
}

// Identify implements apikeys.Keys.
func (s server) Identify(text string) (apikey.Verdict, error) {
	r, err := s.world.Identify(text)
	v := apikey.Verdict{Key: r.Key, Version: r.Version, Client: r.Client, Scopes: r.Scopes, Expires: r.Expires, Left: r.Left, Retry: r.Retry}
	switch {
	case err == nil:
		return v, nil
	case errors.Is(err, apikeycheck.ErrLimited):
		return v, apikey.ErrLimited
	case errors.Is(err, apikeycheck.ErrRefused):
		return v, apikey.ErrRefused
	}
	return v, apikey.ErrUnsure
}

// TestVerifyAsTheServer: a service that asks the gateway gets what a server answers, letter
// by letter, and a probe is no use.
func TestVerifyAsTheServer(t *testing.T) {
	central := apikeys.New(apikeys.Config{
		Keys:      server{newWorld(t)},
		Principal: func(context.Context) (authz.Principal, error) { return authz.Principal{Keys: []string{"**"}}, nil },
		Refuse:    func(http.ResponseWriter, *http.Request, error) { t.Error("refused") },
	})
	w := newWorld(t)
	for _, body := range []string{
		`{"key":"kt_good","address":"192.0.2.7","application":"billing"}`, `{"key":"kt_good","probe":true}`, `{"key":"kt_often","address":"not an address"}`, `{"key":"kt_unsure"}`,
		`{"key":"kt_bad"}`, `{"key":""}`, `{}`, `{`, `[]`, `{"key":"` + strings.Repeat("x", 5000) + `"}`,
	} {
		post := func(handler http.Handler) *httptest.ResponseRecorder {
			answer := httptest.NewRecorder()
			handler.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodPost, forward.VerifyPath, strings.NewReader(body)))
			return answer
		}
		here, there := post(w.handler()), post(http.HandlerFunc(central.Verify))
		if here.Code != there.Code || here.Body.String() != there.Body.String() || here.Header().Get("Retry-After") != there.Header().Get("Retry-After") || here.Header().Get("Content-Type") != there.Header().Get("Content-Type") {
			t.Errorf("%.80s: %d %s, a server answers %d %s", body, here.Code, here.Body, there.Code, there.Body)
		}
	}
	if want := []string{"kt_good from 192.0.2.7", "kt_often from ", "kt_unsure from ", "kt_bad from ", " from ", " from "}; !slices.Equal(w.asked, want) {
		t.Errorf("uses: %q", w.asked)
	}
	w.stranger = true
	answer := httptest.NewRecorder()
	w.handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodPost, forward.VerifyPath, strings.NewReader(`{"key":"kt_good"}`)))
	if answer.Code != http.StatusUnauthorized || strings.Contains(answer.Body.String(), "valid") {
		t.Errorf("a stranger: %d %s", answer.Code, answer.Body)
	}
}
