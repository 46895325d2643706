package webtoken

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	strict "github.com/go-jose/go-jose/v4/json"
)

const (
	// maxDepth is how deep the claims of a token may be nested.
	maxDepth = 16
	// maxDate is the latest date, in seconds: in the year 36812.
	maxDate = 1 << 40
)

// Claims are what a token says. Texts that are not there are empty, dates zero.
type Claims struct {
	Issuer   string
	Subject  string
	Audience []string
	ID       string
	// Issued, NotBefore and Expires are in whole seconds.
	Issued    time.Time
	NotBefore time.Time
	Expires   time.Time
	// All are all claims, as they stand in the token.
	All map[string]json.RawMessage
}

// Read takes the claims from a payload.
func Read(payload []byte) (Claims, error) {
	if depth(payload) > maxDepth {
		return Claims{}, errors.New("its claims are nested too deep")
	}
	// Unlike encoding/json it refuses names that are there twice, and minds their case.
	var all map[string]strict.RawMessage
	if err := strict.Unmarshal(payload, &all); err != nil || all == nil {
		return Claims{}, errors.New("its claims are no JSON object, or one is there twice")
	}
	r := reader{all: make(map[string]json.RawMessage, len(all))}
	for name, value := range all {
		r.all[name] = json.RawMessage(value)
	}
	claims := Claims{
		Issuer: r.text("iss"), Subject: r.text("sub"), Audience: r.audience(), ID: r.text("jti"),
		Issued: r.date("iat"), NotBefore: r.date("nbf"), Expires: r.date("exp"), All: r.all,
	}
	if r.err != nil {
		return Claims{}, r.err
	}
	return claims, nil
}

// At checks that the token, by clocks that are skew apart at most, has been issued, is
// valid and has not expired (RFC 7519, section 4.1). Without iat or exp it never is.
func (c *Claims) At(now time.Time, skew time.Duration) error {
	switch {
	case c.Expires.IsZero() || c.Issued.IsZero():
		return errors.New("it does not say when it expires, or when it was issued")
	case !now.Before(c.Expires.Add(skew)):
		return errors.New("it has expired")
	case now.Add(skew).Before(c.NotBefore) || now.Add(skew).Before(c.Issued):
		return errors.New("it is not valid yet")
	}
	return nil
}

// reader takes single claims; err is what is wrong with the first bad one.
type reader struct {
	all map[string]json.RawMessage
	err error
}

func (r *reader) wrong(name, what string) {
	if r.err == nil {
		r.err = fmt.Errorf("claim %s is no %s", name, what)
	}
}

func (r *reader) text(name string) string {
	raw, ok := r.all[name]
	if !ok {
		return ""
	}
	var value *string
	if json.Unmarshal(raw, &value) != nil || value == nil {
		r.wrong(name, "text")
		return ""
	}
	return *value
}

// audience is one text, or a list of them.
func (r *reader) audience() []string {
	raw, ok := r.all["aud"]
	if !ok {
		return nil
	}
	var list []string
	if json.Unmarshal(raw, &list) == nil {
		return list
	}
	return []string{r.text("aud")}
}

// date reads a NumericDate (RFC 7519, section 2).
func (r *reader) date(name string) time.Time {
	raw, ok := r.all[name]
	if !ok {
		return time.Time{}
	}
	var seconds *float64
	if json.Unmarshal(raw, &seconds) != nil || seconds == nil || *seconds < 0 || *seconds > maxDate {
		r.wrong(name, "date")
		return time.Time{}
	}
	return time.Unix(int64(*seconds), 0)
}

// depth is how deep JSON is nested.
func depth(body []byte) int {
	deepest, level, quoted := 0, 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			level++
			deepest = max(deepest, level)
		case c == '}' || c == ']':
			level--
		}
	}
	return deepest
}
