package tokensource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/secret"
)

// Refusal is why the broker gives no token, in the words of the standards (RFC 6749,
// section 5.2). What will not pass by itself is asked for again slowly.
type Refusal struct {
	// Status is that of HTTP, Code for example invalid_client.
	Status int
	Code   string
	// Description is for people; it may be empty.
	Description string
}

// Error tells all of it.
func (r *Refusal) Error() string {
	text := fmt.Sprintf("the broker answers %d %s", r.Status, r.Code)
	if r.Description != "" {
		text += ": " + r.Description
	}
	return text
}

// lasting reports whether err will not pass by itself soon.
func lasting(err error) bool {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Status < 500 && r.Status != http.StatusTooManyRequests && r.Status != http.StatusRequestTimeout &&
			r.Code != "temporarily_unavailable" && r.Code != codeNonce
	}
	return errors.Is(err, client.ErrToken)
}

const (
	codeNonce = "use_dpop_nonce"
	codeProof = "invalid_dpop_proof"
)

const (
	// maxAnswer bounds an answer, maxToken a token, in bytes.
	maxAnswer = 64 << 10
	maxToken  = 16 << 10
	// maxLife is how long a token may live: what lives longer is no short-lived one.
	maxLife = 24 * time.Hour
	// maxRetryAfter bounds how long the broker may send a client away.
	maxRetryAfter = 10 * time.Minute
)

// answer is the outcome of one request.
type answer struct {
	token Token
	// nonce is for the next proof; retryAfter how long to stay away.
	nonce      string
	retryAfter time.Duration
}

// ask asks for a token, at one server.
func (s *Source) ask(ctx context.Context) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, s.config.RequestTimeout)
	defer cancel()
	form, header, err := s.form(ctx)
	if err != nil {
		return answer{}, err
	}
	for again := false; ; again = true {
		a, err := s.send(ctx, form, header)
		if a.nonce != "" {
			s.nonce = a.nonce
		}
		var refusal *Refusal
		if errors.As(err, &refusal) && !again && s.prover != nil {
			// The first request has no nonce, and a clock that is wrong is known by now.
			if refusal.Code == codeNonce && a.nonce != "" || refusal.Code == codeProof && s.prover.corrected() {
				continue
			}
		}
		if err != nil && !lasting(err) {
			s.turn = (s.turn + 1) % len(s.endpoints)
		}
		return a, err
	}
}

// form is what is sent, with the header that authenticates the client.
func (s *Source) form(ctx context.Context) (url.Values, http.Header, error) {
	c := &s.config
	form, header := url.Values{"grant_type": {"client_credentials"}}, http.Header{}
	switch {
	case c.Subject != nil:
		subject, err := c.Subject.Token(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("the subject token: %w", err)
		}
		form.Set("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
		form.Set("subject_token", subject.RevealString())
		form.Set("subject_token_type", c.SubjectType)
	case c.Secret != nil:
		own, err := c.Secret.Token(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("the client's secret: %w", err)
		}
		header.Set("Authorization", "Bearer "+own.RevealString())
	}
	form["audience"] = c.Audiences
	if len(c.Scopes) > 0 {
		form.Set("scope", strings.Join(c.Scopes, " "))
	}
	return form, header, nil
}

func (s *Source) send(ctx context.Context, form url.Values, header http.Header) (answer, error) {
	began := s.config.Now()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.endpoints[s.turn], strings.NewReader(form.Encode()))
	if err != nil {
		return answer{}, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	r.Header = header.Clone()
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Accept", "application/json")
	if s.prover != nil {
		proof, err := s.prover.proof(http.MethodPost, s.config.Issuer+tokenPath, "", s.nonce, began)
		if err != nil {
			return answer{}, err
		}
		r.Header.Set("DPoP", proof)
	}
	response, err := s.http.Do(r)
	if err != nil {
		var of *url.Error
		if errors.As(err, &of) {
			err = of.Err
		}
		return answer{}, fmt.Errorf("ask %s for a token: %w", s.endpoints[s.turn], err)
	}
	defer func() { _ = response.Body.Close() }() // it was read
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err != nil {
		return answer{}, fmt.Errorf("read the answer of %s: %w", s.endpoints[s.turn], err)
	}
	if s.prover != nil {
		s.prover.learn(response.Header.Get("Date"), s.config.Now())
	}
	return readAnswer(response.StatusCode, response.Header, body, s.prover != nil, began)
}

// readAnswer reads an answer to a request that began then. It accepts a token only
// with a life, and bound if it should be.
func readAnswer(status int, header http.Header, body []byte, bound bool, began time.Time) (answer, error) {
	a := answer{nonce: nonceOf(header)}
	if len(body) > maxAnswer {
		return a, fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	}
	var said struct {
		Token       string  `json:"access_token"`
		Type        string  `json:"token_type"`
		Expires     float64 `json:"expires_in"`
		Scope       string  `json:"scope"`
		Code        string  `json:"error"`
		Description string  `json:"error_description"`
	}
	err := json.Unmarshal(body, &said)
	if status != http.StatusOK {
		a.retryAfter = retryAfter(header.Get("Retry-After"), began)
		if err != nil || said.Code == "" {
			// It is from something before the broker.
			return a, &Refusal{Status: status, Code: "temporarily_unavailable"}
		}
		return a, &Refusal{Status: status, Code: printable(said.Code, 64), Description: printable(said.Description, 256)}
	}
	wanted := "Bearer"
	if bound {
		wanted = "DPoP"
	}
	switch {
	case err != nil:
		return a, errors.New("the answer is no JSON of a token")
	case said.Token == "" || len(said.Token) > maxToken || printable(said.Token, maxToken) != said.Token || strings.Contains(said.Token, " "):
		return a, errors.New("the answer has no access_token that could be sent")
	case !strings.EqualFold(said.Type, wanted):
		return a, fmt.Errorf("the token is of type %q, and %s was asked for", printable(said.Type, 20), wanted)
	case !(said.Expires >= 1) || said.Expires > maxLife.Seconds():
		return a, fmt.Errorf("the token lives %v seconds; between 1 and %v are accepted", said.Expires, maxLife.Seconds())
	}
	a.token = Token{
		Value: secret.NewString(said.Token), Type: wanted, Issued: began, Expires: began.Add(time.Duration(said.Expires) * time.Second),
		Scopes: strings.Fields(printable(said.Scope, maxToken)),
	}
	return a, nil
}

// nonceOf is the nonce that an answer gives (RFC 9449, section 8), if it is one.
func nonceOf(header http.Header) string {
	nonce := header.Get("DPoP-Nonce")
	if len(nonce) > 512 || printable(nonce, 512) != nonce || strings.ContainsAny(nonce, ` "\`) {
		return ""
	}
	return nonce
}

// printable is a text with visible ASCII characters and spaces only, limited.
func printable(text string, most int) string {
	kept := slices.DeleteFunc([]byte(text[:min(len(text), most)]), func(b byte) bool { return b < ' ' || b > '~' })
	return string(kept)
}

// retryAfter is how long to stay away (RFC 9110, section 10.2.3).
func retryAfter(text string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return min(time.Duration(seconds)*time.Second, maxRetryAfter)
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}
