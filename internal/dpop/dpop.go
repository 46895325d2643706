// Package dpop checks proofs of possession (RFC 9449): signed texts by which a
// client shows, for one request, that it has the key its token is bound to. The
// server and the SDK's verifier check by this one package.
//
// Guarantees: only public keys and signatures of EdDSA, ES256, ES384, PS256 and
// RS256 are accepted; the key must be in the proof's own header, and no other header
// names a key. A proof counts for one method and URL, for Window around now, and with
// Seen once. Input is bounded. There is no clock, IO or randomness here.
package dpop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	strict "github.com/go-jose/go-jose/v4/json"
)

// ErrProof: a proof is not valid; the message says why, for a log.
var ErrProof = errors.New("the proof of possession is not valid")

// ErrReplayed: the proof was shown before. It comes with ErrProof.
var ErrReplayed = errors.New("it was shown before")

// ErrNonce: the proof lacks a nonce of the server, or has an old one.
var ErrNonce = errors.New("the proof of possession needs a nonce of this server")

const (
	// MaxProof is how large a proof may be, in bytes.
	MaxProof = 4 << 10
	// Window is how far iat may be from now, either way.
	Window = time.Minute
	// maxID is how long jti may be, in bytes.
	maxID = 256
	// minRSA is the least size of an RSA key, in bits.
	minRSA, maxRSA = 2048, 4096
)

// Algorithms are those of proofs, as metadata names them.
func Algorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256, jose.ES384, jose.PS256, jose.RS256}
}

// Expect says what a proof must be for.
type Expect struct {
	// Method and URL are those of the request; query and fragment do not count.
	Method, URL string
	// Token is the access token that goes with it; empty when one is asked for.
	Token string
	Now   time.Time
	// Nonce reports whether one was given out lately; nil: none is needed.
	Nonce func(nonce string) bool
}

// Proof is one that was checked. Whether it was shown before Seen knows.
type Proof struct {
	// Thumbprint is that of the client's key (RFC 7638), as in cnf.jkt.
	Thumbprint string
	ID         string
	// Until is when the proof counts no more.
	Until time.Time
}

type claims struct {
	ID     string   `json:"jti"`
	Method string   `json:"htm"`
	URL    string   `json:"htu"`
	Issued *float64 `json:"iat"`
	Nonce  string   `json:"nonce"`
	Hash   string   `json:"ath"`
}

func bad(why string) error { return errors.Join(ErrProof, errors.New(why)) }

// Check checks a proof. It fails with ErrProof, or with ErrNonce when a good proof
// needs a nonce.
func Check(compact string, expect *Expect) (Proof, error) {
	if len(compact) > MaxProof || strings.Count(compact, ".") != 2 {
		return Proof{}, bad("it is no JWS in the compact serialisation, or is too long")
	}
	parsed, err := jose.ParseSignedCompact(compact, Algorithms())
	if err != nil {
		return Proof{}, bad("it cannot be read, or its algorithm is not allowed")
	}
	header := parsed.Signatures[0].Protected
	if typ, _ := header.ExtraHeaders[jose.HeaderType].(string); typ != "dpop+jwt" {
		return Proof{}, bad("its type is not dpop+jwt")
	}
	k := header.JSONWebKey
	if k == nil || !k.IsPublic() || !k.Valid() || !fits(k.Key, header.Algorithm) {
		return Proof{}, bad("its header has no public key for its algorithm")
	}
	payload, err := parsed.Verify(k)
	if err != nil {
		return Proof{}, bad("its signature does not match")
	}
	sum, err := k.Thumbprint(crypto.SHA256)
	if err != nil {
		return Proof{}, bad("its key has no thumbprint")
	}
	proof := Proof{Thumbprint: base64.RawURLEncoding.EncodeToString(sum)}
	err = proof.read(payload, expect)
	return proof, err
}

// fits reports whether a key is one for an algorithm.
func fits(k any, algorithm string) bool {
	switch k := k.(type) {
	case ed25519.PublicKey:
		return algorithm == string(jose.EdDSA)
	case *ecdsa.PublicKey:
		return algorithm == string(jose.ES256) && k.Curve.Params().BitSize == 256 || algorithm == string(jose.ES384) && k.Curve.Params().BitSize == 384
	case *rsa.PublicKey:
		return (algorithm == string(jose.PS256) || algorithm == string(jose.RS256)) && k.N.BitLen() >= minRSA && k.N.BitLen() <= maxRSA
	}
	return false
}

func (p *Proof) read(payload []byte, expect *Expect) error {
	// Names of claims that are there twice, or differ by case, are refused.
	var raw map[string]strict.RawMessage
	var c claims
	if strict.Unmarshal(payload, &raw) != nil || raw == nil || json.Unmarshal(only(raw), &c) != nil {
		return bad("its claims cannot be read")
	}
	switch {
	case c.ID == "" || len(c.ID) > maxID:
		return bad("it has no jti, or one that is too long")
	case c.Method != expect.Method:
		return bad("it is for another method")
	case !sameURL(c.URL, expect.URL):
		return bad("it is for another URL")
	case c.Issued == nil || *c.Issued < 0 || *c.Issued > 1<<40:
		return bad("it does not say when it was made")
	}
	issued := time.Unix(int64(*c.Issued), 0)
	if expect.Now.Sub(issued) > Window || issued.Sub(expect.Now) > Window {
		return bad("it was not made now")
	}
	if expect.Token != "" && subtle.ConstantTimeCompare([]byte(c.Hash), []byte(HashOf(expect.Token))) != 1 {
		return bad("it is for another token")
	}
	if expect.Nonce != nil && !expect.Nonce(c.Nonce) {
		return ErrNonce
	}
	p.ID, p.Until = c.ID, issued.Add(Window+time.Second)
	return nil
}

// only returns the claims of a proof, by their exact names.
func only(raw map[string]strict.RawMessage) []byte {
	kept := map[string]json.RawMessage{}
	for _, name := range []string{"jti", "htm", "htu", "iat", "nonce", "ath"} {
		if v, ok := raw[name]; ok {
			kept[name] = json.RawMessage(v)
		}
	}
	body, err := json.Marshal(kept)
	if err != nil {
		return nil
	}
	return body
}

// HashOf is the claim ath for a token.
func HashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// sameURL compares without query and fragment, after normalisation of scheme, host
// and port (RFC 9449, section 4.3).
func sameURL(a, b string) bool {
	x, y := normal(a), normal(b)
	return x != "" && x == y
}

func normal(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || len(text) > MaxProof {
		return ""
	}
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch scheme {
	case "https":
		host = strings.TrimSuffix(host, ":443")
	case "http":
		host = strings.TrimSuffix(host, ":80")
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	return scheme + "://" + host + path
}
