package ingress

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Rate is so many requests per second, and at once.
type Rate struct {
	PerSecond float64
	Burst     int
}

// maxLimited bounds the memory of one set of rate limits.
const maxLimited = 65_536

// limiters bounds a rate for each of many callers.
type limiters struct {
	rate Rate

	mu      sync.Mutex
	callers map[string]*rate.Limiter
}

func newLimiters(r Rate) *limiters {
	return &limiters{rate: r, callers: map[string]*rate.Limiter{}}
}

// of returns the limiter of a caller, a new one if there is none.
func (l *limiters) of(caller string) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if limit, ok := l.callers[caller]; ok {
		return limit
	}
	if len(l.callers) >= maxLimited {
		clear(l.callers)
	}
	limit := rate.NewLimiter(rate.Limit(l.rate.PerSecond), l.rate.Burst)
	l.callers[caller] = limit
	return limit
}

// exhausted reports whether a caller has no call left; it keeps nothing of
// callers that were never limited.
func (l *limiters) exhausted(caller string, now time.Time) bool {
	l.mu.Lock()
	limit, ok := l.callers[caller]
	l.mu.Unlock()
	return ok && limit.TokensAt(now) < 1
}

// AddressRateConfig is what an AddressRate goes by. All but Client is required.
type AddressRateConfig struct {
	// Rate is how many requests an address may make.
	Rate Rate
	// What names the requests that are refused, in the log; it is one of a fixed few,
	// and may say which setting bounds them.
	What string
	// Client is the address of the client; see GateConfig.
	Client func(*http.Request) string
	Now    func() time.Time
	Tally  *Tally
}

// AddressRate bounds how many requests each address makes.
type AddressRate struct {
	config AddressRateConfig
	limits *limiters
}

// NewAddressRate returns an AddressRate that has refused nobody.
func NewAddressRate(config AddressRateConfig) *AddressRate {
	return &AddressRate{config: config, limits: newLimiters(config.Rate)}
}

// Admit reports whether the address of a request may make it now; that it may not is
// counted in the log.
func (a *AddressRate) Admit(r *http.Request) bool {
	address := subscriber(a.config.Client, r)
	admitted := a.limits.of(address).AllowN(a.config.Now(), 1)
	if !admitted {
		a.config.Tally.Add(a.config.What, "lastFrom", address)
	}
	return admitted
}

// subscriber is the address that limits go by.
func subscriber(client func(*http.Request) string, r *http.Request) string {
	if client == nil {
		return subscriberOf(hostOf(r.RemoteAddr))
	}
	return subscriberOf(client(r))
}

// hostOf is the address without the port, or all of it if it has none.
func hostOf(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	return host
}

// subscriberOf is the address itself; of an IPv6 address the network of one
// subscriber (RFC 6177), who could otherwise count as 2^64 clients.
func subscriberOf(host string) string {
	address, err := netip.ParseAddr(host)
	if err != nil || address.Unmap().Is4() {
		return host
	}
	network, err := address.WithZone("").Prefix(64)
	if err != nil {
		return host
	}
	return network.String()
}
