package metadata_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cloud "cloud.google.com/go/compute/metadata"
	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/managedidentity"
	"golang.org/x/oauth2/google"

	"github.com/keyturn/keyturn/client/tokensource"
	"github.com/keyturn/keyturn/internal/agent/metadata"
	"github.com/keyturn/keyturn/secret"
)

// held is a source with a token, or an error.
type held struct{ err error }

const theToken = "the-access-token"

func (h held) Token(context.Context) (tokensource.Token, error) {
	if h.err != nil {
		return tokensource.Token{}, h.err
	}
	now := time.Now()
	return tokensource.Token{Value: secret.NewString(theToken), Type: "Bearer", Issued: now, Expires: now.Add(5 * time.Minute), Scopes: []string{"orders:read"}}, nil
}

func rules() metadata.Rules {
	return metadata.Rules{
		Port: "8171", Now: time.Now, Refused: func(string) {},
		Tokens: map[string]metadata.Given{
			"orders": {Source: held{}, Audiences: []string{"orders"}, Scopes: []string{"orders:read"}},
			"away":   {Source: held{err: errors.New("the secret cause")}},
		},
	}
}

// ask makes a request of a process; edit changes it.
func ask(h http.Handler, method, path string, edit func(*http.Request), header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, http.NoBody)
	r.Host, r.RemoteAddr = "127.0.0.1:8171", "127.0.0.1:54321"
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	if edit != nil {
		edit(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func session(t *testing.T, h http.Handler) string {
	t.Helper()
	w := ask(h, http.MethodPut, "/v1/session", nil, metadata.TTLHeader, "60")
	if w.Code != http.StatusOK || w.Body.Len() < 20 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// TestSessionComesFirst: a token is given to who has begun a session, while it lasts.
func TestSessionComesFirst(t *testing.T) {
	now := time.Now()
	all := rules()
	all.Now = func() time.Time { return now }
	h := metadata.New(all)
	token := session(t, h)
	w := ask(h, http.MethodGet, "/v1/tokens/orders", nil, metadata.SessionHeader, token)
	var body struct {
		Token   string `json:"access_token"`
		Type    string `json:"token_type"`
		Scope   string `json:"scope"`
		Expires int    `json:"expires_in"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || w.Code != http.StatusOK || body.Token != theToken || body.Type != "Bearer" || body.Expires < 290 || body.Scope != "orders:read" || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("%d %s, %v", w.Code, w.Body, err)
	}
	end, mac, _ := strings.Cut(token, ".")
	for what, one := range map[string]string{
		"none": "", "made up": "x", "another end": fmt.Sprint(now.Add(time.Hour).Unix()) + "." + mac, "no mac": end + ".", "of another agent": session(t, metadata.New(rules())),
	} {
		if w := ask(h, http.MethodGet, "/v1/tokens/orders", nil, metadata.SessionHeader, one); w.Code != http.StatusUnauthorized || strings.Contains(w.Body.String(), theToken) {
			t.Errorf("%s: %d %s", what, w.Code, w.Body)
		}
	}
	now = now.Add(61 * time.Second)
	if w := ask(h, http.MethodGet, "/v1/tokens/orders", nil, metadata.SessionHeader, token); w.Code != http.StatusUnauthorized {
		t.Errorf("after its end: %d", w.Code)
	}
}

// TestForgedRequestsAreRefused: what a server, a proxy or a page was made to send gets
// neither a session nor a token, even with the right headers.
func TestForgedRequestsAreRefused(t *testing.T) {
	all := rules()
	all.Google = true
	h := metadata.New(all)
	good := []string{metadata.SessionHeader, session(t, h), "Metadata-Flavor", "Google", metadata.TTLHeader, "60"}
	const google = "/computeMetadata/v1/instance/service-accounts/orders/token"
	host := func(name string) func(*http.Request) { return func(r *http.Request) { r.Host = name } }
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	for what, edit := range map[string]func(*http.Request){
		"forwarded":              header("X-Forwarded-For", "127.0.0.1"),
		"forwarded, empty":       header("X-Forwarded-For", ""),
		"forwarded (RFC 7239)":   header("Forwarded", "for=127.0.0.1"),
		"through a proxy":        header("Via", "1.1 proxy"),
		"of a page":              header("Origin", "http://127.0.0.1:8171"),
		"of a browser":           header("Sec-Fetch-Site", "same-origin"),
		"with cookies":           header("Cookie", "a=b"),
		"rebound":                host("evil.example.com:8171"),
		"rebound, another port":  host("127.0.0.1:80"),
		"without a port":         host("127.0.0.1"),
		"a name like ours":       host("127.0.0.1.evil.example.com:8171"),
		"the clouds' address":    host("169.254.169.254:8171"),
		"no host":                host(""),
		"from another machine":   func(r *http.Request) { r.RemoteAddr = "192.0.2.7:1" },
		"from who knows":         func(r *http.Request) { r.RemoteAddr = "" },
		"as to a proxy":          func(r *http.Request) { r.URL = &url.URL{Scheme: "http", Host: "127.0.0.1:8171", Path: r.URL.Path} },
		"with a body":            func(r *http.Request) { r.ContentLength = 5 },
		"with a body of a guess": func(r *http.Request) { r.ContentLength = -1 },
	} {
		for path, method := range map[string]string{"/v1/session": http.MethodPut, "/v1/tokens/orders": http.MethodGet, google: http.MethodGet} {
			if w := ask(h, method, path, edit, good...); w.Code != http.StatusForbidden && w.Code != http.StatusBadRequest || strings.Contains(w.Body.String(), theToken) {
				t.Errorf("%s, %s: %d %s", what, path, w.Code, w.Body)
			}
		}
	}
	for what, one := range map[string]struct {
		method, path string
		header       []string
		status       int
	}{
		"a session by GET":      {http.MethodGet, "/v1/session", good, 405},
		"a session by POST":     {http.MethodPost, "/v1/session", good, 405},
		"without its life":      {http.MethodPut, "/v1/session", nil, 400},
		"for ever":              {http.MethodPut, "/v1/session", []string{metadata.TTLHeader, "99999999"}, 400},
		"for no time":           {http.MethodPut, "/v1/session", []string{metadata.TTLHeader, "0"}, 400},
		"a token by POST":       {http.MethodPost, "/v1/tokens/orders", good, 405},
		"without a session":     {http.MethodGet, "/v1/tokens/orders", nil, 401},
		"two sessions":          {http.MethodGet, "/v1/tokens/orders", append([]string{metadata.SessionHeader, "x"}, good...), 401},
		"another's token":       {http.MethodGet, "/v1/tokens/admin", good, 404},
		"unknown, no session":   {http.MethodGet, "/v1/tokens/admin", nil, 401},
		"a way out":             {http.MethodGet, "/v1/tokens/../tokens/orders", good, 404},
		"nothing":               {http.MethodGet, "/", good, 404},
		"an issuer away":        {http.MethodGet, "/v1/tokens/away", good, 503},
		"without a flavor":      {http.MethodGet, google, nil, 403},
		"another flavor":        {http.MethodGet, google, []string{"Metadata-Flavor", "google"}, 403},
		"scopes of others":      {http.MethodGet, google + "?scopes=admin", good, 400},
		"an audience of others": {http.MethodGet, strings.Replace(google, "/token", "/identity?audience=billing", 1), good, 400},
		"no audience":           {http.MethodGet, strings.Replace(google, "/token", "/identity", 1), good, 400},
		"its keys":              {http.MethodGet, "/computeMetadata/v1/instance/service-accounts/orders/keys", good, 404},
		"other metadata":        {http.MethodGet, "/computeMetadata/v1/project/attributes/ssh-keys", good, 404},
	} {
		w := ask(h, one.method, one.path, nil, one.header...)
		if w.Code != one.status || strings.Contains(w.Body.String(), theToken) || strings.Contains(w.Body.String(), "secret cause") {
			t.Errorf("%s: %d %s", what, w.Code, w.Body)
		}
		if (w.Code == http.StatusServiceUnavailable) != (w.Header().Get("Retry-After") != "") {
			t.Errorf("%s: Retry-After %q", what, w.Header().Get("Retry-After"))
		}
	}
}

// TestAuthorizationFile: with one, its content is what counts, and no session.
func TestAuthorizationFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth")
	value, err := metadata.Secret(path, metadata.Owner{Mode: 0o640, UID: -1, GID: -1})
	if err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(path)
	info, statErr := os.Stat(path)
	if err != nil || statErr != nil || info.Mode() != 0o640 || string(written) != value.RevealString() || len(written) < 40 {
		t.Fatalf("%v, %v, %v", info, err, statErr)
	}
	all := rules()
	all.Authorization = value
	h := metadata.New(all)
	for text, want := range map[string]int{string(written): 200, "Bearer " + string(written): 200, "": 401, "x": 401, "Basic " + string(written): 401} {
		if w := ask(h, http.MethodGet, "/v1/tokens/orders", nil, "Authorization", text); w.Code != want {
			t.Errorf("%d, want %d", w.Code, want)
		}
	}
	if w := ask(h, http.MethodPut, "/v1/session", nil, metadata.TTLHeader, "60"); w.Code != http.StatusNotFound {
		t.Errorf("a session is given beside it: %d", w.Code)
	}
	again, err := metadata.Secret(path, metadata.Owner{Mode: 0o600, UID: -1, GID: -1})
	if err != nil || again.Equal(value) {
		t.Errorf("the next start: %v", err)
	}
}

// TestFloodOfRequestsIsBounded, and told of once a minute.
func TestFloodOfRequestsIsBounded(t *testing.T) {
	now, told := time.Now(), 0
	all := rules()
	all.Now = func() time.Time { return now }
	tally := &metadata.Tally{Now: all.Now, Tell: func(int, string) { told++ }}
	all.Refused = tally.Add
	h := metadata.New(all)
	token := session(t, h)
	given := 0
	for range 5000 {
		if w := ask(h, http.MethodGet, "/v1/tokens/orders", nil, metadata.SessionHeader, token); w.Code == http.StatusOK {
			given++
		} else if w.Code != http.StatusTooManyRequests {
			t.Fatal(w.Code)
		}
	}
	if given < 500 || given > 1000 || told != 1 {
		t.Errorf("%d tokens given at one moment, told %d times", given, told)
	}
	now = now.Add(2 * time.Second)
	if w := ask(h, http.MethodGet, "/v1/tokens/orders", nil, metadata.SessionHeader, token); w.Code != http.StatusOK {
		t.Errorf("later: %d", w.Code)
	}
}

// TestGoogleClients: x/oauth2's and Google's own client get their tokens here.
func TestGoogleClients(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	all := rules()
	_, all.Port, _ = net.SplitHostPort(l.Addr().String())
	all.Google = true
	ended := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- metadata.Serve(ctx, l, metadata.New(all)) }()
	t.Setenv("GCE_METADATA_HOST", l.Addr().String())
	token, err := google.ComputeTokenSource("orders", "orders:read").Token()
	if err != nil || token.AccessToken != theToken || !token.Valid() {
		t.Errorf("%v, %v", token, err)
	}
	if identity, err := cloud.GetWithContext(t.Context(), "instance/service-accounts/orders/identity?audience=orders&format=full"); err != nil || identity != theToken {
		t.Errorf("%q, %v", identity, err)
	}
	if _, err := google.ComputeTokenSource("orders", "admin").Token(); err == nil {
		t.Error("scopes beyond the configuration")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestAzureClients: Microsoft's own client gets its tokens here, as from App Service
// where there is a secret, and as from a virtual machine where there is none.
func TestAzureClients(t *testing.T) {
	secretly := rules()
	secretly.Authorization = secret.NewString("of-the-file")
	secretly.Azure = true
	openly := rules()
	openly.Azure = true
	ask := func(all metadata.Rules, id managedidentity.ID, resource string, options ...managedidentity.ClientOption) (managedidentity.AuthResult, error) {
		t.Helper()
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, all.Port, _ = net.SplitHostPort(l.Addr().String())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- metadata.Serve(ctx, l, metadata.New(all)) }()
		if all.Authorization.Len() > 0 {
			t.Setenv("IDENTITY_ENDPOINT", "http://"+l.Addr().String()+"/metadata/identity/oauth2/token")
			t.Setenv("IDENTITY_HEADER", all.Authorization.RevealString())
		} else {
			t.Setenv("IDENTITY_ENDPOINT", "")
			t.Setenv("IDENTITY_HEADER", "")
			// Its address of the service is fixed.
			options = append(options, managedidentity.WithHTTPClient(&http.Client{Transport: elsewhere(l.Addr().String())}))
		}
		client, err := managedidentity.New(id, append(options, managedidentity.WithRetryPolicyDisabled())...)
		if err != nil {
			t.Fatal(err)
		}
		result, err := client.AcquireToken(t.Context(), resource)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		return result, err
	}
	for what, all := range map[string]metadata.Rules{"as App Service": secretly, "as a virtual machine": openly} {
		for _, id := range []managedidentity.ID{managedidentity.SystemAssigned(), managedidentity.UserAssignedClientID("orders")} {
			if result, err := ask(all, id, "orders"); err != nil || result.AccessToken != theToken || time.Until(result.ExpiresOn) < 4*time.Minute || time.Until(result.ExpiresOn) > 5*time.Minute {
				t.Errorf("%s, %v: %+v, %v", what, id, result, err)
			}
			if _, err := ask(all, id, "billing"); err == nil {
				t.Errorf("%s, %v: a token for another resource", what, id)
			}
		}
		if _, err := ask(all, managedidentity.UserAssignedClientID("admin"), "orders"); err == nil {
			t.Errorf("%s: a token of an identity that is not configured", what)
		}
	}
}

// elsewhere sends each request to one address.
type elsewhere string

func (e elsewhere) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Host, r.Host = string(e), string(e)
	return http.DefaultTransport.RoundTrip(r)
}

// TestAzureRefuses: without the header that a forged request cannot set, or what is in
// the file, nothing is given; nor is anything of the other form.
func TestAzureRefuses(t *testing.T) {
	const path = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=orders"
	openly := rules()
	openly.Azure = true
	openly.Tokens["also"] = metadata.Given{Source: held{}, Audiences: []string{"stock"}}
	openly.Tokens["too"] = metadata.Given{Source: held{}, Audiences: []string{"stock"}}
	secretly := openly
	secretly.Authorization = secret.NewString("of-the-file")
	for what, one := range map[string]struct {
		rules        metadata.Rules
		method, path string
		header       []string
		status       int
	}{
		"good":                        {openly, http.MethodGet, path, []string{"Metadata", "true"}, 200},
		"good, by its name":           {openly, http.MethodGet, path + "&client_id=orders", []string{"Metadata", "True"}, 200},
		"good, with the secret":       {secretly, http.MethodGet, path, []string{"X-IDENTITY-HEADER", "of-the-file"}, 200},
		"without a header":            {openly, http.MethodGet, path, nil, 400},
		"another header":              {openly, http.MethodGet, path, []string{"Metadata", "false"}, 400},
		"by POST":                     {openly, http.MethodPost, path, []string{"Metadata", "true"}, 405},
		"no secret":                   {secretly, http.MethodGet, path, []string{"Metadata", "true"}, 401},
		"a wrong secret":              {secretly, http.MethodGet, path, []string{"X-IDENTITY-HEADER", "x", "Metadata", "true"}, 401},
		"the secret, for a token":     {secretly, http.MethodGet, "/v1/tokens/orders", []string{"X-IDENTITY-HEADER", "of-the-file"}, 401},
		"no resource":                 {openly, http.MethodGet, "/metadata/identity/oauth2/token", []string{"Metadata", "true"}, 400},
		"a resource of nobody":        {openly, http.MethodGet, strings.Replace(path, "orders", "billing", 1), []string{"Metadata", "true"}, 400},
		"a resource of two":           {openly, http.MethodGet, strings.Replace(path, "orders", "stock", 1), []string{"Metadata", "true"}, 400},
		"a resource of two, by name":  {openly, http.MethodGet, strings.Replace(path, "orders", "stock", 1) + "&client_id=too", []string{"Metadata", "true"}, 200},
		"the resource of another one": {openly, http.MethodGet, path + "&client_id=too", []string{"Metadata", "true"}, 400},
		"forwarded":                   {openly, http.MethodGet, path, []string{"Metadata", "true", "X-Forwarded-For", "127.0.0.1"}, 403},
		"not configured":              {rules(), http.MethodGet, path, []string{"Metadata", "true"}, 404},
		"other metadata":              {openly, http.MethodGet, "/metadata/instance?api-version=2021-02-01", []string{"Metadata", "true"}, 404},
	} {
		var answered []string
		one.rules.Answered = func(form metadata.Form, result metadata.Result) {
			answered = append(answered, string(form)+" "+string(result))
		}
		w := ask(metadata.New(one.rules), one.method, one.path, nil, one.header...)
		if w.Code != one.status || strings.Contains(w.Body.String(), theToken) != (one.status == 200) || strings.Contains(w.Body.String(), "of-the-file") {
			t.Errorf("%s: %d %s", what, w.Code, w.Body)
		}
		if len(answered) != 1 || strings.HasSuffix(answered[0], " ok") != (one.status == 200) {
			t.Errorf("%s: counted as %q", what, answered)
		}
	}
}

// TestRequestsAreCounted: each request once, by its form and result, of which there are
// a few, whatever is asked for.
func TestRequestsAreCounted(t *testing.T) {
	counted := map[string]int{}
	all := rules()
	all.Google = true
	all.Answered = func(form metadata.Form, result metadata.Result) { counted[string(form)+" "+string(result)]++ }
	h := metadata.New(all)
	token := session(t, h)
	for i, path := range []string{"/v1/tokens/orders", "/v1/tokens/nobody", "/v1/tokens/away", "/v1/session", "/", "/metadata/identity/oauth2/token", "/computeMetadata/v1/instance/service-accounts/orders/token"} {
		ask(h, http.MethodGet, path, nil, metadata.SessionHeader, token)
		ask(h, http.MethodGet, fmt.Sprintf("/made/up/%d", i), nil)
		ask(h, http.MethodGet, path, func(r *http.Request) { r.Host = "evil.example.com" })
	}
	want := map[string]int{
		"session ok": 1, "session method": 1, "session forbidden": 1, "token ok": 1, "token not-found": 1, "token unavailable": 1, "token forbidden": 3,
		"google forbidden": 2, "other not-found": 9, "other forbidden": 2,
	}
	if !maps.Equal(counted, want) {
		t.Errorf("%v, want %v", counted, want)
	}
}

func TestParseAddress(t *testing.T) {
	for text, want := range map[string]metadata.Address{
		"127.0.0.1:8171":                    {Network: "tcp", Address: "127.0.0.1:8171", Port: "8171"},
		"127.9.9.9:1":                       {Network: "tcp", Address: "127.9.9.9:1", Port: "1"},
		"[::1]:8171":                        {Network: "tcp", Address: "[::1]:8171", Port: "8171"},
		"unix:/run/keyturn/t.sock":          {Network: "unix", Address: "/run/keyturn/t.sock"},
		"":                                  {},
		":8171":                             {},
		"0.0.0.0:8171":                      {},
		"[::]:8171":                         {},
		"192.0.2.1:8171":                    {},
		"[fe80::1%lo]:8171":                 {},
		"localhost:8171":                    {},
		"127.0.0.1":                         {},
		"127.0.0.1:0":                       {},
		"127.0.0.1:http":                    {},
		"127.0.0.1:08171":                   {},
		"unix:run/t.sock":                   {},
		"unix:/":                            {},
		"unix:@abstract":                    {},
		"unix:/" + strings.Repeat("a", 200): {},
	} {
		if got, err := metadata.ParseAddress(text); got != want || (err != nil) != (want == metadata.Address{}) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

// TestSocket: it belongs to whom the configuration says; what an agent left behind is
// replaced, what somebody uses or wrote is not.
func TestSocket(t *testing.T) {
	dir := t.TempDir()
	a := metadata.Address{Network: "unix", Address: filepath.Join(dir, "s")}
	owner := metadata.Owner{Mode: 0o660, UID: -1, GID: -1}
	old, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", a.Address)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := metadata.Listen(t.Context(), a, owner); !errors.Is(err, metadata.ErrListen) {
		t.Errorf("somebody listens: %v", err)
	}
	old.(*net.UnixListener).SetUnlinkOnClose(false) // as if it had been killed
	_ = old.Close()
	l, err := metadata.Listen(t.Context(), a, owner)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(a.Address); err != nil || info.Mode() != fs.ModeSocket|0o660 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	all := rules()
	all.Port = ""
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- metadata.Serve(ctx, l, metadata.New(all)) }()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", a.Address)
	}}}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://localhost/v1/session", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(metadata.TTLHeader, "60")
	response, err := client.Do(r)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("%v, %v", response, err)
	} else {
		_ = response.Body.Close()
	}
	client.CloseIdleConnections()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	a.Address = filepath.Join(dir, "file")
	if err := os.WriteFile(a.Address, []byte("of somebody"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := metadata.Listen(t.Context(), a, owner); !errors.Is(err, metadata.ErrListen) {
		t.Errorf("a file: %v", err)
	}
}

// FuzzRequest: whatever is sent, a token is given only to a request for loopback that was
// not forwarded, with a session or Google's header, to a path of its own.
func FuzzRequest(f *testing.F) {
	all := rules()
	all.Google = true
	h := metadata.New(all)
	w := ask(h, http.MethodPut, "/v1/session", nil, metadata.TTLHeader, "21600")
	begun := w.Body.String()
	f.Add("GET /v1/tokens/orders HTTP/1.1\r\nHost: 127.0.0.1:8171\r\nKeyturn-Session: SESSION\r\n\r\n")
	f.Add("GET /v1/tokens/orders HTTP/1.1\r\nHost: 127.0.0.1:8171\r\nX-Forwarded-For: a\r\nKeyturn-Session: SESSION\r\n\r\n")
	f.Add("GET http://127.0.0.1:8171/v1/tokens/orders HTTP/1.0\r\nKeyturn-Session: SESSION\r\n\r\n")
	f.Add("GET /computeMetadata/v1/instance/service-accounts/orders/token?scopes=a HTTP/1.1\r\nHost: [::1]:8171\r\nMetadata-Flavor: Google\r\n\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.Replace(text, "SESSION", begun, 1))))
		if err != nil {
			return
		}
		r.RemoteAddr = "127.0.0.1:1"
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		body, err := io.ReadAll(w.Body)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(body), theToken) {
			return
		}
		host, port, err := net.SplitHostPort(r.Host)
		local := err == nil && port == "8171" && (strings.EqualFold(host, "localhost") || net.ParseIP(host).IsLoopback())
		allowed := r.Header.Get(metadata.SessionHeader) == begun && r.URL.Path == "/v1/tokens/orders" ||
			r.Header.Get("Metadata-Flavor") == "Google" && strings.HasPrefix(r.URL.Path, "/computeMetadata/v1/instance/service-accounts/orders/")
		_, forwarded := r.Header["X-Forwarded-For"]
		if w.Code != http.StatusOK || !local || !allowed || forwarded || r.Method != http.MethodGet || r.URL.IsAbs() {
			t.Errorf("given to %q", text)
		}
	})
}
