package forward

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

const (
	// maxHops is how many addresses of X-Forwarded-For are looked at, from the right.
	maxHops = 32
	// maxURL bounds the URL of a client's request, in bytes, maxMethod its method.
	maxURL, maxMethod = 8 << 10, 32
	maxHost           = 255
)

// parseAddress reads an address as proxies write it: with a port or without, IPv6 in
// brackets or not.
func parseAddress(text string) (netip.Addr, bool) {
	text = strings.Trim(text, " \t")
	if len(text) > 64 {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		var with netip.AddrPort
		if with, err = netip.ParseAddrPort(text); err == nil {
			addr = with.Addr()
		}
	}
	if n := len(text); err != nil && n > 2 && text[0] == '[' && text[n-1] == ']' {
		addr, err = netip.ParseAddr(text[1 : n-1])
	}
	if err != nil {
		return netip.Addr{}, false
	}
	return addr.Unmap().WithZone(""), true
}

func trusts(trusted []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(trusted, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// clientAddress is where the client is: that of X-Forwarded-For which is no trusted
// proxy's, beginning on the right, where the proxies wrote. peer is who asks, and what
// is left when that cannot be told. When all are trusted it is the left-most.
func clientAddress(lines []string, trusted []netip.Prefix, peer string) string {
	found := peer
	hops := 0
	for i := len(lines) - 1; i >= 0; i-- {
		for rest, more := lines[i], true; more; {
			one := rest
			if comma := strings.LastIndexByte(rest, ','); comma >= 0 {
				rest, one = rest[:comma], rest[comma+1:]
			} else {
				more = false
			}
			hops++
			addr, ok := parseAddress(one)
			if !ok || hops > maxHops {
				return peer
			}
			found = addr.String()
			if !trusts(trusted, addr) {
				return found
			}
		}
	}
	return found
}

// peerAddress is the IP address of a connection's other end; empty if it has none.
func peerAddress(remote string) string {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return ""
	}
	return at.Addr().Unmap().WithZone("").String()
}

// target is a client's request, as the proxy tells it; without a method nothing is known.
type target struct{ method, url string }

// readTarget reads what the headers of a way of telling it say: each must be there once.
func readTarget(way string, values headers) (target, bool) {
	one := func(name string) string {
		if all := values(name); len(all) == 1 {
			return all[0]
		}
		return ""
	}
	switch way {
	case urlForwarded:
		scheme := one("X-Forwarded-Proto")
		switch scheme { // of a WebSocket the request is one of HTTP
		case "ws":
			scheme = "http"
		case "wss":
			scheme = "https"
		}
		return targetOf(one("X-Forwarded-Method"), scheme, one("X-Forwarded-Host"), one("X-Forwarded-Uri"))
	case urlOriginal:
		scheme, rest, _ := strings.Cut(one("X-Original-Url"), "://")
		host, path, _ := strings.Cut(rest, "/")
		return targetOf(one("X-Original-Method"), scheme, host, "/"+path)
	}
	return target{}, false
}

// targetOf makes a target of its parts, of which none may reach into another. The query
// does not count.
func targetOf(method, scheme, host, path string) (target, bool) {
	path, _, _ = strings.Cut(path, "?")
	switch {
	case method == "" || len(method) > maxMethod || strings.ContainsFunc(method, func(r rune) bool { return r < 'A' || r > 'Z' }),
		scheme != "http" && scheme != "https",
		host == "" || len(host) > maxHost || !only(host, "-._~:[]"),
		path == "" || path[0] != '/' || len(path) > maxURL || !only(path, "/-._~%!$&'()*+,;=:@"):
		return target{}, false
	}
	text := scheme + "://" + host + path
	if u, err := url.Parse(text); err != nil || u.Host != host || u.User != nil {
		return target{}, false
	}
	return target{method: method, url: text}, true
}

// only reports whether text is letters, digits and some others.
func only(text, others string) bool {
	for i := range len(text) {
		switch c := text[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte(others, c) >= 0:
		default:
			return false
		}
	}
	return true
}
