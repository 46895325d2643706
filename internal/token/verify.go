package token

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/webtoken"
	"github.com/keyturn/keyturn/key"
)

// ErrToken: a token is not valid. The message says why, for a log; whoever showed
// the token is told no more than that it is not.
var ErrToken = errors.New("the token is not valid")

// Claims are those of a token that was verified.
type Claims struct {
	webtoken.Claims

	// Version is the one that signed it, KeyID its name; Type that of the header.
	Version key.Version
	KeyID   string
	Type    Type
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
	shown, err := webtoken.Parse(compact)
	if err != nil {
		return Claims{}, err
	}
	kid := shown.Header().KeyID
	k, ok := keys[kid]
	if !ok || kid == "" {
		return Claims{}, errors.New("its kid names no published key")
	}
	payload, err := shown.Verify(k.Key)
	if err != nil {
		return Claims{}, err
	}
	claims := Claims{Version: k.version, KeyID: kid}
	for _, t := range []Type{JWT, AccessToken} {
		if shown.Is(t.String()) {
			claims.Type = t
		}
	}
	if claims.Type == 0 {
		return Claims{}, errors.New("its type is none of a token")
	}
	claims.Claims, err = webtoken.Read(payload)
	return claims, err
}

func (c *Claims) check(issuer string, expect Expect, now time.Time, skew time.Duration) error {
	if c.Issuer != issuer {
		return errors.New("another issuer made it")
	}
	if err := c.At(now, skew); err != nil {
		return err
	}
	switch {
	case expect.Audience != "" && !slices.Contains(c.Audience, expect.Audience):
		return errors.New("it is for another audience")
	case expect.Type != 0 && c.Type != expect.Type:
		return errors.New("it is of another type")
	}
	return nil
}
