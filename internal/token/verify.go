package token

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	strict "github.com/go-jose/go-jose/v4/json"

	"github.com/keyturn/keyturn/key"
)

// ErrToken: a token is not valid. The message says why, for a log; whoever showed
// the token is told no more than that it is not.
var ErrToken = errors.New("the token is not valid")

// MaxToken is how large a token may be, in bytes.
const MaxToken = 16 << 10

// maxDepth is how deep the claims of a token may be nested.
const maxDepth = 16

// Claims are those of a token that was verified.
type Claims struct {
	Issuer   string
	Subject  string
	Audience []string
	ID       string
	Issued   time.Time
	Expires  time.Time
	// Version is the one that signed it, KeyID its name; Type that of the header.
	Version key.Version
	KeyID   string
	Type    Type
	// All are all claims, as they stand in the token.
	All map[string]json.RawMessage
}

// Expect says what a token must be beside valid.
type Expect struct {
	// Audience must be among those of the token; empty: any, or none.
	Audience string
	// Type must be that of the token; 0: any that the signer makes.
	Type Type
}

// Verify checks a token that a signing key is said to have signed: the signature by
// a key that is published now, the issuer, and the times, with Skew to spare. It
// works from memory. It fails with ErrToken; with ErrUnknown when there is no such
// signing key; and with ErrNotReady when this node cannot know what is published.
// Whether a token was revoked, or is shown a second time, it does not know.
func (b *Board) Verify(name key.Name, compact string, expect Expect) (Claims, error) {
	b.mu.RLock()
	p := b.sets[name]
	err := b.fresh()
	b.mu.RUnlock()
	switch {
	case err != nil:
		return Claims{}, err
	case p == nil || p.Issuer == "":
		return Claims{}, fmt.Errorf("%w: %s", ErrUnknown, name)
	}
	claims, err := p.keys.verify(compact)
	if err != nil {
		return Claims{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	now := b.config.Now()
	if err := claims.check(p.issuerAt(claims.Issuer, now), expect, now, b.config.Skew); err != nil {
		return Claims{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	return claims, nil
}

// issuerAt returns the issuer that a token must name: the one that it does if the key
// has or lately had it.
func (s *set) issuerAt(named string, now time.Time) string {
	for _, f := range s.Former {
		if f.Issuer == named && now.Before(f.Until) {
			return named
		}
	}
	return s.Issuer
}

// verify checks the signature and reads the claims.
func (keys verifyKeys) verify(compact string) (Claims, error) {
	if len(compact) > MaxToken {
		return Claims{}, fmt.Errorf("it has %d bytes, at most %d are allowed", len(compact), MaxToken)
	}
	if strings.Count(compact, ".") != 2 {
		return Claims{}, errors.New("it is not in the compact serialisation of a signature")
	}
	parsed, err := jose.ParseSignedCompact(compact, algorithms())
	if err != nil {
		return Claims{}, errors.New("it cannot be read, or its algorithm is none that is allowed")
	}
	header := parsed.Signatures[0].Protected
	k, ok := keys[header.KeyID]
	if !ok || header.KeyID == "" {
		return Claims{}, errors.New("its kid names no published key")
	}
	// The key decides on the algorithm, not the token.
	if header.Algorithm != string(k.algorithm) {
		return Claims{}, fmt.Errorf("its algorithm is not %s, that of the key", k.algorithm)
	}
	payload, err := parsed.Verify(k.public)
	if err != nil {
		return Claims{}, errors.New("its signature does not match")
	}
	claims := Claims{Version: k.version, KeyID: header.KeyID}
	typ, _ := header.ExtraHeaders[jose.HeaderType].(string)
	for _, t := range []Type{JWT, AccessToken} {
		if strings.EqualFold(strings.TrimPrefix(typ, "application/"), t.String()) {
			claims.Type = t
		}
	}
	if claims.Type == 0 {
		return Claims{}, errors.New("its type is none of a token")
	}
	err = claims.read(payload)
	return claims, err
}

// read takes the claims from a payload. A claim that is there twice is refused.
func (c *Claims) read(payload []byte) error {
	if depth(payload) > maxDepth {
		return errors.New("its claims are nested too deep")
	}
	var all map[string]strict.RawMessage
	if err := strict.Unmarshal(payload, &all); err != nil || all == nil {
		return errors.New("its claims are no JSON object, or one is there twice")
	}
	c.All = make(map[string]json.RawMessage, len(all))
	for name, value := range all {
		c.All[name] = json.RawMessage(value)
	}
	var errs []error
	c.Issuer = text(c.All, "iss", &errs)
	c.Subject = text(c.All, "sub", &errs)
	c.ID = text(c.All, "jti", &errs)
	if raw, ok := c.All["aud"]; ok {
		if json.Unmarshal(raw, &c.Audience) != nil {
			c.Audience = []string{text(c.All, "aud", &errs)}
		}
	}
	c.Issued, c.Expires = date(c.All, "iat", &errs), date(c.All, "exp", &errs)
	return errors.Join(errs...)
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

func text(all map[string]json.RawMessage, name string, errs *[]error) string {
	raw, ok := all[name]
	if !ok {
		return ""
	}
	var value *string
	if json.Unmarshal(raw, &value) != nil || value == nil {
		*errs = append(*errs, fmt.Errorf("claim %s is no text", name))
		return ""
	}
	return *value
}

// date reads a NumericDate (RFC 7519, section 2).
func date(all map[string]json.RawMessage, name string, errs *[]error) time.Time {
	raw, ok := all[name]
	if !ok {
		return time.Time{}
	}
	const most = 1 << 40 // in the year 36812
	var seconds *float64
	if json.Unmarshal(raw, &seconds) != nil || seconds == nil || *seconds < 0 || *seconds > most {
		*errs = append(*errs, fmt.Errorf("claim %s is no date", name))
		return time.Time{}
	}
	return time.Unix(int64(*seconds), 0)
}

func (c *Claims) check(issuer string, expect Expect, now time.Time, skew time.Duration) error {
	var errs []error
	notBefore := date(c.All, "nbf", &errs)
	switch {
	case len(errs) > 0:
		return errs[0]
	case c.Issuer != issuer:
		return errors.New("another issuer made it")
	case c.Expires.IsZero() || c.Issued.IsZero():
		return errors.New("it does not say when it expires, or when it was issued")
	case !now.Before(c.Expires.Add(skew)):
		return errors.New("it has expired")
	case now.Add(skew).Before(notBefore) || now.Add(skew).Before(c.Issued):
		return errors.New("it is not valid yet")
	case expect.Audience != "" && !slices.Contains(c.Audience, expect.Audience):
		return errors.New("it is for another audience")
	case expect.Type != 0 && c.Type != expect.Type:
		return errors.New("it is of another type")
	}
	return nil
}
