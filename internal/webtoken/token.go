package webtoken

import (
	"errors"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// MaxSize is how large a token may be, in bytes.
const MaxSize = 16 << 10

// Algorithms are those of key pairs; none and those of shared secrets are not among them.
func Algorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{
		jose.EdDSA, jose.ES256, jose.ES384, jose.ES512, jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	}
}

// Key is a public key that is trusted, and the one algorithm that it is for.
type Key struct {
	Public    any
	Algorithm jose.SignatureAlgorithm
}

// Token is one that was parsed. Nothing in it is proven before Verify.
type Token struct{ signed *jose.JSONWebSignature }

// Parse reads a token that is signed by one of Algorithms.
func Parse(compact string) (Token, error) {
	if len(compact) > MaxSize || strings.Count(compact, ".") != 2 {
		return Token{}, errors.New("it is no JWS in the compact serialisation, or is too long")
	}
	signed, err := jose.ParseSignedCompact(compact, Algorithms())
	if err != nil {
		return Token{}, errors.New("it cannot be read, or its algorithm is not allowed")
	}
	return Token{signed}, nil
}

// Header is that of the token.
func (t Token) Header() jose.Header { return t.signed.Signatures[0].Protected }

// Is reports whether the header says that the token is of a type. Neither case nor
// "application/" matter (RFC 7515, section 4.1.9).
func (t Token) Is(typ string) bool {
	said, _ := t.Header().ExtraHeaders[jose.HeaderType].(string)
	return strings.TrimPrefix(strings.ToLower(said), "application/") == strings.ToLower(typ)
}

// Unproven returns the payload, whoever has written it.
func (t Token) Unproven() []byte { return t.signed.UnsafePayloadWithoutVerification() }

// Verify returns the payload if the key has signed it. The key decides on the
// algorithm, not the token.
func (t Token) Verify(k Key) ([]byte, error) {
	if t.Header().Algorithm != string(k.Algorithm) {
		return nil, fmt.Errorf("its algorithm is not %s, that of the key", k.Algorithm)
	}
	payload, err := t.signed.Verify(k.Public)
	if err != nil {
		return nil, errors.New("its signature does not match")
	}
	return payload, nil
}
