package tokencheck

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/webtoken"
)

var (
	// ErrRefused: the token, or the proof that it needs, is not valid. The message says
	// why, for a log; whoever showed it is told no more than that.
	ErrRefused = errors.New("the access token is not valid")
	// ErrNonce: the token is good, and its proof needs the nonce of Checker.Nonce.
	ErrNonce = errors.New("the proof of possession needs a nonce")
	// ErrUnsure: what is known here is too old to tell. It is no refusal.
	ErrUnsure = errors.New("access tokens cannot be verified now")
	// ErrConfig is wrapped by every error about a Config.
	ErrConfig = errors.New("invalid configuration of a token verifier")
)

// Config says which tokens count. Issuer and Audience are required.
type Config struct {
	// Issuer is that of the signing key, letter by letter.
	Issuer string
	// Audience is who this service is: a token must be for it.
	Audience string
	// Reader is the name of this verifier in the document of the signing key: a rotation
	// then waits for its fetches and no longer. Empty: the set for everybody.
	Reader string
	// KeySet is where the set of keys is, if not below Issuer.
	KeySet string
	// Origins are where clients reach this service, "https://orders.example.com", as they
	// write it. Without them a token that is bound by DPoP is refused: a proof for others
	// could not be told from one for this service by what the request says of itself.
	Origins []string
	// Bound refuses tokens that are bound to no key of the client.
	Bound bool
	// Nonces demands a nonce of this process in each proof. Then a proof is worth
	// nothing after a restart or at another process; behind a balancer that sends each
	// request elsewhere clients need an attempt more.
	Nonces bool
	// Algorithms are those that keys of the set may have; all asymmetric ones of JOSE if
	// empty. Symmetric ones are refused here.
	Algorithms []string
	// Skew is how far clocks may be apart: 10 s when zero, a minute at most.
	Skew time.Duration
	// MaxAge is for how long a set counts without news of the server: 10 minutes when
	// zero, or as long as the server lets caches keep it if that is longer; a day at most.
	// A key that was withdrawn is trusted for so long by a verifier that is cut off.
	MaxAge time.Duration
	// MaxProofs is how many proofs are remembered in two minutes, 100,000 when zero;
	// more are answered with ErrUnsure. Each takes about 60 bytes.
	MaxProofs int
	// Report supplies a token of Keyturn, of role verifier and for the signing key, by
	// which whom this service refuses is reported to the server, whose rules judge it: by
	// client, address and count, and whether a proof was shown again. Nil: nobody is told.
	Report client.TokenSource
	// ReportURL is where, if not below Issuer; ReportEvery how often: 5 s when zero.
	ReportURL   string
	ReportEvery time.Duration
	// RootCAs are the authorities of the server's certificate, CACertFile a PEM file of
	// them, read once. Neither: the system's.
	RootCAs    *x509.CertPool
	CACertFile string
	// HTTPClient replaces the built-in client. No redirect is followed.
	HTTPClient *http.Client
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// Logger takes what is worth telling an operator. Nil discards.
	Logger *slog.Logger
}

const (
	defaultSkew   = 10 * time.Second
	defaultMaxAge = 10 * time.Minute
	mostMaxAge    = 24 * time.Hour
	defaultProofs = 100_000
	defaultReport = 5 * time.Second
)

// complete fills in what is missing.
func (c *Config) complete() error {
	if err := checkURL("Issuer", c.Issuer); err != nil {
		return err
	}
	switch {
	case c.Audience == "":
		return fmt.Errorf("%w: Audience is missing; without it tokens for other services would count", ErrConfig)
	case c.Reader != "" && c.KeySet != "":
		return fmt.Errorf("%w: Reader and KeySet are both given; keep one", ErrConfig)
	case strings.Trim(c.Reader, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
		return fmt.Errorf("%w: Reader %q is no name of a verifier", ErrConfig, c.Reader)
	case c.Skew < 0 || c.Skew > time.Minute:
		return fmt.Errorf("%w: Skew %v is not between 0 and 1m", ErrConfig, c.Skew)
	case c.MaxAge < 0 || c.MaxAge > mostMaxAge:
		return fmt.Errorf("%w: MaxAge %v is not between 0 and %v", ErrConfig, c.MaxAge, mostMaxAge)
	case c.ReportEvery < 0:
		return fmt.Errorf("%w: ReportEvery is negative", ErrConfig)
	case c.MaxProofs < 0:
		return fmt.Errorf("%w: MaxProofs is negative", ErrConfig)
	}
	switch {
	case c.Reader != "":
		c.KeySet = c.Issuer + "/.well-known/jwks/" + c.Reader + ".json"
	case c.KeySet == "":
		c.KeySet = c.Issuer + "/.well-known/jwks.json"
	}
	if err := checkURL("KeySet", c.KeySet); err != nil {
		return err
	}
	if c.ReportURL == "" {
		c.ReportURL = c.Issuer + reportPath
	}
	if err := checkURL("ReportURL", c.ReportURL); err != nil {
		return err
	}
	for _, origin := range c.Origins {
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.Path != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return fmt.Errorf("%w: Origins: %q is no scheme and host; write for example https://orders.example.com", ErrConfig, origin)
		}
	}
	for _, name := range c.Algorithms {
		if !slices.Contains(webtoken.Algorithms(), jose.SignatureAlgorithm(name)) {
			return fmt.Errorf("%w: Algorithms: %q is none of %v", ErrConfig, name, webtoken.Algorithms())
		}
	}
	if len(c.Algorithms) == 0 {
		for _, a := range webtoken.Algorithms() {
			c.Algorithms = append(c.Algorithms, string(a))
		}
	}
	if c.Skew == 0 {
		c.Skew = defaultSkew
	}
	if c.MaxAge == 0 {
		c.MaxAge = defaultMaxAge
	}
	if c.MaxProofs == 0 {
		c.MaxProofs = defaultProofs
	}
	if c.ReportEvery == 0 {
		c.ReportEvery = defaultReport
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// checkURL refuses what could be changed on the way.
func checkURL(field, text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(u.Path, "/") {
		return fmt.Errorf("%w: %s is no https:// URL without a user, query, fragment or slash at its end", ErrConfig, field)
	}
	ip := net.ParseIP(u.Hostname())
	if local := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback(); u.Scheme != "https" && !(u.Scheme == "http" && local) {
		return fmt.Errorf("%w: %s must begin with https://", ErrConfig, field)
	}
	return nil
}

func (c *Config) newHTTPClient() (*http.Client, error) {
	noRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if c.HTTPClient != nil {
		own := *c.HTTPClient
		own.CheckRedirect = noRedirect
		return &own, nil
	}
	roots := c.RootCAs
	if c.CACertFile != "" && roots == nil {
		pem, err := os.ReadFile(c.CACertFile)
		if err != nil {
			return nil, fmt.Errorf("%w: CACertFile: %w", ErrConfig, err)
		}
		if roots = x509.NewCertPool(); !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%w: CACertFile %s holds no PEM certificate", ErrConfig, c.CACertFile)
		}
	}
	return &http.Client{CheckRedirect: noRedirect, Transport: &http.Transport{
		DialContext:     (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 2 * time.Minute, Proxy: http.ProxyFromEnvironment,
	}}, nil
}
