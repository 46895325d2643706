package jwks

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/internal/grant"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providerconf"
)

// published is the endpoint of the set that anybody may read.
const published = "published"

// Bounds of what a key may ask for.
const (
	minLife, maxTokenLife = time.Second, 30 * 24 * time.Hour
	maxCacheLife          = 24 * time.Hour
	maxVerifiers          = 200
	maxName               = 63
	maxURL                = 2048
	maxNetworks           = 1000
	maxStatuses           = 200
	minBits, maxBits      = 2048, 4096
)

// settings is a key's config block.
type settings struct {
	issuer    string
	algorithm jose.SignatureAlgorithm
	bits      int
	tokenLife time.Duration
	cacheLife time.Duration
	audience  string
	external  bool
	verifiers []verifier
}

// verifier is a registered one.
type verifier struct {
	name   string
	region string
	shared bool
	from   []netip.Prefix
	probe  *probe
}

// probe says how a verifier is tried.
type probe struct {
	url               *url.URL
	ca                string
	accepted, refused []int
}

func (s *settings) endpoints() []string {
	names := []string{published}
	for i := range s.verifiers {
		names = append(names, s.verifiers[i].name)
	}
	return names
}

// verifier returns the one of an endpoint; nil for the published set.
func (s *settings) verifier(endpoint string) (*verifier, error) {
	if endpoint == published {
		return nil, nil
	}
	for i := range s.verifiers {
		if s.verifiers[i].name == endpoint {
			return &s.verifiers[i], nil
		}
	}
	return nil, provider.Permanent(fmt.Errorf("there is no verifier %q", endpoint), "register it in the key's config under verifiers")
}

// path is where the set of an endpoint is served.
func (s *settings) path(endpoint string) string {
	u, err := url.Parse(s.issuer)
	if err != nil {
		return "" // it was checked
	}
	base := strings.TrimSuffix(u.Path, "/") + "/.well-known/"
	if endpoint == published {
		return base + "jwks.json"
	}
	return base + "jwks/" + endpoint + ".json"
}

// life reads a life in whole seconds, which must be there.
func life(b *providerconf.Block, field string, most time.Duration) time.Duration {
	hint := fmt.Sprintf("write whole seconds between 1s and %v, for example 5m", most)
	if !b.Has(field) {
		b.Missing(field, hint)
	}
	life := b.Duration(field, minLife, most, 0, hint)
	if life%time.Second != 0 {
		b.Report(field, "it has a part of a second", hint)
	}
	return life
}

// parse checks a config block and reports every problem.
func parse(config provider.Config) (settings, error) {
	b := providerconf.Read(config, "issuer", "algorithm", "bits", "tokenLife", "cacheLife", "audience", "signer", "verifiers", "grants")
	algorithm := b.Choice("algorithm", algorithmHint, algorithmNames()...)
	s := settings{
		issuer: b.Text("issuer", maxURL, issuerHint), algorithm: cmp.Or(jose.SignatureAlgorithm(algorithm), jose.EdDSA),
		tokenLife: life(b, "tokenLife", maxTokenLife), cacheLife: life(b, "cacheLife", maxCacheLife),
		audience: b.Text("audience", maxURL, "write the audience that verifiers expect, for example orders"),
		external: b.Choice("signer", "write keyturn when Keyturn signs, or external when applications do", "keyturn", "external") == "external",
	}
	if problem := checkIssuer(s.issuer); problem != "" {
		b.Report("issuer", problem, issuerHint)
	}
	s.bits = bits(b, s.algorithm)
	const verifiersHint = "write a list, for example [{name: orders}]"
	names := map[string]bool{published: true}
	for i, item := range b.List("verifiers", 0, maxVerifiers, verifiersHint) {
		one := b.Element(providerconf.Index("verifiers", i), item, verifiersHint, "name", "region", "shared", "from", "probe")
		v := parseVerifier(one)
		if names[v.name] && v.name != "" {
			one.Report("name", fmt.Sprintf("%q is taken", v.name), "give each verifier a name of its own, other than published")
		}
		names[v.name] = true
		s.verifiers = append(s.verifiers, v)
	}
	if b.Has("grants") {
		_, found := grant.Parse(b.Value("grants"))
		for _, p := range found {
			b.Report(p.Path, p.Text, p.Hint)
		}
		if s.external {
			b.Report("grants", "applications sign themselves, so that the server has no tokens to give", "leave it out, or set signer: keyturn")
		}
	}
	return s, b.Err()
}

const (
	issuerHint    = "write an https URL without query and fragment, for example https://keys.example.com/orders; http is allowed on loopback"
	algorithmHint = "use EdDSA, ES256, ES384, ES512, RS256, RS384, RS512, PS256, PS384 or PS512"
)

func algorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{
		jose.EdDSA, jose.ES256, jose.ES384, jose.ES512, jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	}
}

func algorithmNames() []string {
	var names []string
	for _, algorithm := range algorithms() {
		names = append(names, string(algorithm))
	}
	return names
}

func isRSA(algorithm jose.SignatureAlgorithm) bool {
	return strings.HasPrefix(string(algorithm), "RS") || strings.HasPrefix(string(algorithm), "PS")
}

func bits(b *providerconf.Block, algorithm jose.SignatureAlgorithm) int {
	if !b.Has("bits") {
		return minBits
	}
	bits, ok := b.Value("bits").(float64)
	if !ok || bits != 2048 && bits != 3072 && bits != maxBits {
		b.Report("bits", "it is no size of an RSA key in use", "write 2048, 3072 or 4096")
		return minBits
	}
	if !isRSA(algorithm) {
		b.Report("bits", fmt.Sprintf("the size of a key for %s is fixed", algorithm), "leave bits out")
	}
	return int(bits)
}

// checkURL returns what is wrong with a URL that secrets or decisions hang on.
func checkURL(text string) (*url.URL, string) {
	u, err := url.Parse(text)
	switch {
	case text == "":
		return nil, "it is missing"
	case err != nil || u.Host == "" || len(text) > maxURL || strings.ContainsAny(text, " \t\r\n\"\\"):
		return nil, "it is no URL"
	case u.User != nil || u.Fragment != "" || strings.HasSuffix(text, "#"):
		return nil, "it has a user or a fragment"
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return nil, "it is not encrypted"
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, "it is no https URL"
	}
	return u, ""
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func checkIssuer(text string) string {
	u, problem := checkURL(text)
	switch {
	case problem != "":
		return problem
	case u.RawQuery != "" || u.ForceQuery:
		return "it has a query"
	case strings.HasSuffix(u.Path, "/"):
		return "it ends with a slash; readers compare issuers letter by letter"
	case u.Path != "" && path.Clean(u.Path) != u.Path, u.EscapedPath() != u.Path, strings.Contains(u.Path, "/.well-known"):
		return "its path is not plain"
	}
	return ""
}

func parseVerifier(b *providerconf.Block) verifier {
	const nameHint = "write lower-case letters, digits and hyphens, for example orders-eu"
	v := verifier{
		name: b.Text("name", maxName, nameHint), region: b.Text("region", maxURL, "write the failure domain, for example eu"), shared: b.Bool("shared", false, ""),
	}
	if !isName(v.name) {
		b.Report("name", fmt.Sprintf("%q is no name", v.name), nameHint)
	}
	const fromHint = "write networks, for example [10.2.0.0/16]"
	for i, item := range b.List("from", 0, maxNetworks, fromHint) {
		network, ok := parseNetwork(item)
		if !ok {
			b.Report(providerconf.Index("from", i), "it is no network", fromHint)
			continue
		}
		v.from = append(v.from, network)
	}
	if b.Has("probe") {
		v.probe = parseProbe(b.Block("probe", "write for example probe: {url: https://orders.example.com/whoami, accepted: [200, 403], refused: [401]}", "url", "ca", "accepted", "refused"))
	}
	return v
}

// parseNetwork reads a network, or a single address.
func parseNetwork(item any) (netip.Prefix, bool) {
	text, _ := item.(string)
	if address, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(address, address.BitLen()), true
	}
	network, err := netip.ParsePrefix(text)
	return network.Masked(), err == nil
}

func isName(name string) bool {
	for i, r := range name {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && (r != '-' || i == 0 || i == len(name)-1) {
			return false
		}
	}
	return name != "" && len(name) <= maxName
}

func parseProbe(b *providerconf.Block) *probe {
	const urlHint = "write an https URL that asks for a token; http is allowed on loopback"
	p := &probe{ca: b.Text("ca", maxURL, "write the path of a PEM file")}
	u, problem := checkURL(b.Text("url", maxURL, urlHint))
	if problem != "" {
		b.Report("url", problem, urlHint)
		u = &url.URL{}
	}
	p.url = u
	p.accepted = statuses(b, "accepted", []int{200, 204, 403})
	p.refused = statuses(b, "refused", []int{401})
	for _, status := range p.accepted {
		if slices.Contains(p.refused, status) {
			b.Report("refused", fmt.Sprintf("%d stands for both answers", status), "let each status mean one thing")
		}
	}
	return p
}

func statuses(b *providerconf.Block, field string, otherwise []int) []int {
	const hint = "write statuses of HTTP, for example [401]"
	list := b.List(field, 1, maxStatuses, hint)
	if list == nil {
		return otherwise
	}
	var statuses []int
	for i, item := range list {
		status, ok := item.(float64)
		if !ok || status != float64(int(status)) || status < 200 || status > 499 || status >= 300 && status < 400 {
			b.Report(providerconf.Index(field, i), "it is no status by which a verifier could answer", hint)
			continue
		}
		statuses = append(statuses, int(status))
	}
	return statuses
}
