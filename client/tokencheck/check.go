package tokencheck

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	strict "github.com/go-jose/go-jose/v4/json"

	"github.com/keyturn/keyturn/internal/dpop"
	"github.com/keyturn/keyturn/internal/webtoken"
)

const (
	// MaxToken is how large a token may be, in bytes.
	MaxToken = webtoken.MaxSize
	// maxLife is how long a token may live.
	maxLife = 32 * 24 * time.Hour
)

// Claims are those of a token that was verified.
type Claims struct {
	Issuer, Subject, ID string
	// Client is the claim client_id.
	Client           string
	Audience, Scopes []string
	Issued, Expires  time.Time
	// KeyID names the key that signed it.
	KeyID string
	// Thumbprint is that of the key (RFC 7638), Certificate the SHA-256 of the
	// certificate that the token is bound to, and was shown with; empty if it is not.
	Thumbprint, Certificate string
	// All are all claims, as they stand in the token.
	All map[string]json.RawMessage
}

// Has reports whether the token has a scope.
func (c *Claims) Has(scope string) bool { return slices.Contains(c.Scopes, scope) }

// Shown is a token and what came with it.
type Shown struct {
	Token string
	// DPoP: the scheme of the header Authorization was DPoP, not Bearer.
	DPoP bool
	// Proofs are the values of the header DPoP, for a request with Method to URL, as the
	// client writes it.
	Proofs      []string
	Method, URL string
	// Certificate is the client's, if the connection has one: TLS has proven its key.
	Certificate *x509.Certificate
	// Address is the IP address of whoever shows it, for reports; may be empty.
	Address string
}

func bad(why string) error { return fmt.Errorf("%w: %s", ErrRefused, why) }

// Request verifies the token of a request: that of its header Authorization. Behind
// something that ends TLS the certificate is not known here; use Check then.
func (c *Checker) Request(r *http.Request) (Claims, error) {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return Claims{}, bad("the request has no authorization, or several")
	}
	scheme, compact, _ := strings.Cut(values[0], " ")
	shown := Shown{Token: strings.TrimLeft(compact, " "), Proofs: r.Header.Values("DPoP"), Method: r.Method}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		shown.Address = host
	}
	switch strings.ToLower(scheme) {
	case "bearer":
	case "dpop":
		shown.DPoP = true
	default:
		return Claims{}, bad("the authorization is neither Bearer nor DPoP")
	}
	scheme = "http://"
	if r.TLS != nil {
		scheme = "https://"
		if len(r.TLS.PeerCertificates) > 0 {
			shown.Certificate = r.TLS.PeerCertificates[0]
		}
	}
	shown.URL = scheme + r.Host + r.URL.EscapedPath()
	// Behind a proxy the scheme is another: the origins say which one clients write.
	if !c.own(shown.URL) && r.TLS == nil && c.own("https://"+r.Host+r.URL.EscapedPath()) {
		shown.URL = "https://" + r.Host + r.URL.EscapedPath()
	}
	return c.Check(r.Context(), &shown)
}

// own reports whether a URL begins with an origin of this service.
func (c *Checker) own(url string) bool {
	return slices.ContainsFunc(c.config.Origins, func(origin string) bool {
		rest, ok := cutFold(url, origin)
		return ok && (rest == "" || rest[0] == '/')
	})
}

func cutFold(text, prefix string) (rest string, found bool) {
	if len(text) < len(prefix) || !strings.EqualFold(text[:len(prefix)], prefix) {
		return "", false
	}
	return text[len(prefix):], true
}

// Check verifies a token. It fails with ErrRefused, ErrUnsure, or ErrNonce, and waits
// no longer than ctx.
func (c *Checker) Check(ctx context.Context, shown *Shown) (Claims, error) {
	claims, err := c.read(ctx, shown.Token)
	if err == nil {
		err = c.possession(&claims, shown)
	}
	if err != nil {
		c.refused(&claims, shown, err)
		return Claims{}, err
	}
	return claims, nil
}

// read verifies the token itself.
func (c *Checker) read(ctx context.Context, compact string) (Claims, error) {
	token, err := webtoken.Parse(compact)
	if err != nil {
		return Claims{}, bad(err.Error())
	}
	header := token.Header()
	if !token.Is("at+jwt") {
		return Claims{}, bad("its type is not at+jwt")
	}
	for _, name := range []jose.HeaderKey{"crit", "b64", "cty", "jku", "x5u"} {
		if _, there := header.ExtraHeaders[name]; there {
			return Claims{}, bad("its header says more than it may")
		}
	}
	if header.JSONWebKey != nil || header.KeyID == "" || len(header.KeyID) > 256 {
		return Claims{}, bad("its header has a key of its own, or no kid")
	}
	k, err := c.find(ctx, header.KeyID)
	if err != nil {
		return Claims{}, err
	}
	payload, err := token.Verify(k)
	if err != nil {
		return Claims{}, bad(err.Error())
	}
	return c.claims(payload, header.KeyID)
}

// claims reads what was signed, and compares it with what is expected.
func (c *Checker) claims(payload []byte, kid string) (Claims, error) {
	said, err := webtoken.Read(payload)
	if err != nil {
		return Claims{}, bad(err.Error())
	}
	var more struct {
		Client string         `json:"client_id"`
		Scope  string         `json:"scope"`
		Bound  map[string]any `json:"cnf"`
	}
	if strict.Unmarshal(payload, &more) != nil {
		return Claims{}, bad("its claims are not those of an access token")
	}
	switch {
	case said.Issuer != c.config.Issuer:
		return Claims{}, bad("another issuer made it")
	case !slices.Contains(said.Audience, c.config.Audience):
		return Claims{}, bad("it is for another audience")
	}
	if err := said.At(c.config.Now(), c.config.Skew); err != nil {
		return Claims{}, bad(err.Error())
	}
	if life := said.Expires.Sub(said.Issued); life < 0 || life > maxLife {
		return Claims{}, bad("it lives longer than any token")
	}
	claims := Claims{
		Issuer: said.Issuer, Subject: said.Subject, ID: said.ID, Client: more.Client, Audience: said.Audience,
		Scopes: strings.Fields(more.Scope), Issued: said.Issued, Expires: said.Expires, KeyID: kid, All: said.All,
	}
	for name, value := range more.Bound {
		text, _ := value.(string)
		switch {
		case name == "jkt" && text != "":
			claims.Thumbprint = text
		case name == "x5t#S256" && text != "":
			claims.Certificate = text
		default:
			return Claims{}, bad("it is bound to what is not known here")
		}
	}
	if _, there := said.All["cnf"]; there && len(more.Bound) == 0 {
		return Claims{}, bad("it is bound to what is not known here")
	}
	return claims, nil
}

// possession compares what a token is bound to with what came with it.
func (c *Checker) possession(claims *Claims, shown *Shown) error {
	if claims.Certificate != "" {
		if shown.Certificate == nil {
			return bad("it is bound to a certificate, and there is none")
		}
		sum := sha256.Sum256(shown.Certificate.Raw)
		if subtle.ConstantTimeCompare([]byte(base64.RawURLEncoding.EncodeToString(sum[:])), []byte(claims.Certificate)) != 1 {
			return bad("it is bound to another certificate")
		}
	}
	switch {
	case claims.Thumbprint == "" && shown.DPoP:
		return bad("it was shown as bound to a key, and is not")
	case claims.Thumbprint == "" && claims.Certificate == "" && c.config.Bound:
		return bad("it is bound to nothing")
	case claims.Thumbprint == "":
		return nil
	case !shown.DPoP || len(shown.Proofs) != 1:
		// Who has stolen it shows it as if it were not bound.
		return bad("it is bound to a key, and was not shown with one proof of it")
	case !c.own(shown.URL):
		return bad("it needs a proof, and the request is for an origin that is not ours")
	}
	now := c.config.Now()
	expect := &dpop.Expect{Method: shown.Method, URL: shown.URL, Token: shown.Token, Now: now}
	if c.config.Nonces {
		expect.Nonce = func(nonce string) bool { return c.nonces.good(nonce, now) }
	}
	proof, err := dpop.Check(shown.Proofs[0], expect)
	switch {
	case err != nil && !errors.Is(err, dpop.ErrNonce):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	case subtle.ConstantTimeCompare([]byte(proof.Thumbprint), []byte(claims.Thumbprint)) != 1:
		return bad("the proof is by another key than the token is bound to")
	case err != nil:
		return ErrNonce
	}
	if err := c.proofs.Add(&proof, now); errors.Is(err, dpop.ErrFull) {
		return fmt.Errorf("%w: %w", ErrUnsure, err)
	} else if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return nil
}
