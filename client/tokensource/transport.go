package tokensource

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/keyturn/keyturn/secret"
)

// ErrHost: a request goes to a host that the token is not for.
var ErrHost = errors.New("the access token is not for this host")

// Transport sends requests with a token: an http.RoundTripper. It may be used
// concurrently.
type Transport struct {
	source *Source
	base   http.RoundTripper
	hosts  map[string]bool

	mu sync.Mutex
	// nonces are those that hosts gave.
	nonces map[string]string
}

// Transport returns one that sends tokens to the hosts named, "orders.example.com"
// or "10.0.0.7:8443", and refuses requests to all others: a redirect carries no
// token away. base does the work; nil is a transport with the source's authorities
// and certificate. Requests go by https, or to loopback addresses.
//
// A request that is refused with 401 is sent once more with another token, if its body
// can be had again (GetBody), and once more with a nonce where a resource demands one.
func (s *Source) Transport(base http.RoundTripper, hosts ...string) (*Transport, error) {
	t := &Transport{source: s, base: base, hosts: map[string]bool{}, nonces: map[string]string{}}
	if base == nil {
		t.base = s.http.Transport
	}
	if t.base == nil {
		t.base = http.DefaultTransport
	}
	for _, host := range hosts {
		u, err := url.Parse("https://" + host)
		if err != nil || u.Host != host || u.Hostname() == "" {
			return nil, fmt.Errorf("%w: %q is no host; write for example orders.example.com or orders.example.com:8443", ErrConfig, host)
		}
		t.hosts[hostOf(u)] = true
	}
	if len(t.hosts) == 0 {
		return nil, fmt.Errorf("%w: name the hosts that the token is for", ErrConfig)
	}
	return t, nil
}

func hostOf(u *url.URL) string { return strings.TrimSuffix(strings.ToLower(u.Host), ":443") }

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	host := hostOf(r.URL)
	err := t.allowed(r.URL, host)
	var token Token
	if err == nil {
		token, err = t.source.Token(r.Context())
	}
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // it was not read
		}
		return nil, err
	}
	before := t.nonce(host)
	response, err := t.send(r, r.Body, token, host)
	if err != nil || response.StatusCode != http.StatusUnauthorized {
		return response, err
	}
	if now := t.nonce(host); t.source.prover != nil && now != "" && now != before && demandsNonce(response) {
		again, err := t.again(r, response, token, host)
		if err != nil || again.StatusCode != http.StatusUnauthorized {
			return again, err
		}
		response = again
	}
	if demandsNonce(response) || !replayable(r) {
		return response, nil
	}
	next, err := t.source.Renew(r.Context(), token)
	if err != nil {
		return response, nil //nolint:nilerr // the refusal stands
	}
	return t.again(r, response, next, host)
}

func (t *Transport) allowed(u *url.URL, host string) error {
	switch {
	case !t.hosts[host]:
		return fmt.Errorf("%w: %s", ErrHost, u.Host)
	case u.Scheme != "https" && !(u.Scheme == "http" && isLoopback(u.Hostname())):
		return fmt.Errorf("%w: %s would get it in the clear; use https", ErrHost, u.Host)
	}
	return nil
}

// demandsNonce reports whether a resource wants a nonce (RFC 9449, section 9).
func demandsNonce(response *http.Response) bool {
	for _, challenge := range response.Header.Values("WWW-Authenticate") {
		if strings.Contains(challenge, `error="`+codeNonce+`"`) {
			return true
		}
	}
	return false
}

func replayable(r *http.Request) bool {
	return r.Body == nil || r.Body == http.NoBody || r.GetBody != nil
}

// again sends a request once more; the refusal stands if its body cannot be had.
func (t *Transport) again(r *http.Request, refused *http.Response, token Token, host string) (*http.Response, error) {
	if !replayable(r) {
		return refused, nil
	}
	body := r.Body
	if r.GetBody != nil {
		var err error
		if body, err = r.GetBody(); err != nil {
			return refused, nil //nolint:nilerr // as said
		}
	}
	_, _ = io.CopyN(io.Discard, refused.Body, 4<<10) // so that the connection can be used again
	_ = refused.Body.Close()                         // it was refused
	return t.send(r, body, token, host)
}

func (t *Transport) send(r *http.Request, body io.ReadCloser, token Token, host string) (*http.Response, error) {
	out := r.Clone(r.Context())
	out.Body = body
	authorize(out.Header, token.Type, token.Value)
	out.Header.Del("DPoP")
	if p := t.source.prover; p != nil {
		target := r.URL.Scheme + "://" + r.URL.Host + r.URL.EscapedPath()
		proof, err := p.proof(r.Method, target, token.Value.RevealString(), t.nonce(host), t.source.config.Now())
		if err != nil {
			if body != nil {
				_ = body.Close() // it was not read
			}
			return nil, err
		}
		out.Header.Set("DPoP", proof)
	}
	response, err := t.base.RoundTrip(out)
	if err == nil {
		if nonce := nonceOf(response.Header); nonce != "" {
			t.mu.Lock()
			t.nonces[host] = nonce
			t.mu.Unlock()
		}
	}
	return response, err
}

func authorize(header http.Header, scheme string, value secret.Value) {
	header.Set("Authorization", scheme+" "+value.RevealString())
}

func (t *Transport) nonce(host string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.nonces[host]
}
