package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// ErrProxy: the proxy does not make the connection.
var ErrProxy = errors.New("the proxy does not connect")

// Proxy is an HTTP proxy that makes connections by CONNECT (RFC 9110, section 9.3.6).
type Proxy struct {
	// URL is http or https, with a host, and a port unless it is the scheme's.
	URL *url.URL
	// Names are hosts that it is asked for by name; their addresses are not judged here.
	// "*.acme.example" is every host below acme.example.
	Names []string
	// Authorization returns the header Proxy-Authorization. May be nil.
	Authorization func() (string, error)
	// Roots are the authorities of its certificate; nil: the system's.
	Roots *x509.CertPool
}

// maxProxyAnswer bounds what a proxy answers before the connection is made, in bytes.
const maxProxyAnswer = 16 << 10

// named reports whether a proxy is asked for a host by its name.
func (p *Proxy) named(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	for _, name := range p.Names {
		name = strings.ToLower(name)
		below, wild := strings.CutPrefix(name, "*.")
		if host == name || wild && strings.HasSuffix(host, "."+below) {
			return true
		}
	}
	return false
}

// dialFunc connects directly, to what may be called.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// through connects to an address by the proxy: to one of the addresses of its host that
// may be called, or to its name where that is allowed. Those of allowed networks are
// called directly.
func (g Guard) through(ctx context.Context, network, address string, direct dialFunc, timeout time.Duration) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("%w: %q", ErrForbidden, address)
	}
	if _, err := netip.ParseAddr(host); err != nil && g.Proxy.named(host) {
		return g.Proxy.connect(ctx, address, timeout)
	}
	list, err := g.addresses(ctx, host)
	if err != nil {
		return nil, err
	}
	failure := fmt.Errorf("%w: %s has no address", ErrForbidden, host)
	for _, ip := range list {
		if failure = g.Check(ip); failure != nil {
			continue
		}
		ip = ip.WithZone("").Unmap()
		to := net.JoinHostPort(ip.String(), port)
		if g.allowed(ip) {
			return direct(ctx, network, to)
		}
		return g.Proxy.connect(ctx, to, timeout)
	}
	return nil, failure
}

func (g Guard) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip}, nil
	}
	lookup := g.Lookup
	if lookup == nil {
		lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	return lookup(ctx, host)
}

// connect asks the proxy for a connection.
func (p *Proxy) connect(ctx context.Context, to string, timeout time.Duration) (_ net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	at, port := p.URL.Hostname(), p.URL.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[p.URL.Scheme]
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(at, port))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProxy, err)
	}
	raw := conn
	// What waits for the proxy ends with ctx: a deadline that is over.
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = fmt.Errorf("%w: %w", ErrProxy, ctx.Err())
		}
		if err != nil {
			_ = raw.Close() // nothing was said
		}
	}()
	if p.URL.Scheme == "https" {
		secure := tls.Client(conn, &tls.Config{ServerName: at, RootCAs: p.Roots, MinVersion: tls.VersionTLS12})
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrProxy, err)
		}
		conn = secure
	}
	if err := p.ask(ctx, conn, to); err != nil {
		return nil, err
	}
	return conn, nil
}

func (p *Proxy) ask(ctx context.Context, conn net.Conn, to string) error {
	request := (&http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: to}, Host: to, Header: http.Header{"User-Agent": {"keyturn"}}}).WithContext(ctx)
	if p.Authorization != nil {
		authorization, err := p.Authorization()
		if err != nil {
			return fmt.Errorf("%w: %w", ErrProxy, err)
		}
		if authorization != "" {
			request.Header.Set("Proxy-Authorization", authorization)
		}
	}
	if err := request.Write(conn); err != nil {
		return fmt.Errorf("%w: %w", ErrProxy, err)
	}
	reader := bufio.NewReader(io.LimitReader(conn, maxProxyAnswer))
	response, err := http.ReadResponse(reader, request)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProxy, err)
	}
	defer func() { _ = response.Body.Close() }() // the connection is what counts
	switch {
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("%w: it answers %d to CONNECT %s", ErrProxy, response.StatusCode, to)
	case reader.Buffered() > 0:
		return fmt.Errorf("%w: it says more than it was asked", ErrProxy)
	}
	return nil
}
