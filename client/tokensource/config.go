package tokensource

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/secret"
)

var (
	// ErrConfig is wrapped by every error about a Config.
	ErrConfig = errors.New("invalid configuration of a token source")
	// ErrNoToken: there is no valid token; wrapped errors say why.
	ErrNoToken = errors.New("no valid access token")
	// ErrClosed: the source was closed.
	ErrClosed = errors.New("the token source is closed")
)

// What a subject token may be (RFC 8693, section 3).
const (
	TypeJWT    = "urn:ietf:params:oauth:token-type:jwt"
	TypeID     = "urn:ietf:params:oauth:token-type:id_token"
	TypeAPIKey = "urn:keyturn:params:oauth:token-type:api-key" //nolint:gosec // a name of a type
)

// Config says which tokens, from whom, and by what. Issuer is required, and by what
// the process proves who it is: Subject, Secret or Certificate.
type Config struct {
	// Issuer is that of the signing key, letter by letter, for example
	// https://keys.example.com/orders. http:// is accepted for loopback addresses only.
	Issuer string
	// Addresses are the base URLs of the servers to ask, separated by commas; the next
	// is asked when one does not answer. https:// may be left out. Empty: the host of
	// the issuer.
	Addresses string
	// Audiences and Scopes are what is asked for; a rule that has one each gives it
	// without being asked.
	Audiences, Scopes []string

	// Subject supplies the token of the process's own platform, to be exchanged (RFC
	// 8693): client.TokenFile for one in a file, Func for any other. It is asked anew
	// for each request, so that a replaced token counts.
	Subject client.TokenSource
	// SubjectType is what Subject supplies; TypeJWT if empty.
	SubjectType string
	// Secret supplies an API key or a token of Keyturn (client credentials).
	Secret client.TokenSource
	// Certificate supplies the client certificate for connections to the broker. Alone
	// it is what the client proves by; beside Subject or Secret tokens are bound to it
	// where the rule says so.
	Certificate func() (*tls.Certificate, error)
	// DPoP binds tokens to a key of this process (RFC 9449). Resources then need a
	// proof with each request; Transport makes it.
	DPoP bool

	// RootCAs are the authorities of the broker's certificate, CACertFile a PEM file of
	// them, read once. Neither: the system's.
	RootCAs    *x509.CertPool
	CACertFile string
	// HTTPClient replaces the built-in client; RootCAs, CACertFile and Certificate are
	// then its own business. No redirect is followed.
	HTTPClient *http.Client
	// RequestTimeout bounds each request; 10 s when zero.
	RequestTimeout time.Duration
	// MaxWait is how long a caller without a deadline waits for a token; 30 s when zero.
	MaxWait time.Duration
	// BackoffMin and BackoffMax bound the pause after a failure; 500 ms and 30 s when zero.
	BackoffMin, BackoffMax time.Duration
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// Logger takes what is worth telling an operator. Nil discards.
	Logger *slog.Logger
}

// Func is a function as a source of subject tokens or secrets.
type Func func(ctx context.Context) (secret.Value, error)

// Token implements client.TokenSource.
func (f Func) Token(ctx context.Context) (secret.Value, error) { return f(ctx) }

// tokenPath is where an issuer's tokens are asked for, below it.
const tokenPath = "/oauth/token" //nolint:gosec // a path

const (
	maxAddresses = 16
	maxAsked     = 64
)

// Check tells what is wrong with c, as Open would. Files are not read.
func (c Config) Check() error {
	_, err := c.complete()
	return err
}

// complete fills in what is missing, and returns where tokens are asked for.
func (c *Config) complete() ([]string, error) {
	issuer, err := baseURL("Issuer", c.Issuer)
	if err != nil {
		return nil, err
	}
	endpoints := []string{c.Issuer + tokenPath}
	if c.Addresses != "" {
		endpoints = nil
		for address := range strings.SplitSeq(c.Addresses, ",") {
			address = strings.TrimRight(strings.TrimSpace(address), "/")
			if !strings.Contains(address, "://") {
				address = "https://" + address // as package client takes it
			}
			u, err := baseURL("Addresses", address)
			if err != nil {
				return nil, err
			}
			endpoints = append(endpoints, u.String()+issuer.EscapedPath()+tokenPath)
		}
	}
	if len(endpoints) > maxAddresses {
		return nil, fmt.Errorf("%w: Addresses names %d servers, at most %d are allowed", ErrConfig, len(endpoints), maxAddresses)
	}
	switch {
	case c.Subject != nil && c.Secret != nil:
		return nil, fmt.Errorf("%w: Subject and Secret are both given; keep one", ErrConfig)
	case c.Subject == nil && c.Secret == nil && c.Certificate == nil:
		return nil, fmt.Errorf("%w: nothing says who asks; give Subject, for example client.TokenFile, or Secret or Certificate", ErrConfig)
	case c.Certificate != nil && c.HTTPClient != nil:
		return nil, fmt.Errorf("%w: Certificate and HTTPClient are both given; let HTTPClient show the certificate", ErrConfig)
	case len(c.Audiences) > maxAsked || len(c.Scopes) > maxAsked:
		return nil, fmt.Errorf("%w: at most %d audiences and scopes may be asked for", ErrConfig, maxAsked)
	}
	for _, one := range append(append([]string{}, c.Audiences...), c.Scopes...) {
		if one == "" || strings.ContainsAny(one, " \t\r\n") {
			return nil, fmt.Errorf("%w: %q is no audience or scope", ErrConfig, one)
		}
	}
	if c.SubjectType == "" {
		c.SubjectType = TypeJWT
	}
	for _, d := range []struct {
		name     string
		value    *time.Duration
		fallback time.Duration
	}{
		{"RequestTimeout", &c.RequestTimeout, 10 * time.Second},
		{"MaxWait", &c.MaxWait, 30 * time.Second},
		{"BackoffMin", &c.BackoffMin, 500 * time.Millisecond},
		{"BackoffMax", &c.BackoffMax, 30 * time.Second},
	} {
		if *d.value < 0 || *d.value > time.Hour {
			return nil, fmt.Errorf("%w: %s is %v; it must lie between 0 and 1h", ErrConfig, d.name, *d.value)
		}
		if *d.value == 0 {
			*d.value = d.fallback
		}
	}
	if c.BackoffMin > c.BackoffMax {
		return nil, fmt.Errorf("%w: BackoffMin %v is greater than BackoffMax %v", ErrConfig, c.BackoffMin, c.BackoffMax)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return endpoints, nil
}

// baseURL reads a URL without a query.
func baseURL(field, text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http":
		return nil, fmt.Errorf("%w: %s is no https:// URL", ErrConfig, field)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(u.Path, "/"):
		return nil, fmt.Errorf("%w: %s must have no user, query, fragment or slash at its end", ErrConfig, field)
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		return nil, fmt.Errorf("%w: %s would send secrets in the clear; use https://", ErrConfig, field)
	}
	return u, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// newHTTPClient returns what requests are made with.
func (c *Config) newHTTPClient() (*http.Client, error) {
	noRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if c.HTTPClient != nil {
		own := *c.HTTPClient
		own.CheckRedirect = noRedirect
		return &own, nil
	}
	settings := &tls.Config{RootCAs: c.RootCAs, MinVersion: tls.VersionTLS12}
	if c.CACertFile != "" && c.RootCAs == nil {
		pem, err := os.ReadFile(c.CACertFile)
		if err != nil {
			return nil, fmt.Errorf("%w: CACertFile: %w", ErrConfig, err)
		}
		settings.RootCAs = x509.NewCertPool()
		if !settings.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%w: CACertFile %s holds no PEM certificate", ErrConfig, c.CACertFile)
		}
	}
	if c.Certificate != nil {
		supply := c.Certificate
		settings.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return supply() }
	}
	return &http.Client{CheckRedirect: noRedirect, Transport: &http.Transport{
		DialContext:     (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig: settings, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second,
		// A certificate that was replaced counts for the next connection.
		IdleConnTimeout: time.Minute, Proxy: http.ProxyFromEnvironment,
	}}, nil
}
