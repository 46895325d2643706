package server_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/internal/token"
)

// upstream is another issuer: its tokens have the shape of those of GitHub Actions.
type upstream struct {
	*httptest.Server

	t  *testing.T
	mu sync.Mutex
	// private are its keys, the last one signs; away: it answers nothing.
	private []*ecdsa.PrivateKey
	away    bool
}

func newUpstream(t *testing.T) *upstream {
	u := &upstream{t: t}
	u.rotate()
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		defer u.mu.Unlock()
		switch {
		case u.away:
			w.WriteHeader(http.StatusBadGateway)
		case r.URL.Path == "/.well-known/openid-configuration":
			_ = json.NewEncoder(w).Encode(map[string]string{"issuer": u.URL, "jwks_uri": u.URL + "/keys"})
		default:
			var set jose.JSONWebKeySet
			for i, k := range u.private {
				set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.Public(), KeyID: fmt.Sprint(i), Algorithm: "ES256", Use: "sig"})
			}
			_ = json.NewEncoder(w).Encode(set)
		}
	}))
	t.Cleanup(u.Close)
	return u
}

func (u *upstream) rotate() {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		u.t.Fatal(err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.private = append(u.private, k)
}

const jobAudience = "https://keys.example.com/orders"

// job is a job's token; edit changes its claims.
func (u *upstream) job(edit map[string]any) string {
	now := time.Now().Unix()
	claims := map[string]any{
		"iss": u.URL, "sub": "repo:acme/orders:ref:refs/heads/main", "aud": jobAudience, "iat": now, "nbf": now - 5, "exp": now + 300,
		"jti": rand.Text(), "repository": "acme/orders", "ref": "refs/heads/main", "run_id": "7",
	}
	maps.Copy(claims, edit)
	u.mu.Lock()
	defer u.mu.Unlock()
	return signJWT(u.t, u.private[len(u.private)-1], jose.ES256, fmt.Sprint(len(u.private)-1), "JWT", false, claims)
}

func signJWT(t *testing.T, private any, algorithm jose.SignatureAlgorithm, kid, typ string, embed bool, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	var k any = jose.JSONWebKey{Key: private, KeyID: kid}
	if embed {
		k = private
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: k}, (&jose.SignerOptions{EmbedJWK: embed}).WithType(jose.ContentType(typ)))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

// brokering starts a server that gives tokens, by more rules of its key as well.
func brokering(t *testing.T, config server.Config, u *upstream, more ...string) *world {
	t.Helper()
	w := startServerWith(t, config, nil)
	source := signingDocuments(w.Address()+"/orders", "EdDSA", "https://127.0.0.1:1/")
	source = strings.ReplaceAll(source, `, probe: {url: "https://127.0.0.1:1/", accepted: [204], refused: [401]}`, "")
	source += fmt.Sprintf(`    grants:
      - name: deploy
        from: {issuer: %q, audience: %q, claims: {repository: acme/*, ref: refs/heads/main}}
        audiences: [orders, billing]
        scopes: [orders:deploy, orders:read]
        copy: [repository]
        life: 20s
      - name: bound
        from: {issuer: %q, audience: %q, claims: {repository: acme/*, ref: refs/heads/bound}}
        audiences: [orders]
        bind: dpop
      - name: services
        from: {tokens: [svc-*]}
        audiences: [orders]
        scopes: [orders:read]
`, u.URL, jobAudience, u.URL, jobAudience) + strings.Join(more, "")
	for _, p := range w.apply(t, w.root, source).GetProblems() {
		if p.GetSeverity() == "error" {
			t.Fatalf("%v", p)
		}
	}
	w.rotated(t, &keyturnv1.RotateRequest{}, "quarantine")
	until(t, "the first token", func() bool {
		_, err := w.Signer().Sign(t.Context(), token.Request{Key: ordersTokens, Life: time.Second})
		return err == nil
	})
	return w
}

// post sends a form to an issuer's endpoint.
func (w *world) post(t *testing.T, path string, form url.Values, header map[string]string) (answered, map[string]any) {
	t.Helper()
	return w.postBy(t, w.http, path, form, header)
}

// postBy does so by a client, which may have a certificate.
func (w *world) postBy(t *testing.T, client *http.Client, path string, form url.Values, header map[string]string) (answered, map[string]any) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.Address()+"/orders"+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for name, value := range header {
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var body map[string]any
	if response.ContentLength != 0 {
		if err := readJSON(response, &body); err != nil {
			t.Fatalf("%s: %v", response.Status, err)
		}
	}
	if response.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s may be cached", path)
	}
	return answered{response.Status, response.StatusCode, response.Header}, body
}

func exchange(subject string, more ...string) url.Values {
	form := url.Values{
		"grant_type":    {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"subject_token": {subject}, "subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"}, "audience": {"orders"}, "scope": {"orders:read"},
	}
	for i := 0; i < len(more); i += 2 {
		if form.Del(more[i]); more[i+1] != "" {
			form[more[i]] = strings.Split(more[i+1], "|")
		}
	}
	return form
}

// TestExchange: a job's token becomes one of Keyturn with what the rule grants, which
// is audited, introspected and revoked; whatever else is shown is refused alike.
func TestExchange(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	w := brokering(t, signingConfig(t.TempDir()), u)
	answer, body := w.post(t, token.TokenPath, exchange(u.job(nil)), nil)
	if answer.StatusCode != http.StatusOK || body["token_type"] != "Bearer" || body["scope"] != "orders:read" || body["expires_in"].(float64) > 20 {
		t.Fatalf("%s: %v", answer.Status, body)
	}
	compact := body["access_token"].(string)
	claims, err := w.Board().Verify(ordersTokens, compact, token.Expect{Audience: "orders", Type: token.AccessToken})
	if err != nil || claims.Subject != "deploy/repo:acme/orders:ref:refs/heads/main" || string(claims.All["repository"]) != `"acme/orders"` || claims.All["run_id"] != nil {
		t.Fatalf("%+v, %v", claims, err)
	}
	if !w.audited(t, claims.ID) {
		t.Error("the exchange is not in the audit log")
	}

	other := newUpstream(t)
	stolen := &upstream{t: t, Server: u.Server, private: other.private} // says that it is the issuer, and has another key
	hmac := strings.Split(u.job(nil), ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + hmac[1] + "."
	now := time.Now().Unix()
	for what, one := range map[string]struct {
		form url.Values
		code string
	}{
		"a key of others":     {exchange(stolen.job(nil)), "invalid_request"},
		"another issuer":      {exchange(other.job(nil)), "invalid_request"},
		"none":                {exchange(none), "invalid_request"},
		"expired":             {exchange(u.job(map[string]any{"exp": now - 120})), "invalid_request"},
		"for ever":            {exchange(u.job(map[string]any{"exp": now + 1e7})), "invalid_request"},
		"from the future":     {exchange(u.job(map[string]any{"iat": now + 600})), "invalid_request"},
		"not yet":             {exchange(u.job(map[string]any{"nbf": now + 3600})), "invalid_request"},
		"a subject of lines":  {exchange(u.job(map[string]any{"sub": "a\nb"})), "invalid_request"},
		"huge":                {exchange(u.job(map[string]any{"x": strings.Repeat("a", 20_000)})), "invalid_request"},
		"no token":            {exchange("", "subject_token", ""), "invalid_request"},
		"two tokens":          {exchange("", "subject_token", "a|b"), "invalid_request"},
		"another audience":    {exchange(u.job(map[string]any{"aud": "sts.amazonaws.com"})), "unauthorized_client"},
		"another repository":  {exchange(u.job(map[string]any{"repository": "evil/orders"})), "unauthorized_client"},
		"another branch":      {exchange(u.job(map[string]any{"ref": "refs/heads/evil"})), "unauthorized_client"},
		"a scope too many":    {exchange(u.job(nil), "scope", "orders:read orders:admin"), "invalid_scope"},
		"no scope":            {exchange(u.job(nil), "scope", ""), "invalid_scope"},
		"another target":      {exchange(u.job(nil), "audience", "payroll"), "invalid_target"},
		"no target":           {exchange(u.job(nil), "audience", ""), "invalid_target"},
		"a SAML assertion":    {exchange(u.job(nil), "subject_token_type", "urn:ietf:params:oauth:token-type:saml2"), "invalid_request"},
		"a refresh token":     {exchange(u.job(nil), "requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"), "invalid_request"},
		"a password":          {url.Values{"grant_type": {"password"}}, "unsupported_grant_type"},
		"nothing":             {url.Values{}, "invalid_request"},
		"a proof is demanded": {exchange(u.job(map[string]any{"ref": "refs/heads/bound"}), "scope", ""), "invalid_request"},
	} {
		answer, body := w.post(t, token.TokenPath, one.form, nil)
		if answer.StatusCode != http.StatusBadRequest || body["error"] != one.code || body["access_token"] != nil {
			t.Errorf("%s: %s %v", what, answer.Status, body)
		}
	}

	operator, verifier := w.token(t, "op", "operator", "prod/**"), w.token(t, "api", "verifier", "prod/**")
	of := url.Values{"token": {compact}}
	if answer, body := w.post(t, token.IntrospectPath, of, nil); answer.StatusCode != http.StatusUnauthorized || body["error"] != "invalid_client" {
		t.Errorf("anybody may introspect: %s %v", answer.Status, body)
	}
	if answer, _ := w.post(t, token.IntrospectPath, of, map[string]string{"Authorization": "Bearer " + operator}); answer.StatusCode != http.StatusBadRequest {
		t.Errorf("an operator may introspect: %s", answer.Status)
	}
	inspect := func(compact string) map[string]any {
		_, body := w.post(t, token.IntrospectPath, url.Values{"token": {compact}}, map[string]string{"Authorization": "Bearer " + verifier})
		return body
	}
	if body := inspect(compact); !isActive(body) || body["scope"] != "orders:read" {
		t.Errorf("introspected: %v", body)
	}
	if body := inspect(u.job(nil)); len(body) != 1 || isActive(body) {
		t.Errorf("a token of others: %v", body)
	}
	if answer, _ := w.post(t, token.RevokePath, of, map[string]string{"Authorization": "Bearer " + verifier}); answer.StatusCode == http.StatusOK {
		t.Error("a verifier may revoke")
	}
	for range 2 {
		if answer, body := w.post(t, token.RevokePath, of, map[string]string{"Authorization": "Bearer " + operator}); answer.StatusCode != http.StatusOK {
			t.Errorf("revoke: %s %v", answer.Status, body)
		}
	}
	if body := inspect(compact); len(body) != 1 || isActive(body) {
		t.Errorf("revoked, and %v", body)
	}
}

// isActive reports what introspection said.
func isActive(body map[string]any) bool {
	active, ok := body["active"].(bool)
	return active && ok
}

// TestExchangeWhileTheIssuerIsAway: keys of an issuer that answers no more are used
// on; a new key of one that answers is taken into use at once.
func TestExchangeWhileTheIssuerIsAway(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	w := brokering(t, signingConfig(t.TempDir()), u)
	ask := func() (int, any) {
		answer, body := w.post(t, token.TokenPath, exchange(u.job(nil)), nil)
		return answer.StatusCode, body["error"]
	}
	u.mu.Lock()
	u.away = true
	u.mu.Unlock()
	if status, code := ask(); status != http.StatusServiceUnavailable || code != "temporarily_unavailable" {
		t.Errorf("without any key: %d %v", status, code)
	}
	u.mu.Lock()
	u.away = false
	u.mu.Unlock()
	until(t, "its keys", func() bool { status, _ := ask(); return status == http.StatusOK })
	u.mu.Lock()
	u.away = true
	u.mu.Unlock()
	if status, code := ask(); status != http.StatusOK {
		t.Errorf("its keys are forgotten: %d %v", status, code)
	}
	u.rotate()
	// Whether it is a new one nobody can tell now.
	if status, code := ask(); status != http.StatusServiceUnavailable || code != "temporarily_unavailable" {
		t.Errorf("a token of a key that nobody knows: %d %v", status, code)
	}
	u.mu.Lock()
	u.away = false
	u.mu.Unlock()
	until(t, "its new key", func() bool { status, _ := ask(); return status == http.StatusOK })
}

// TestBoundTokens: a token is bound to the key of a proof; a proof counts once, and
// only with a nonce of this server.
func TestBoundTokens(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	w := brokering(t, signingConfig(t.TempDir()), u)
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	proof := func(nonce, where string) string {
		return signJWT(t, private, jose.ES256, "", "dpop+jwt", true, map[string]any{
			"jti": rand.Text(), "htm": "POST", "htu": where, "iat": time.Now().Unix(), "nonce": nonce,
		})
	}
	endpoint := w.Address() + "/orders" + token.TokenPath
	form := exchange(u.job(map[string]any{"ref": "refs/heads/bound"}), "scope", "")
	answer, body := w.post(t, token.TokenPath, form, map[string]string{"DPoP": proof("", endpoint)})
	nonce := answer.Header.Get("DPoP-Nonce")
	if body["error"] != "use_dpop_nonce" || nonce == "" {
		t.Fatalf("%s %v", answer.Status, body)
	}
	good := proof(nonce, endpoint)
	answer, body = w.post(t, token.TokenPath, form, map[string]string{"DPoP": good})
	if answer.StatusCode != http.StatusOK || body["token_type"] != "DPoP" {
		t.Fatalf("%s %v", answer.Status, body)
	}
	claims, err := w.Board().Verify(ordersTokens, body["access_token"].(string), token.Expect{})
	sum, thumbErr := (&jose.JSONWebKey{Key: private.Public()}).Thumbprint(crypto.SHA256)
	if err != nil || thumbErr != nil || !strings.Contains(string(claims.All["cnf"]), base64.RawURLEncoding.EncodeToString(sum)) {
		t.Errorf("%s: %v, %v", claims.All["cnf"], err, thumbErr)
	}
	for what, spoilt := range map[string]string{"a replay": good, "another URL": proof(nonce, endpoint+"x"), "no proof": "x"} {
		if _, body := w.post(t, token.TokenPath, form, map[string]string{"DPoP": spoilt}); body["error"] != "invalid_dpop_proof" {
			t.Errorf("%s: %v", what, body)
		}
	}
	// What was shown again is found by a rule, and nothing more is done.
	w.apply(t, w.root, `{apiVersion: keyturn/v1, kind: Rule, metadata: {name: replays}, spec: {when: use.replay && use.known, then: emergency, mode: enforce}}`)
	if _, body := w.post(t, token.TokenPath, form, map[string]string{"DPoP": good}); body["error"] != "invalid_dpop_proof" {
		t.Errorf("%v", body)
	}
	until(t, "a finding", func() bool {
		response, err := w.control(w.root).ListRules(t.Context(), &keyturnv1.ListRulesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return response.GetRules()[0].GetFindings()["alert"] == 1 && response.GetRules()[0].GetLastVersion() == 1
	})
}

// TestReportsOfVerifiers: what a service that verifies tokens reports of replayed proofs
// is judged by the rules; who may not verify reports nothing.
func TestReportsOfVerifiers(t *testing.T) {
	t.Parallel()
	w := brokering(t, signingConfig(t.TempDir()), newUpstream(t))
	w.apply(t, w.root, `{apiVersion: keyturn/v1, kind: Rule, metadata: {name: replays}, spec: {when: 'use.source == "token-verifier" && use.replay && use.known && use.application == "deploy"', then: alert, mode: enforce}}`)
	report := func(bearer string) int {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.Address()+"/orders"+token.ReportPath,
			strings.NewReader(`{"refused":[{"client":"deploy","address":"198.51.100.9","count":3,"replay":true},{"address":"198.51.100.9","count":1}]}`))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Authorization", "Bearer "+bearer)
		response, err := w.http.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close() // its status is enough
		return response.StatusCode
	}
	for role, want := range map[string]int{"viewer": http.StatusBadRequest, "verifier": http.StatusNoContent} {
		if status := report(w.token(t, "a-"+role, role, "prod/**")); status != want {
			t.Errorf("%s: %d, want %d", role, status, want)
		}
	}
	if status := report(w.token(t, "elsewhere", "verifier", "dev/**")); status == http.StatusNoContent {
		t.Error("a verifier of other keys may report")
	}
	until(t, "a finding", func() bool {
		response, err := w.control(w.root).ListRules(t.Context(), &keyturnv1.ListRulesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return response.GetRules()[0].GetFindings()["alert"] == 1 && response.GetRules()[0].GetLastVersion() == 1
	})
}

// TestClientCredentials: a service with a token of Keyturn gets one for others.
func TestClientCredentials(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	w := brokering(t, signingConfig(t.TempDir()), u)
	service, stranger := w.token(t, "svc-orders", "viewer", "prod/**"), w.token(t, "other", "viewer", "prod/**")
	form := url.Values{"grant_type": {"client_credentials"}}
	basic := func(text string) map[string]string {
		return map[string]string{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte("svc:"+url.QueryEscape(text)))}
	}
	for range 3 {
		answer, body := w.post(t, token.TokenPath, form, basic(service))
		if answer.StatusCode != http.StatusOK || body["scope"] != "orders:read" {
			t.Fatalf("%s %v", answer.Status, body)
		}
	}
	for text, code := range map[string]string{stranger: "unauthorized_client", service + "x": "invalid_client", "": "invalid_client"} {
		if _, body := w.post(t, token.TokenPath, form, basic(text)); body["error"] != code {
			t.Errorf("%v, want %s", body, code)
		}
	}
	form.Set("client_secret", service)
	if _, body := w.post(t, token.TokenPath, form, basic(service)); body["error"] != "invalid_request" {
		t.Errorf("two secrets: %v", body)
	}
}

// audited reports whether a text stands in the audit log.
func (w *world) audited(t *testing.T, text string) bool {
	t.Helper()
	stream, err := w.control(w.root).ExportLog(t.Context(), &keyturnv1.ExportLogRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var log strings.Builder
	for stream.Receive() {
		log.Write(stream.Msg().GetPiece())
	}
	return strings.Contains(log.String(), text)
}

// TestExampleOfTheTokensPage: the document of the page is applied as it stands.
func TestExampleOfTheTokensPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/tokens.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```yaml\n")
	example, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("the page has no example")
	}
	w := startServerWith(t, configOf(t.TempDir()), nil)
	for _, p := range w.apply(t, w.root, example).GetProblems() {
		t.Errorf("%v", p)
	}
}
