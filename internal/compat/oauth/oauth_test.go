package oauth_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/broker"
	"github.com/keyturn/keyturn/internal/compat/oauth"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/internal/webtoken"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

const (
	form     = "application/x-www-form-urlencoded"
	exchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	jwt      = "urn:ietf:params:oauth:token-type:jwt"
)

// fake is everything behind the handler.
type fake struct {
	requests []*broker.Request
	revoked  []string
	refused  int
	fails    error
	bound    bool
	reported []oauth.Reported
}

func (f *fake) Give(_ context.Context, request *broker.Request) (broker.Issued, error) {
	f.requests = append(f.requests, request)
	if f.fails != nil {
		return broker.Issued{}, f.fails
	}
	now := time.Unix(1_800_000_000, 0)
	return broker.Issued{
		Token:  token.Token{Compact: secret.NewString("the.signed.token"), Issued: now, Expires: now.Add(5 * time.Minute)},
		Scopes: request.Scopes, Bound: f.bound, Nonce: "the-nonce",
	}, nil
}

func (f *fake) Introspect(_ key.Name, compact string) (token.Claims, error) {
	switch {
	case f.fails != nil:
		return token.Claims{}, f.fails
	case compact != "good":
		return token.Claims{}, token.ErrToken
	}
	all := map[string]json.RawMessage{"sub": json.RawMessage(`"a"`), "cnf": json.RawMessage(`{"jkt":"x"}`), "active": json.RawMessage(`false`), "client_id": json.RawMessage(`"me"`)}
	return token.Claims{Claims: webtoken.Claims{All: all}}, nil
}

func (f *fake) Revoke(_ context.Context, _ key.Name, compact string, _ audit.Actor, allowed func(*token.Claims) error) error {
	claims, err := f.Introspect("", compact)
	if err == nil {
		err = allowed(&claims)
	}
	if err == nil {
		f.revoked = append(f.revoked, compact)
	}
	if errors.Is(err, token.ErrToken) {
		return nil
	}
	return err
}

func (f *fake) Issuer(path string) (key.Name, string, error) {
	if path != "/orders" {
		return "", "", token.ErrUnknown
	}
	return "prod/orders/tokens", "https://keys.example.com/orders", nil
}

func (f *fake) handler() *oauth.Handler {
	return oauth.New(oauth.Config{
		Broker: f, Issuers: f, Reported: func(_ key.Name, list []oauth.Reported) { f.reported = list },
		Inspector: func(_ context.Context, bearer secret.Value, _ key.Name) error {
			if bearer.RevealString() != "verifier" {
				return broker.ErrClient
			}
			return nil
		},
		Revoker: func(_ context.Context, bearer secret.Value, _ key.Name, _ string) (audit.Actor, string, error) {
			switch text := bearer.RevealString(); text {
			case "operator":
				return audit.Actor{ID: "op", Kind: "user"}, "", nil
			case "me", "you":
				return audit.Actor{ID: text, Kind: "workload"}, text, nil
			}
			return audit.Actor{}, "", broker.ErrClient
		},
		Admit:   func(r *http.Request) bool { return r.Header.Get("X-Busy") == "" },
		Blocked: func(r *http.Request) bool { return r.Header.Get("X-Blocked") != "" },
		Refused: func(*http.Request) { f.refused++ },
	})
}

// ask sends one request and checks what every answer has.
func ask(t *testing.T, f *fake, method, path, media, body string, header map[string]string) (*httptest.ResponseRecorder, map[string]any) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "https://keys.example.com"+path, strings.NewReader(body))
	r.Header.Set("Content-Type", media)
	for name, value := range header {
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	f.handler().ServeHTTP(w, r)
	var answer map[string]any
	if w.Body.Len() > 0 {
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			t.Errorf("%s %s: %q is no JSON", method, path, w.Body)
		}
	}
	if w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%s %s: %v", method, path, w.Header())
	}
	code, _ := answer["error"].(string)
	if failed := w.Code >= 400; failed != (code != "") || failed && answer["access_token"] != nil {
		t.Errorf("%s %s: %d %v", method, path, w.Code, answer)
	}
	return w, answer
}

// active reports what introspection says.
func active(answer map[string]any) bool {
	is, ok := answer["active"].(bool)
	return is && ok
}

func asForm(pairs ...string) string {
	values := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		values.Add(pairs[i], pairs[i+1])
	}
	return values.Encode()
}

// TestTokenEndpoint: what is asked for reaches the broker as it stands, and the
// answer is that of RFC 8693.
func TestTokenEndpoint(t *testing.T) {
	f := &fake{bound: true}
	body := asForm("grant_type", exchange, "subject_token", "s", "subject_token_type", jwt, "audience", "orders", "audience", "billing", "resource", "https://r.example", "scope", "a b")
	w, answer := ask(t, f, http.MethodPost, "/orders/oauth/token?subject_token=evil", form+"; charset=utf-8", body, map[string]string{"DPoP": "p"})
	if w.Code != http.StatusOK || answer["access_token"] != "the.signed.token" || answer["token_type"] != "DPoP" || answer["expires_in"] != 300.0 || answer["scope"] != "a b" ||
		answer["issued_token_type"] != "urn:ietf:params:oauth:token-type:access_token" || w.Header().Get("DPoP-Nonce") != "the-nonce" {
		t.Errorf("%d %v %v", w.Code, answer, w.Header())
	}
	r := f.requests[0]
	if r.Subject.RevealString() != "s" || r.Secret.Len() != 0 || r.UseCertificate || !slices.Equal(r.Audiences, []string{"orders", "billing", "https://r.example"}) ||
		!slices.Equal(r.Scopes, []string{"a", "b"}) || r.URL != "https://keys.example.com/orders/oauth/token" || !slices.Equal(r.Proofs, []string{"p"}) || r.Address != "192.0.2.1" {
		t.Errorf("%+v", r)
	}
	basic := base64.StdEncoding.EncodeToString([]byte("id:" + url.QueryEscape("a+b %")))
	ask(t, f, http.MethodPost, "/orders/oauth/token", form, asForm("grant_type", "client_credentials"), map[string]string{"Authorization": "Basic " + basic})
	if r := f.requests[1]; r.Secret.RevealString() != "a+b %" || r.UseCertificate {
		t.Errorf("by a secret: %+v", r)
	}
	ask(t, f, http.MethodPost, "/orders/oauth/token", form, asForm("grant_type", "client_credentials"), nil)
	if r := f.requests[2]; r.Secret.Len() != 0 || !r.UseCertificate {
		t.Errorf("by a certificate: %+v", r)
	}
}

// TestRequestsThatAreNone: what is not as the standards say never reaches the broker.
func TestRequestsThatAreNone(t *testing.T) {
	good := asForm("grant_type", exchange, "subject_token", "s", "subject_token_type", jwt)
	for what, one := range map[string]struct {
		method, path, media, body string
		header                    map[string]string
		status                    int
		code                      string
	}{
		"GET":                  {http.MethodGet, "/orders/oauth/token", form, "", nil, 405, "invalid_request"},
		"another issuer":       {http.MethodPost, "/other/oauth/token", form, good, nil, 404, "invalid_request"},
		"JSON":                 {http.MethodPost, "/orders/oauth/token", "application/json", "{}", nil, 400, "invalid_request"},
		"too long":             {http.MethodPost, "/orders/oauth/token", form, good + "&x=" + strings.Repeat("a", 41<<10), nil, 400, "invalid_request"},
		"a parameter twice":    {http.MethodPost, "/orders/oauth/token", form, good + "&grant_type=password", nil, 400, "invalid_request"},
		"many audiences":       {http.MethodPost, "/orders/oauth/token", form, good + strings.Repeat("&audience=a", 17), nil, 400, "invalid_request"},
		"many scopes":          {http.MethodPost, "/orders/oauth/token", form, good + "&scope=" + strings.Repeat("a+", 65), nil, 400, "invalid_request"},
		"an empty audience":    {http.MethodPost, "/orders/oauth/token", form, good + "&audience=", nil, 400, "invalid_request"},
		"delegation":           {http.MethodPost, "/orders/oauth/token", form, good + "&actor_token=x", nil, 400, "invalid_request"},
		"two secrets":          {http.MethodPost, "/orders/oauth/token", form, asForm("grant_type", "client_credentials", "client_secret", "x"), map[string]string{"Authorization": "Bearer y"}, 400, "invalid_request"},
		"another scheme":       {http.MethodPost, "/orders/oauth/token", form, asForm("grant_type", "client_credentials"), map[string]string{"Authorization": "Digest y"}, 401, "invalid_client"},
		"no grant":             {http.MethodPost, "/orders/oauth/token", form, "", nil, 400, "invalid_request"},
		"a password":           {http.MethodPost, "/orders/oauth/token", form, "grant_type=password", nil, 400, "unsupported_grant_type"},
		"bad credentials":      {http.MethodPost, "/orders/oauth/token", form, good, map[string]string{"X-Blocked": "1"}, 429, "temporarily_unavailable"},
		"too often":            {http.MethodPost, "/orders/oauth/token", form, good, map[string]string{"X-Busy": "1"}, 429, "temporarily_unavailable"},
		"introspection by all": {http.MethodPost, "/orders/oauth/introspect", form, "token=good", nil, 401, "invalid_client"},
		"revocation by all":    {http.MethodPost, "/orders/oauth/revoke", form, "token=good", nil, 401, "invalid_client"},
	} {
		f := &fake{}
		w, answer := ask(t, f, one.method, one.path, one.media, one.body, one.header)
		if w.Code != one.status || answer["error"] != one.code || len(f.requests)+len(f.revoked) > 0 {
			t.Errorf("%s: %d %v", what, w.Code, answer)
		}
	}
}

// TestErrors: each error of the broker is one of the standards, says what to do, and
// nothing of what is inside.
func TestErrors(t *testing.T) {
	const inside = "the rule deploy of prod/orders/tokens"
	for code, one := range map[string]struct {
		err    error
		status int
		header string
		counts int
	}{
		"temporarily_unavailable": {broker.ErrAway, 503, "Retry-After", 0},
		"use_dpop_nonce":          {&broker.NonceError{Nonce: "n"}, 400, "DPoP-Nonce", 0},
		"invalid_dpop_proof":      {broker.ErrProof, 400, "", 0},
		"invalid_client":          {broker.ErrClient, 401, "WWW-Authenticate", 1},
		"invalid_target":          {broker.ErrTarget, 400, "", 0},
		"invalid_scope":           {broker.ErrScope, 400, "", 0},
		"unauthorized_client":     {broker.ErrGrant, 400, "", 0},
		"invalid_request":         {broker.ErrRequest, 400, "", 1},
		"server_error":            {errors.New("a pointer"), 500, "", 0},
	} {
		f := &fake{fails: fmt.Errorf("%w: %s", one.err, inside)}
		w, answer := ask(t, f, http.MethodPost, "/orders/oauth/token", form, asForm("grant_type", exchange, "subject_token", "s", "subject_token_type", jwt), nil)
		if w.Code != one.status || answer["error"] != code || f.refused != one.counts || one.header != "" && w.Header().Get(one.header) == "" {
			t.Errorf("%s: %d %v, %d counted, %v", code, w.Code, answer, f.refused, w.Header())
		}
		if text := fmt.Sprint(answer["error_description"]); strings.Contains(text, inside) || strings.Contains(text, "pointer") || len(text) < 20 {
			t.Errorf("%s says %q", code, text)
		}
	}
}

// TestIntrospectionAndRevocation: what a claim is called does not make a token active;
// clients revoke their own.
func TestIntrospectionAndRevocation(t *testing.T) {
	bearer := func(text string) map[string]string { return map[string]string{"Authorization": "Bearer " + text} }
	f := &fake{}
	if w, answer := ask(t, f, http.MethodPost, "/orders/oauth/introspect", form, "token=good", bearer("verifier")); w.Code != 200 || !active(answer) || answer["token_type"] != "DPoP" || answer["sub"] != "a" {
		t.Errorf("%d %v", w.Code, answer)
	}
	if w, answer := ask(t, f, http.MethodPost, "/orders/oauth/introspect", form, "token=bad", bearer("verifier")); w.Code != 200 || len(answer) != 1 || active(answer) {
		t.Errorf("%d %v", w.Code, answer)
	}
	for by, status := range map[string]int{"operator": 200, "me": 200, "you": 400, "nobody": 401} {
		f := &fake{}
		if w, answer := ask(t, f, http.MethodPost, "/orders/oauth/revoke", form, "token=good", bearer(by)); w.Code != status || (status == 200) != (len(f.revoked) == 1) {
			t.Errorf("revocation by %s: %d %v", by, w.Code, answer)
		}
	}
	f.fails = broker.ErrAway
	if w, answer := ask(t, f, http.MethodPost, "/orders/oauth/introspect", form, "token=good", bearer("verifier")); w.Code != 503 || answer["active"] != nil {
		t.Errorf("%d %v", w.Code, answer)
	}
}

// FuzzForms: whatever is sent, the answer is one of the standards, a token is in it
// only if the broker gave one for exactly one proof of who asks, and nothing that was
// sent comes back.
func FuzzForms(f *testing.F) {
	f.Add("/token", form, asForm("grant_type", exchange, "subject_token", "s", "subject_token_type", jwt, "audience", "a"), "")
	f.Add("/token", form, asForm("grant_type", "client_credentials", "client_secret", "x"), "")
	f.Add("/token", form, "grant_type=client_credentials", "Basic "+base64.StdEncoding.EncodeToString([]byte("a:b")))
	f.Add("/introspect", form, "token=good", "Bearer verifier")
	f.Add("/revoke", form, "token=good", "Bearer me")
	f.Add("/token", "text/plain", "%zz", "Basic x")
	f.Fuzz(func(t *testing.T, path, media, body, authorization string) {
		if strings.ContainsFunc(path+media+authorization, func(c rune) bool { return c <= ' ' || c > '~' || c == '%' || c == '?' || c == '#' }) {
			return
		}
		b := &fake{}
		header := map[string]string{}
		if authorization != "" {
			header["Authorization"] = authorization
		}
		w, answer := ask(t, b, http.MethodPost, "/orders/oauth"+path, media, body, header)
		if !slices.Contains([]int{200, 400, 401, 404}, w.Code) {
			t.Errorf("%d %v", w.Code, answer)
		}
		if answer["access_token"] != nil && len(b.requests) != 1 {
			t.Errorf("%d requests of the broker for %v", len(b.requests), answer)
		}
		for _, r := range b.requests {
			ways := 0
			for _, is := range []bool{r.Subject.Len() > 0, r.Secret.Len() > 0, r.UseCertificate} {
				if is {
					ways++
				}
			}
			if ways > 1 || len(r.Audiences) > 32 || len(r.Scopes) > 64 {
				t.Errorf("%+v", r)
			}
		}
		if len(b.revoked) > 0 && authorization != "Bearer me" && authorization != "Bearer operator" && !strings.HasPrefix(authorization, "Basic ") && !strings.Contains(body, "client_secret") {
			t.Errorf("%q revokes", authorization)
		}
	})
}
