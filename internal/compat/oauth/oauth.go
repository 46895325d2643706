package oauth

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/broker"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// Broker gives tokens.
type Broker interface {
	Give(ctx context.Context, request *broker.Request) (broker.Issued, error)
	Introspect(name key.Name, compact string) (token.Claims, error)
	Revoke(ctx context.Context, name key.Name, compact string, actor audit.Actor, allowed func(*token.Claims) error) error
}

// Issuers finds issuers.
type Issuers interface {
	Issuer(path string) (key.Name, string, error)
}

// Config is what a Handler needs; all fields are required.
type Config struct {
	Broker  Broker
	Issuers Issuers
	// Inspector fails unless the bearer of a token of Keyturn may introspect tokens of a
	// key; Revoker says who the bearer of one is, or of an API key, and whether it may
	// revoke all tokens of the key or only those of the client it is.
	Inspector func(ctx context.Context, bearer secret.Value, name key.Name) error
	Revoker   func(ctx context.Context, bearer secret.Value, name key.Name, address string) (actor audit.Actor, client string, err error)
	// Admit reports whether the caller may ask once more, Blocked whether it showed too
	// many bad credentials; Refused is told of each.
	Admit, Blocked func(r *http.Request) bool
	Refused        func(r *http.Request)
	// Reported hears whom a service refused that was shown tokens of a key; it must not
	// block.
	Reported func(name key.Name, list []Reported)
}

// Handler answers.
type Handler struct{ config Config }

// New returns a handler.
func New(config Config) *Handler { return &Handler{config} }

// Is reports whether a path could be one that a Handler answers.
func Is(path string) bool {
	return strings.HasSuffix(path, token.TokenPath) || strings.HasSuffix(path, token.IntrospectPath) || strings.HasSuffix(path, token.RevokePath) ||
		strings.HasSuffix(path, token.ReportPath)
}

const (
	// maxBody bounds a request, maxList how often a parameter is there that may be repeated.
	maxBody = 40 << 10
	maxList = 16
	// maxValue bounds what is asked for.
	maxValue = 2 << 10
)

const (
	exchangeGrant = "urn:ietf:params:oauth:grant-type:token-exchange"
	typeOf        = "urn:ietf:params:oauth:token-type:"
	apiKeyType    = "urn:keyturn:params:oauth:token-type:api-key" //nolint:gosec // a name of a type
)

// problem is an error of the standards.
type problem struct {
	status int
	code   string
	text   string
}

func (p *problem) Error() string { return p.code + ": " + p.text }

func invalid(text string) error { return &problem{http.StatusBadRequest, "invalid_request", text} }

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("Pragma", "no-cache")
	header.Set("X-Content-Type-Options", "nosniff")
	serve := h.token
	path, found := strings.CutSuffix(r.URL.Path, token.TokenPath)
	if !found {
		serve = h.introspect
		path, found = strings.CutSuffix(r.URL.Path, token.IntrospectPath)
	}
	if !found {
		serve = h.revoke
		path, found = strings.CutSuffix(r.URL.Path, token.RevokePath)
	}
	reports := false
	if !found {
		path, reports = strings.CutSuffix(r.URL.Path, token.ReportPath)
		found = reports
	}
	name, issuer, err := h.config.Issuers.Issuer(path)
	if !found || err != nil {
		refuse(w, &problem{http.StatusNotFound, "invalid_request", "there is nothing here"})
		return
	}
	switch {
	case r.Method != http.MethodPost:
		header.Set("Allow", http.MethodPost)
		refuse(w, &problem{http.StatusMethodNotAllowed, "invalid_request", "only POST is answered here"})
	case h.config.Blocked(r):
		header.Set("Retry-After", "10")
		refuse(w, &problem{http.StatusTooManyRequests, "temporarily_unavailable", "too many bad credentials from this address; wait ten seconds"})
	case !h.config.Admit(r):
		header.Set("Retry-After", "1")
		refuse(w, &problem{http.StatusTooManyRequests, "temporarily_unavailable", "too many requests; keep tokens as long as they live"})
	case reports:
		if err := h.report(w, r, name); err != nil {
			h.fail(w, r, err)
		}
	default:
		form, err := read(w, r)
		if err == nil {
			err = serve(w, r, form, name, issuer)
		}
		if err != nil {
			h.fail(w, r, err)
		}
	}
}

// read reads the form.
func read(w http.ResponseWriter, r *http.Request) (url.Values, error) {
	const how = "send one form (application/x-www-form-urlencoded) of at most 40 KiB"
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "application/x-www-form-urlencoded" {
		return nil, invalid(how)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return nil, invalid(how)
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, invalid(how)
	}
	for name, values := range form {
		if repeated := name == "audience" || name == "resource"; len(values) > 1 && !repeated || len(values) > maxList {
			return nil, invalid("a parameter is there twice")
		}
	}
	return form, nil
}

// credential is the secret that a client authenticates with; empty if there is none.
func credential(r *http.Request, form url.Values) (secret.Value, error) {
	var found []string
	if header := r.Header.Values("Authorization"); len(header) > 1 {
		return secret.Value{}, invalid("there are several authorizations")
	} else if len(header) == 1 {
		if bearer, ok := strings.CutPrefix(header[0], "Bearer "); ok {
			found = append(found, bearer)
		} else if _, password, ok := r.BasicAuth(); ok {
			// RFC 6749, section 2.3.1: it is encoded as in a form.
			plain, err := url.QueryUnescape(password)
			if err != nil {
				return secret.Value{}, invalid("the client's secret is not encoded as a form")
			}
			found = append(found, plain)
		} else {
			return secret.Value{}, broker.ErrClient
		}
	}
	if form.Has("client_secret") {
		found = append(found, form.Get("client_secret"))
	}
	switch len(found) {
	case 0:
		return secret.Value{}, nil
	case 1:
		return secret.NewString(found[0]), nil
	}
	return secret.Value{}, invalid("the client authenticates in several ways")
}

func (h *Handler) token(w http.ResponseWriter, r *http.Request, form url.Values, name key.Name, issuer string) error {
	request, err := requestOf(r, form, name, issuer)
	if err != nil {
		return err
	}
	issued, err := h.config.Broker.Give(r.Context(), request)
	if err != nil {
		return err
	}
	kind := "Bearer"
	if issued.Bound {
		kind = "DPoP"
		w.Header().Set("DPoP-Nonce", issued.Nonce)
	}
	answer(w, http.StatusOK, struct {
		Token   string `json:"access_token"`
		Issued  string `json:"issued_token_type,omitempty"`
		Type    string `json:"token_type"`
		Expires int    `json:"expires_in"`
		Scope   string `json:"scope,omitempty"`
	}{issued.Compact.RevealString(), typeOf + "access_token", kind, int(issued.Expires.Sub(issued.Issued) / time.Second), strings.Join(issued.Scopes, " ")})
	return nil
}

func requestOf(r *http.Request, form url.Values, name key.Name, issuer string) (*broker.Request, error) {
	request := &broker.Request{
		Key: name, URL: issuer + token.TokenPath, Address: address(r), Certificates: certificates(r), Proofs: r.Header.Values("DPoP"),
		Audiences: append(form["audience"], form["resource"]...), Scopes: strings.Fields(form.Get("scope")),
	}
	for _, one := range append(request.Audiences, request.Scopes...) {
		if len(one) > maxValue || one == "" {
			return nil, invalid("an audience, resource or scope is empty or too long")
		}
	}
	if len(request.Scopes) > maxList*4 {
		return nil, invalid("there are too many scopes")
	}
	client, err := credential(r, form)
	if err != nil {
		return nil, err
	}
	switch form.Get("grant_type") {
	case exchangeGrant:
		if form.Has("actor_token") || form.Has("actor_token_type") {
			return nil, invalid("delegation (actor_token) is not supported")
		}
		switch wanted := form.Get("requested_token_type"); wanted {
		case "", typeOf + "access_token", typeOf + "jwt":
		default:
			return nil, invalid("requested_token_type: only access tokens are issued")
		}
		subject := secret.NewString(form.Get("subject_token"))
		if form.Get("subject_token") == "" {
			return nil, invalid("subject_token is missing")
		}
		switch form.Get("subject_token_type") {
		case typeOf + "jwt", typeOf + "id_token":
			request.Subject = subject
		case apiKeyType:
			request.Secret = subject
		default:
			return nil, invalid("subject_token_type: use " + typeOf + "jwt, " + typeOf + "id_token or " + apiKeyType)
		}
	case "client_credentials":
		request.Secret = client
		request.UseCertificate = client.Len() == 0
	case "":
		return nil, invalid("grant_type is missing")
	default:
		return nil, &problem{http.StatusBadRequest, "unsupported_grant_type", "use " + exchangeGrant + " or client_credentials"}
	}
	return request, nil
}

func certificates(r *http.Request) []*x509.Certificate {
	if r.TLS == nil {
		return nil
	}
	return r.TLS.PeerCertificates
}

func address(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return host
}

func (h *Handler) introspect(w http.ResponseWriter, r *http.Request, form url.Values, name key.Name, _ string) error {
	client, err := credential(r, form)
	if err != nil {
		return err
	}
	if err := h.config.Inspector(r.Context(), client, name); err != nil {
		return err
	}
	if form.Get("token") == "" {
		return invalid("token is missing")
	}
	claims, err := h.config.Broker.Introspect(name, form.Get("token"))
	if errors.Is(err, token.ErrToken) {
		answer(w, http.StatusOK, map[string]bool{"active": false})
		return nil
	}
	if err != nil {
		return err
	}
	all := map[string]any{}
	for claim, value := range claims.All {
		all[claim] = value
	}
	all["active"], all["token_type"] = true, "Bearer"
	var cnf struct {
		Thumbprint string `json:"jkt"`
	}
	if json.Unmarshal(claims.All["cnf"], &cnf) == nil && cnf.Thumbprint != "" {
		all["token_type"] = "DPoP"
	}
	answer(w, http.StatusOK, all)
	return nil
}

func (h *Handler) revoke(w http.ResponseWriter, r *http.Request, form url.Values, name key.Name, _ string) error {
	bearer, err := credential(r, form)
	if err != nil {
		return err
	}
	actor, client, err := h.config.Revoker(r.Context(), bearer, name, address(r))
	if err != nil {
		return err
	}
	if form.Get("token") == "" {
		return invalid("token is missing")
	}
	err = h.config.Broker.Revoke(r.Context(), name, form.Get("token"), actor, func(c *token.Claims) error {
		var of string
		if client != "" && (json.Unmarshal(c.All["client_id"], &of) != nil || of != client) {
			return fmt.Errorf("%w: the token is that of another client", broker.ErrGrant)
		}
		return nil
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "the answer could not be encoded", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the caller is gone if this fails
}

func refuse(w http.ResponseWriter, p *problem) {
	answer(w, p.status, struct {
		Code string `json:"error"`
		Text string `json:"error_description,omitempty"`
	}{p.code, p.text})
}
