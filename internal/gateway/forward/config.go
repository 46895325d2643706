package forward

import (
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyturn/keyturn/client/tokencheck"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/configfile"
)

// Settings are the block of the gateway's configuration that says who is let in:
//
//	forward:
//	  trustedProxies: [10.0.0.0/8]
//	  proxyTokenFiles: [/run/secrets/proxies]
//	  tokens:
//	    orders: {issuer: https://keyturn.example.com/issuers/apps, audience: orders}
//	  gates:
//	    orders-read:
//	      keys: [partners/**]
//	      tokens: orders
//	      scopes: [orders:read]
type Settings struct {
	// Gates are what proxies ask about, by the name that they call:
	// /v1/forward/orders-read.
	Gates map[string]GateConfig `yaml:"gates"`
	// Tokens are the kinds of access tokens that gates may accept, by name.
	Tokens map[string]TokensConfig `yaml:"tokens"`
	// TrustedProxies are the networks of proxies that stand before the one which asks:
	// their addresses are no client's. Default: 127.0.0.0/8 and ::1.
	TrustedProxies []string `yaml:"trustedProxies"`
	// ProxyTokenFiles hold the tokens that proxies and services show in the header
	// Keyturn-Proxy-Token, one in a line; files are read again when they change.
	ProxyTokenFiles []string `yaml:"proxyTokenFiles"`
}

// GateConfig says what a request needs. Keys or Tokens is required.
type GateConfig struct {
	// Keys are the API keys that count, by patterns of the names of their keys:
	// partners/**, or ** for all that the gateway knows. None: API keys do not count.
	Keys []string `yaml:"keys"`
	// Tokens names the access tokens that count. Empty: access tokens do not count.
	Tokens string `yaml:"tokens"`
	// Clients limits the tokens to those of these clients (claim client_id). None: all.
	Clients []string `yaml:"clients"`
	// Scopes are all needed, of keys and of tokens.
	Scopes []string `yaml:"scopes"`
	// ClientAddress is the header that the proxy sets to where the client is:
	// X-Forwarded-For (of several the right-most that is no trusted proxy), X-Real-IP, or
	// none. Default: X-Forwarded-For.
	ClientAddress string `yaml:"clientAddress"`
	// RequestURL says by which headers the proxy tells the method and URL of the client's
	// request: x-forwarded (X-Forwarded-Method, -Proto, -Host and -Uri; Traefik, Caddy) or
	// x-original (X-Original-Method and X-Original-URL; nginx). Without it a token that is
	// bound to a key of the client (DPoP) is refused: the proxy must set all of them, else
	// the client chooses what its proof is for. Over gRPC they are in the message.
	RequestURL string `yaml:"requestURL"`
	// Only401And403 answers with these where another status would be right (400 becomes
	// 401; 429, 431 and 503 become 403), for nginx, which makes 500 of all others. The
	// header Keyturn-Outcome tells them apart.
	Only401And403 bool `yaml:"only401And403"`
}

// TokensConfig says which access tokens count; see tokencheck.Config, whose fields have
// the same names. Issuer and Audience are required.
type TokensConfig struct {
	Issuer   string        `yaml:"issuer"`
	Audience string        `yaml:"audience"`
	Reader   string        `yaml:"reader"`
	KeySet   string        `yaml:"keySet"`
	Origins  []string      `yaml:"origins"`
	Bound    bool          `yaml:"bound"`
	Nonces   bool          `yaml:"nonces"`
	Skew     time.Duration `yaml:"skew"`
	MaxAge   time.Duration `yaml:"maxAge"`
	CAFile   string        `yaml:"caFile"`
}

// Checker returns the configuration of the verifier. What is no business of the
// configuration file (Report, HTTPClient, Now, Logger) is left to the caller.
func (c *TokensConfig) Checker() tokencheck.Config {
	return tokencheck.Config{
		Issuer: c.Issuer, Audience: c.Audience, Reader: c.Reader, KeySet: c.KeySet, Origins: c.Origins, Bound: c.Bound, Nonces: c.Nonces,
		Skew: c.Skew, MaxAge: c.MaxAge, CACertFile: c.CAFile,
	}
}

// The values of GateConfig.ClientAddress and GateConfig.RequestURL.
const (
	addressForwarded = "X-Forwarded-For"
	addressReal      = "X-Real-IP"
	addressNone      = "none"
	urlForwarded     = "x-forwarded"
	urlOriginal      = "x-original"
)

// Bounds of the settings.
const (
	maxGates, maxTokens, maxFiles, maxProxies = 200, 20, 20, 200
	maxPatterns, maxScopes, maxClients        = 100, 64, 200
	maxScope                                  = 200
)

var gateName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Check returns what is wrong, with the names of the fields below Settings.
func (s *Settings) Check() []configfile.Problem {
	var p configfile.Problems
	few := func(field string, n, most int) {
		if n > most {
			p.Add(field, "there are %d, %d are the most", n, most)
		}
	}
	few("gates", len(s.Gates), maxGates)
	few("tokens", len(s.Tokens), maxTokens)
	few("proxyTokenFiles", len(s.ProxyTokenFiles), maxFiles)
	few("trustedProxies", len(s.TrustedProxies), maxProxies)
	for i, text := range s.TrustedProxies {
		if _, err := parsePrefix(text); err != nil {
			p.Add(at("trustedProxies", i), "%q is no network; write for example 10.0.0.0/8, or one address", text)
		}
	}
	for i, file := range s.ProxyTokenFiles {
		if file == "" {
			p.Add(at("proxyTokenFiles", i), "it is empty; name a file")
		}
	}
	for _, name := range sorted(s.Tokens) {
		if !gateName.MatchString(name) {
			p.Add("tokens", "%q is no name; use a-z, 0-9 and '-', 63 characters at most", name)
		}
		t := s.Tokens[name]
		t.check(&p, "tokens."+name+".")
	}
	for _, name := range sorted(s.Gates) {
		if !gateName.MatchString(name) {
			p.Add("gates", "%q is no name; use a-z, 0-9 and '-', 63 characters at most", name)
			continue
		}
		g := s.Gates[name]
		g.check(&p, "gates."+name+".", s.Tokens)
	}
	return p.List()
}

// check says what is missing; tokencheck.Open says what is wrong with what is there.
func (c *TokensConfig) check(p *configfile.Problems, in string) {
	if u, err := url.Parse(c.Issuer); err != nil || u.Host == "" {
		p.Add(in+"issuer", "%q is no URL; write that of the signing key, for example https://keyturn.example.com/issuers/apps", c.Issuer)
	}
	if c.Audience == "" {
		p.Add(in+"audience", "it is missing; without it tokens for other services would count")
	}
}

func (c *GateConfig) check(p *configfile.Problems, in string, tokens map[string]TokensConfig) {
	wrong := func(field, format string, args ...any) { p.Add(in+field, format, args...) }
	for field, n := range map[string][2]int{"keys": {len(c.Keys), maxPatterns}, "scopes": {len(c.Scopes), maxScopes}, "clients": {len(c.Clients), maxClients}} {
		if n[0] > n[1] {
			wrong(field, "there are %d, %d are the most", n[0], n[1])
		}
	}
	if len(c.Keys) == 0 && c.Tokens == "" {
		wrong("keys", "nobody would be let in; write keys: [partners/**] to accept API keys, tokens: NAME to accept access tokens, or both")
	}
	for i, pattern := range c.Keys {
		if err := authz.CheckPattern(pattern); err != nil {
			wrong(at("keys", i), "%v", err)
		}
	}
	if _, ok := tokens[c.Tokens]; c.Tokens != "" && !ok {
		wrong("tokens", "there are no tokens of the name %q; name one of forward.tokens", c.Tokens)
	}
	if len(c.Clients) > 0 && c.Tokens == "" {
		wrong("clients", "it limits access tokens, and the gate accepts none; limit API keys by keys")
	}
	for i, client := range c.Clients {
		if client == "" {
			wrong(at("clients", i), "it is empty; write the client_id of tokens")
		}
	}
	for i, scope := range c.Scopes {
		if scope == "" || len(scope) > maxScope || strings.ContainsFunc(scope, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
			wrong(at("scopes", i), "%q is no scope (RFC 6749); write for example orders:read, one in each place of the list", scope)
		}
	}
	if !slices.Contains([]string{"", addressForwarded, addressReal, addressNone}, c.ClientAddress) {
		wrong("clientAddress", "%q is none of %s, %s and %s", c.ClientAddress, addressForwarded, addressReal, addressNone)
	}
	if !slices.Contains([]string{"", urlForwarded, urlOriginal}, c.RequestURL) {
		wrong("requestURL", "%q is neither %s nor %s", c.RequestURL, urlForwarded, urlOriginal)
	}
}

// parsePrefix reads a network, or one address.
func parsePrefix(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return prefix, err
	}
	if addr := prefix.Addr(); addr.Is4In6() && prefix.Bits() >= 96 {
		prefix = netip.PrefixFrom(addr.Unmap(), prefix.Bits()-96)
	}
	return prefix.Masked(), nil
}

// prefixes are the trusted networks of settings that were checked.
func (s *Settings) prefixes() []netip.Prefix {
	texts := s.TrustedProxies
	if len(texts) == 0 {
		texts = []string{"127.0.0.0/8", "::1"}
	}
	var list []netip.Prefix
	for _, text := range texts {
		if prefix, err := parsePrefix(text); err == nil {
			list = append(list, prefix)
		}
	}
	return list
}

// at is the path of an element of a list.
func at(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

func sorted[T any](m map[string]T) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
