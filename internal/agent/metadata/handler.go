package metadata

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/keyturn/keyturn/client/tokensource"
	"github.com/keyturn/keyturn/secret"
)

// Source has a token.
type Source interface {
	Token(ctx context.Context) (tokensource.Token, error)
}

// Given is a token that processes may ask for.
type Given struct {
	Source Source
	// Audiences and Scopes are those it is asked for with.
	Audiences, Scopes []string
}

// Rules say how processes must ask.
type Rules struct {
	// Port is that of the listening TCP socket; empty for a unix socket.
	Port string
	// Authorization, if it is not empty, must be shown with each request; without it a
	// session comes first.
	Authorization secret.Value
	// Google answers in the form of Google's metadata server as well, Azure in those of
	// Azure's managed identities.
	Google, Azure bool
	// Tokens are those that there are, by name.
	Tokens map[string]Given
	// Now is the clock.
	Now func() time.Time
	// Refused is told why a request was refused; it must return quickly.
	Refused func(why string)
	// Answered is told of each request: in which form it was made, and the result. It must
	// return quickly; nil: nobody is told.
	Answered func(form Form, result Result)
}

// Form is how a request is made. The zero value is invalid.
type Form string

// The forms.
const (
	FormSession Form = "session"
	FormToken   Form = "token"
	FormGoogle  Form = "google"
	FormAzure   Form = "azure"
	FormOther   Form = "other"
)

// Result is what became of a request. The zero value is invalid.
type Result string

// resultOf is the result for a status of HTTP.
func resultOf(status int) Result {
	switch status {
	case http.StatusOK:
		return "ok"
	case http.StatusBadRequest:
		return "bad-request"
	case http.StatusUnauthorized:
		return "unauthorized"
	case http.StatusForbidden:
		return "forbidden"
	case http.StatusNotFound:
		return "not-found"
	case http.StatusMethodNotAllowed:
		return "method"
	case http.StatusTooManyRequests:
		return "too-many"
	case http.StatusServiceUnavailable:
		return "unavailable"
	}
	return "failed"
}

// formOf is the form of a request, by its path.
func (h *Handler) formOf(path string) Form {
	switch {
	case path == sessionPath:
		return FormSession
	case strings.HasPrefix(path, tokensPrefix):
		return FormToken
	case h.rules.Google && strings.HasPrefix(path, googlePrefix):
		return FormGoogle
	case h.rules.Azure && path == azurePath:
		return FormAzure
	}
	return FormOther
}

// Handler answers. It may be used concurrently.
type Handler struct {
	rules   Rules
	session []byte
	limit   *rate.Limiter
}

const (
	// SessionHeader carries the token of a session.
	SessionHeader = "Keyturn-Session"
	// TTLHeader says how long a session shall last, in seconds.
	TTLHeader = "Keyturn-Session-Ttl"
	maxTTL    = 6 * time.Hour
	// wait is how long a request waits for a first token.
	wait = 5 * time.Second
	// perSecond and burst bound what all processes together may ask.
	perSecond, burst = 500, 1000
	sessionPath      = "/v1/session"
	tokensPrefix     = "/v1/tokens/" //nolint:gosec // a path
)

// New returns a handler.
func New(rules Rules) *Handler {
	if rules.Answered == nil {
		rules.Answered = func(Form, Result) {}
	}
	return &Handler{rules: rules, session: []byte(rand.Text()), limit: rate.NewLimiter(perSecond, burst)}
}

// refusal is what a process is told.
type refusal struct {
	status int
	text   string
}

func no(status int, text string) *refusal { return &refusal{status, text} }

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	err := h.admit(r)
	form := h.formOf(r.URL.Path)
	if err == nil {
		err = h.serve(w, r, form)
	}
	if err == nil {
		h.rules.Answered(form, resultOf(http.StatusOK))
		return
	}
	h.rules.Answered(form, resultOf(err.status))
	if err.status == http.StatusServiceUnavailable || err.status == http.StatusTooManyRequests {
		header.Set("Retry-After", "1")
	}
	h.rules.Refused(err.text)
	answer(w, err.status, map[string]string{"error": http.StatusText(err.status), "error_description": err.text})
}

// relayed are headers of requests that did not begin in a process here for its own sake.
func relayed() []string {
	return []string{
		"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "Forwarded", "Via",
		"Origin", "Referer", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Cookie",
	}
}

// admit refuses requests that no process here makes for itself.
func (h *Handler) admit(r *http.Request) *refusal {
	for _, name := range relayed() {
		if _, there := r.Header[name]; there {
			return no(http.StatusForbidden, "a request that was forwarded, or made for a web page, is not answered: header "+name)
		}
	}
	if h.rules.Port != "" {
		if !isLocal(r.Host, h.rules.Port) {
			return no(http.StatusForbidden, "the header Host must be the loopback address and port that the agent listens on")
		}
		from, _, err := net.SplitHostPort(r.RemoteAddr)
		if ip := net.ParseIP(from); err != nil || ip == nil || !ip.IsLoopback() {
			return no(http.StatusForbidden, "only processes of this machine are answered")
		}
	}
	switch {
	case r.URL.IsAbs() || r.URL.Host != "" || r.Method == http.MethodConnect:
		return no(http.StatusForbidden, "this is no proxy")
	case r.ContentLength != 0:
		return no(http.StatusBadRequest, "a request must have no body")
	case !h.limit.AllowN(h.rules.Now(), 1):
		return no(http.StatusTooManyRequests, "too many requests; keep a token for as long as it lives")
	}
	return nil
}

// isLocal reports whether a host is a loopback address, or localhost, with the port.
func isLocal(host, port string) bool {
	name, of, err := net.SplitHostPort(host)
	ip := net.ParseIP(name)
	return err == nil && of == port && (strings.EqualFold(name, "localhost") || ip != nil && ip.IsLoopback())
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request, form Form) *refusal {
	switch form {
	case FormSession:
		if h.rules.Authorization.Len() > 0 {
			break
		}
		return h.begin(w, r)
	case FormToken:
		if r.Method != http.MethodGet {
			return no(http.StatusMethodNotAllowed, "ask with GET")
		}
		if err := h.authorized(r); err != nil {
			return err
		}
		return h.give(w, r, strings.TrimPrefix(r.URL.Path, tokensPrefix))
	case FormGoogle:
		return h.google(w, r, strings.TrimPrefix(r.URL.Path, googlePrefix))
	case FormAzure:
		return h.azure(w, r)
	case FormOther:
	}
	return no(http.StatusNotFound, "there is nothing here; see docs/reference/agent.md")
}

// begin begins a session. That needs a method and a header which a forged request of a
// server cannot have.
func (h *Handler) begin(w http.ResponseWriter, r *http.Request) *refusal {
	if r.Method != http.MethodPut {
		return no(http.StatusMethodNotAllowed, "begin a session with PUT")
	}
	seconds, err := strconv.ParseUint(r.Header.Get(TTLHeader), 10, 32)
	if ttl := time.Duration(seconds) * time.Second; err != nil || ttl < time.Second || ttl > maxTTL {
		return no(http.StatusBadRequest, fmt.Sprintf("the header %s must say how long the session lasts: 1 to %d seconds", TTLHeader, int(maxTTL.Seconds())))
	}
	end := strconv.FormatInt(h.rules.Now().Add(time.Duration(seconds)*time.Second).Unix(), 10)
	w.Header().Set("Content-Type", "text/plain")
	_, _ = fmt.Fprint(w, end+"."+h.mac(end)) // the process is gone if this fails
	return nil
}

func (h *Handler) mac(end string) string {
	mac := hmac.New(sha256.New, h.session)
	_, _ = mac.Write([]byte(end)) // a hash does not fail
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// authorized asks for the secret of the file, or for a session.
func (h *Handler) authorized(r *http.Request) *refusal {
	if h.rules.Authorization.Len() > 0 {
		values := r.Header.Values("Authorization")
		if len(values) != 1 || subtle.ConstantTimeCompare([]byte(strings.TrimPrefix(values[0], "Bearer ")), h.rules.Authorization.Reveal()) != 1 {
			return no(http.StatusUnauthorized, "the header Authorization must be what is in the agent's authorizationFile")
		}
		return nil
	}
	values := r.Header.Values(SessionHeader)
	if len(values) == 1 {
		end, mac, _ := strings.Cut(values[0], ".")
		seconds, err := strconv.ParseInt(end, 10, 64)
		if err == nil && hmac.Equal([]byte(mac), []byte(h.mac(end))) && h.rules.Now().Before(time.Unix(seconds, 0)) {
			return nil
		}
	}
	return no(http.StatusUnauthorized, "begin a session with PUT /v1/session, and send its token in the header "+SessionHeader)
}

// token is the one of a name.
func (h *Handler) token(r *http.Request, name string) (tokensource.Token, Given, *refusal) {
	given, ok := h.rules.Tokens[name]
	if !ok {
		return tokensource.Token{}, given, no(http.StatusNotFound, "the agent's configuration names no such token")
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	token, err := given.Source.Token(ctx)
	if err != nil {
		return tokensource.Token{}, given, no(http.StatusServiceUnavailable, "there is no token now; the agent's log says why. Ask again")
	}
	return token, given, nil
}

// body is a token in the form of RFC 6749, section 5.1.
type body struct {
	Token   string `json:"access_token"`
	Expires int    `json:"expires_in"`
	Type    string `json:"token_type"`
	Scope   string `json:"scope,omitempty"`
}

func (h *Handler) bodyOf(token *tokensource.Token) body {
	left := max(int(token.Expires.Sub(h.rules.Now()).Seconds()), 0)
	return body{token.Value.RevealString(), left, token.Type, strings.Join(token.Scopes, " ")}
}

func (h *Handler) give(w http.ResponseWriter, r *http.Request, name string) *refusal {
	token, _, err := h.token(r, name)
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, h.bodyOf(&token))
	return nil
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, status int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "the answer could not be encoded", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(text) // the process is gone if this fails
}

// Tally tells of refusals, at most once a minute.
type Tally struct {
	// Tell is told how many there were since, and why the last one was.
	Tell func(refused int, why string)
	Now  func() time.Time

	mu     sync.Mutex
	count  int
	silent time.Time
}

// Add notes one.
func (t *Tally) Add(why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count++
	if now := t.Now(); !now.Before(t.silent) {
		t.Tell(t.count, why)
		t.count, t.silent = 0, now.Add(time.Minute)
	}
}
