package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/secret"
)

// The environment variables that say how to reach the server.
const (
	envAddress   = "KEYTURN_ADDR"
	envToken     = "KEYTURN_TOKEN"
	envTokenFile = "KEYTURN_TOKEN_FILE" //nolint:gosec // the name of a variable
	envCACert    = "KEYTURN_CACERT"
)

// maxAnswer bounds one answer of the server, in bytes.
const maxAnswer = 64 << 20

// maxToken bounds what is read as a token, in bytes.
const maxToken = 16 << 10

// connection is how to reach the server, and where each part comes from.
type connection struct {
	address, addressFrom string
	caCert, caCertFrom   string
	token                client.TokenSource
	tokenFrom            string
	err                  error
}

// connection finds out how to reach the server: flags come before environment
// variables, these before what login stored. What login stored belongs to one
// server and is used for no other.
func (a *app) connection() connection {
	stored, err := a.readLogin()
	c := connection{err: err, tokenFrom: "missing"}
	switch {
	case a.flags.address != "":
		c.address, c.addressFrom = a.flags.address, "--address"
	case a.env[envAddress] != "":
		c.address, c.addressFrom = a.env[envAddress], envAddress
	default:
		c.address, c.addressFrom = stored.Address, "keyturn login"
	}
	if c.address != "" && c.err == nil {
		c.address, c.err = parseAddresses(c.address, c.addressFrom)
	}
	if c.address != stored.Address {
		stored = login{}
	}
	switch {
	case a.flags.caCert != "":
		c.caCert, c.caCertFrom = a.flags.caCert, "--ca-cert"
	case a.env[envCACert] != "":
		c.caCert, c.caCertFrom = a.env[envCACert], envCACert
	default:
		c.caCert, c.caCertFrom = stored.CACert, "keyturn login"
	}
	switch {
	case a.flags.tokenFile != "":
		c.token, c.tokenFrom = client.TokenFile(a.flags.tokenFile), "from --token-file"
	case a.env[envToken] != "":
		c.token, c.tokenFrom = client.StaticToken(secret.NewString(a.env[envToken])), "from "+envToken
	case a.env[envTokenFile] != "":
		c.token, c.tokenFrom = client.TokenFile(a.env[envTokenFile]), "from "+envTokenFile
	case stored.Token != "":
		c.token, c.tokenFrom = client.StaticToken(secret.NewString(stored.Token)), "from keyturn login"
	}
	return c
}

// check reports what is missing.
func (c connection) check() error {
	switch {
	case c.err != nil:
		return c.err
	case c.address == "":
		return usage("set "+envAddress+", or run keyturn login ADDRESS; keyturn dev starts a server to try things out", "no server is named")
	case c.token == nil:
		return fail(ExitDenied, "set "+envToken+" or "+envTokenFile+", or run keyturn login "+c.address, "there is no token for %s", c.address)
	}
	return nil
}

// parseAddress returns the base URL that an address stands for.
func parseAddress(address, from string) (string, error) {
	wrong := func(format string, args ...any) (string, error) {
		return "", usage("write for example https://keyturn.example:7447", from+": "+format, args...)
	}
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	switch {
	case err != nil && !strings.Contains(address, "@"):
		return wrong("%q is no address", address)
	case err != nil || u.User != nil: // a password may be in it
		return wrong("it contains a user name; credentials belong into the token")
	case u.Hostname() == "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return wrong("%q is no address of a server", address)
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return wrong("%q would send the token in the clear", address)
	case u.Scheme != "https" && u.Scheme != "http":
		return wrong("%q has the scheme %q", address, u.Scheme)
	}
	return strings.TrimRight(u.String(), "/"), nil
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// control returns a client of the control API.
func (a *app) control() (keyturnv1connect.ControlServiceClient, error) {
	return a.controlOf(a.connection())
}

func (a *app) controlOf(c connection) (keyturnv1connect.ControlServiceClient, error) {
	way, base, err := a.caller(c)
	if err != nil {
		return nil, err
	}
	return keyturnv1connect.NewControlServiceClient(way, base, connect.WithReadMaxBytes(maxAnswer), connect.WithInterceptors(deadline(a.flags.timeout))), nil
}

// caller returns the way to the server, and its base URL.
func (a *app) caller(c connection) (way *caller, base string, err error) {
	if err := c.check(); err != nil {
		return nil, "", err
	}
	var roots *x509.CertPool
	if c.caCert != "" {
		pem, err := os.ReadFile(c.caCert)
		if err != nil {
			return nil, "", usage("name the PEM file of the server's authority", "%s: %w", c.caCertFrom, err)
		}
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, "", usage("name the PEM file of the server's authority", "%s: %s holds no PEM certificate", c.caCertFrom, c.caCert)
		}
	}
	patience := 10 * time.Second
	if strings.Contains(c.address, ",") {
		patience = 3 * time.Second // there is another one to go to
	}
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: patience}).DialContext,
		TLSClientConfig:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   patience,
		ForceAttemptHTTP2:     true,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
		IdleConnTimeout:       time.Minute,
		ResponseHeaderTimeout: 0, // calls have a deadline, streams must not
	}
	list, err := newServers(c.address, transport)
	if err != nil {
		return nil, "", usage("write for example https://keyturn.example:7447", "%s: %w", c.addressFrom, err)
	}
	return &caller{token: c.token, http: list}, list.first.String(), nil
}

// caller sends requests with the bearer token. It follows no redirect, which
// would carry the token to another host.
type caller struct {
	token client.TokenSource
	http  http.RoundTripper
}

// Do implements connect.HTTPClient.
func (c *caller) Do(request *http.Request) (*http.Response, error) {
	token, err := c.token.Token(request.Context())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	request.Header.Set("Authorization", "Bearer "+token.RevealString())
	return c.http.RoundTrip(request)
}

// deadline bounds every call that is no stream.
type deadline time.Duration

// WrapUnary implements connect.Interceptor.
func (d deadline) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, time.Duration(d))
		defer cancel()
		return next(ctx, request)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (d deadline) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (d deadline) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// readToken reads a token from standard input.
func readToken(r io.Reader) (string, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxToken+1))
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	raw = bytes.TrimSpace(raw)
	switch {
	case len(raw) == 0:
		return "", usage("pipe it in: keyturn login ADDRESS < FILE", "the token is empty")
	case len(raw) > maxToken || bytes.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", usage("pipe in the token alone", "what was read is no token")
	}
	return string(raw), nil
}
