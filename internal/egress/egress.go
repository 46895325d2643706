// Package egress keeps calls to addresses that others wrote away from the inner
// network: server-side request forgery.
//
// Guarantees: what is judged is the address that the connection goes to, after the
// name was looked up, so that a name that changes its address gains nothing. Only
// public unicast addresses are called, and those that the operator allows; also
// when an IPv4 address is wrapped in an IPv6 one. No proxy is taken from the
// environment: it would make the connection in our place, to whatever the name is
// there. One that is configured is asked for the address that was judged here, or for
// a name that the operator allows as such.
package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// ErrForbidden: the address belongs to no public host, and is not allowed.
var ErrForbidden = errors.New("the address is not public")

// Guard says which addresses may be called.
type Guard struct {
	// Allow are networks that may be called although they are not public. They are called
	// directly, also where there is a proxy.
	Allow []netip.Prefix
	// Proxy makes the connections to all other addresses; nil: they are made directly.
	Proxy *Proxy
	// Lookup finds the addresses of a host for which a proxy is asked. Default: the
	// system's.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
}

// Check returns ErrForbidden unless ip may be called.
func (g Guard) Check(ip netip.Addr) error {
	if ip = ip.WithZone("").Unmap(); !g.allowed(ip) && !public(ip) {
		return fmt.Errorf("%w: %v", ErrForbidden, ip)
	}
	return nil
}

func (g Guard) allowed(ip netip.Addr) bool {
	return slices.ContainsFunc(g.Allow, func(network netip.Prefix) bool { return network.Contains(ip) })
}

// Control is for net.Dialer: it is called with the address that is connected to.
func (g Guard) Control(_, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %q", ErrForbidden, address)
	}
	return g.Check(to.Addr())
}

// Client returns a client that calls nothing else, follows no redirect, and gives
// up after timeout.
func (g Guard) Client(timeout time.Duration) *http.Client {
	dialer := &net.Dialer{Timeout: timeout, ControlContext: func(_ context.Context, network, address string, c syscall.RawConn) error {
		return g.Control(network, address, c)
	}}
	dial := dialer.DialContext
	if g.Proxy != nil {
		dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			return g.through(ctx, network, address, dialer.DialContext, timeout)
		}
	}
	return &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			DialContext: dial, ForceAttemptHTTP2: true, TLSHandshakeTimeout: timeout, ResponseHeaderTimeout: timeout,
			MaxResponseHeaderBytes: 64 << 10, MaxIdleConns: 20, IdleConnTimeout: 30 * time.Second, DisableCompression: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// public reports whether an address is one of a host on the Internet, by the
// registries of special addresses of IANA (RFC 6890 and later).
func public(ip netip.Addr) bool {
	if !ip.IsValid() || !ip.IsGlobalUnicast() || ip.IsPrivate() {
		return false
	}
	for _, network := range special() {
		if network.Contains(ip) {
			return false
		}
	}
	if ip.Is4() {
		return true
	}
	// Global unicast is 2000::/3; what is outside, as NAT64's 64:ff9b::/96, may lead anywhere.
	return netip.MustParsePrefix("2000::/3").Contains(ip)
}

// special are networks of no public host that net/netip takes for global unicast.
func special() []netip.Prefix {
	var list []netip.Prefix
	for _, text := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
	} {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}
