package token

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// ErrRequest: what is asked for cannot be signed; the message says how to mend it.
var ErrRequest = errors.New("invalid request for a token")

const (
	// MaxClaims is how large a token's claims may be, in bytes.
	MaxClaims = 8 << 10
	// backdate is how far before its issue a token is valid from: clocks of verifiers
	// may be behind.
	backdate = 10 * time.Second
	// leastLife is the part of the life asked for that a token has at least.
	leastLife = 10
)

// Request asks for one token.
type Request struct {
	// Key is the signing key. Required.
	Key key.Name
	// Type is the token's type. Default: JWT.
	Type Type
	// Subject, Audience and ID are the claims sub, aud and jti. Default of ID: a
	// random one.
	Subject  string
	Audience []string
	ID       string
	// Life is how long the token is valid; 0, or more than the key allows, means as
	// long as the key allows. It is rounded down to whole seconds.
	Life time.Duration
	// Claims are further ones. Registered claims that are set above or by the signer
	// (iss, sub, aud, exp, nbf, iat, jti) are refused.
	Claims map[string]any
}

// Token is a signed one.
type Token struct {
	// Compact is the token in the compact serialisation (RFC 7515, section 7.1).
	Compact secret.Value
	ID      string
	KeyID   string
	Version key.Version
	Issuer  string
	Issued  time.Time
	// Expires may be earlier than asked for, by at most nine tenths of the life, while
	// the store does not answer.
	Expires time.Time
}

// Sign signs a token with the version that the signer was told to use. It works from
// memory. It fails with ErrRequest; with ErrUnknown when there is no such signing
// key here; and with ErrNotReady when the key has no version yet, or the store has
// not answered for so long that no token may be signed: asking again later helps.
func (s *Signer) Sign(_ context.Context, request Request) (Token, error) {
	issuer, life, err := s.config.Board.profile(request.Key)
	if err != nil {
		return Token{}, err
	}
	if request.Type == 0 {
		request.Type = JWT
	}
	if request.Life < 0 || request.Life != 0 && request.Life < time.Second {
		return Token{}, fmt.Errorf("%w: a life of %v; tokens live a second or longer", ErrRequest, request.Life)
	}
	if request.Life != 0 {
		life = min(life, request.Life.Truncate(time.Second))
	}
	if request.ID == "" {
		request.ID = rand.Text()
	}
	for {
		s.mu.RLock()
		a, closed := s.active[request.Key], s.closed
		s.mu.RUnlock()
		if closed || a == nil {
			return Token{}, fmt.Errorf("%w: no version of %s is in use at this server node", ErrNotReady, request.Key)
		}
		signer := a.signers[request.Type]
		if signer == nil {
			return Token{}, fmt.Errorf("%w: type %d of a token is unknown", ErrRequest, request.Type)
		}
		now := s.config.Now()
		// Encoded before the token is counted: what cannot be signed does not count.
		full := now.Truncate(time.Second).Add(life)
		claims, err := encodeClaims(&request, issuer, now, full)
		if err != nil {
			return Token{}, err
		}
		expires, ok := a.reserve(now, life, max(life/leastLife, time.Second))
		if !ok {
			if s.isActive(a) {
				return Token{}, fmt.Errorf("%w: the store has not answered for too long; a token could not be counted", ErrNotReady)
			}
			continue // another version has taken its place
		}
		if !expires.Equal(full) {
			if claims, err = encodeClaims(&request, issuer, now, expires); err != nil {
				return Token{}, err
			}
		}
		signed, err := signer.Sign(claims)
		if err != nil {
			return Token{}, fmt.Errorf("sign with %s %s: %w", request.Key, a.version, err)
		}
		compact, err := signed.CompactSerialize()
		if err != nil {
			return Token{}, fmt.Errorf("encode a token: %w", err)
		}
		return Token{
			Compact: secret.NewString(compact), ID: request.ID, KeyID: a.keyID, Version: a.version, Issuer: issuer, Issued: now, Expires: expires,
		}, nil
	}
}

func (s *Signer) isActive(a *active) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.active[a.key] == a && !s.closed
}

// registered are the claims that requests set by fields, or not at all.
type registered struct {
	Issuer    string `json:"iss"`
	Subject   string `json:"sub,omitempty"`
	Audience  any    `json:"aud,omitempty"`
	Expires   int64  `json:"exp"`
	NotBefore int64  `json:"nbf"`
	Issued    int64  `json:"iat"`
	ID        string `json:"jti"`
}

func isRegistered(claim string) bool {
	switch strings.ToLower(claim) { // some readers do not tell cases apart
	case "iss", "sub", "aud", "exp", "nbf", "iat", "jti":
		return true
	}
	return false
}

// encodeClaims returns the payload of a token.
func encodeClaims(request *Request, issuer string, now, expires time.Time) ([]byte, error) {
	r := registered{
		Issuer: issuer, Subject: request.Subject, Expires: expires.Unix(), NotBefore: now.Add(-backdate).Unix(), Issued: now.Unix(), ID: request.ID,
	}
	switch len(request.Audience) {
	case 0:
	case 1:
		r.Audience = request.Audience[0]
	default:
		r.Audience = request.Audience
	}
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if len(request.Claims) > 0 {
		for claim := range request.Claims {
			if isRegistered(claim) {
				return nil, fmt.Errorf("%w: claim %q is set by the signer; use the fields of the request", ErrRequest, claim)
			}
		}
		more, err := json.Marshal(request.Claims)
		if err != nil {
			return nil, fmt.Errorf("%w: claims: %w", ErrRequest, err)
		}
		body = append(append(body[:len(body)-1], ','), more[1:]...)
	}
	if len(body) > MaxClaims {
		return nil, fmt.Errorf("%w: the claims have %d bytes, at most %d are allowed", ErrRequest, len(body), MaxClaims)
	}
	return body, nil
}
