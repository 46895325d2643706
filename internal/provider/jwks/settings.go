package jwks

import (
	"errors"
	"fmt"
	"maps"
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

// block reads the fields of a part of the config and gathers problems.
type block struct {
	at       string
	fields   map[string]any
	known    []string
	problems *[]error
}

func (b *block) wrong(field, problem, hint string) {
	place := field
	if b.at != "" {
		place = b.at
		if field != "" {
			place += "." + field
		}
	}
	*b.problems = append(*b.problems, &provider.ConfigError{Path: place, Problem: problem, Hint: hint})
}

func (b *block) text(field, hint string) string {
	b.known = append(b.known, field)
	value, is := b.fields[field]
	if !is {
		return ""
	}
	text, ok := value.(string)
	if !ok || text == "" || len(text) > maxURL {
		b.wrong(field, "it is no text", hint)
	}
	return text
}

func (b *block) flag(field string) bool {
	b.known = append(b.known, field)
	value, is := b.fields[field]
	if !is {
		return false
	}
	flag, ok := value.(bool)
	if !ok {
		b.wrong(field, "it is neither true nor false", "write true or false")
	}
	return flag
}

func (b *block) list(field, hint string) []any {
	b.known = append(b.known, field)
	value, is := b.fields[field]
	if !is {
		return nil
	}
	list, ok := value.([]any)
	if !ok {
		b.wrong(field, "it is no list", hint)
	}
	return list
}

// part returns a block within this one.
func (b *block) part(field string, value any, hint string) *block {
	at := field
	if b.at != "" {
		at = b.at + "." + field
	}
	fields, ok := value.(map[string]any)
	if !ok {
		b.wrong(field, "it has no fields", hint)
	}
	return &block{at: at, fields: fields, problems: b.problems}
}

// unknown complains of fields that nobody read.
func (b *block) unknown() {
	for _, field := range slices.Sorted(maps.Keys(b.fields)) {
		if !slices.Contains(b.known, field) {
			b.wrong(field, "there is no such field", "known ones are "+strings.Join(b.known, ", "))
		}
	}
}

func (b *block) life(field string, most time.Duration) time.Duration {
	hint := fmt.Sprintf("write whole seconds between 1s and %v, for example 5m", most)
	text := b.text(field, hint)
	if text == "" {
		if _, is := b.fields[field]; !is {
			b.wrong(field, "it is missing", hint)
		}
		return 0
	}
	life, err := time.ParseDuration(text)
	if err != nil || life < minLife || life > most || life%time.Second != 0 {
		b.wrong(field, fmt.Sprintf("%q is no duration in these bounds", text), hint)
	}
	return life
}

// parse checks a config block and reports every problem.
func parse(config provider.Config) (settings, error) {
	var problems []error
	b := &block{fields: config, problems: &problems}
	s := settings{
		issuer: b.text("issuer", issuerHint), algorithm: jose.SignatureAlgorithm(b.text("algorithm", algorithmHint)),
		tokenLife: b.life("tokenLife", maxTokenLife), cacheLife: b.life("cacheLife", maxCacheLife),
		audience: b.text("audience", "write the audience that verifiers expect, for example orders"),
	}
	if problem := checkIssuer(s.issuer); problem != "" {
		b.wrong("issuer", problem, issuerHint)
	}
	if s.algorithm == "" {
		s.algorithm = jose.EdDSA
	}
	if !slices.Contains(algorithms(), s.algorithm) {
		b.wrong("algorithm", fmt.Sprintf("%q is unknown", s.algorithm), algorithmHint)
	}
	s.bits = b.bits(s.algorithm)
	const signerHint = "write keyturn when Keyturn signs, or external when applications do"
	switch signer := b.text("signer", signerHint); signer {
	case "", "keyturn":
	case "external":
		s.external = true
	default:
		b.wrong("signer", fmt.Sprintf("%q is unknown", signer), signerHint)
	}
	const verifiersHint = "write a list, for example [{name: orders}]"
	list := b.list("verifiers", verifiersHint)
	if len(list) > maxVerifiers {
		b.wrong("verifiers", fmt.Sprintf("there are %d", len(list)), fmt.Sprintf("register %d at most", maxVerifiers))
		list = nil
	}
	names := map[string]bool{published: true}
	for i, item := range list {
		v := b.part(fmt.Sprintf("verifiers[%d]", i), item, verifiersHint).verifier()
		if names[v.name] && v.name != "" {
			b.wrong(fmt.Sprintf("verifiers[%d].name", i), fmt.Sprintf("%q is taken", v.name), "give each verifier a name of its own, other than published")
		}
		names[v.name] = true
		s.verifiers = append(s.verifiers, v)
	}
	b.known = append(b.known, "grants")
	if list, is := b.fields["grants"]; is {
		_, found := grant.Parse(list)
		for _, p := range found {
			b.wrong(p.Path, p.Text, p.Hint)
		}
		if s.external {
			b.wrong("grants", "applications sign themselves, so that the server has no tokens to give", "leave it out, or set signer: keyturn")
		}
	}
	b.unknown()
	return s, errors.Join(problems...)
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

func isRSA(algorithm jose.SignatureAlgorithm) bool {
	return strings.HasPrefix(string(algorithm), "RS") || strings.HasPrefix(string(algorithm), "PS")
}

func (b *block) bits(algorithm jose.SignatureAlgorithm) int {
	b.known = append(b.known, "bits")
	value, is := b.fields["bits"]
	if !is {
		return minBits
	}
	bits, ok := value.(float64)
	if !ok || bits != 2048 && bits != 3072 && bits != maxBits {
		b.wrong("bits", "it is no size of an RSA key in use", "write 2048, 3072 or 4096")
		return minBits
	}
	if !isRSA(algorithm) {
		b.wrong("bits", fmt.Sprintf("the size of a key for %s is fixed", algorithm), "leave bits out")
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

func (b *block) verifier() verifier {
	const nameHint = "write lower-case letters, digits and hyphens, for example orders-eu"
	v := verifier{name: b.text("name", nameHint), region: b.text("region", "write the failure domain, for example eu"), shared: b.flag("shared")}
	if !isName(v.name) {
		b.wrong("name", fmt.Sprintf("%q is no name", v.name), nameHint)
	}
	const fromHint = "write networks, for example [10.2.0.0/16]"
	for i, item := range b.list("from", fromHint) {
		network, ok := parseNetwork(item)
		if !ok {
			b.wrong(fmt.Sprintf("from[%d]", i), fmt.Sprintf("%v is no network", item), fromHint)
			continue
		}
		v.from = append(v.from, network)
	}
	b.known = append(b.known, "probe")
	if value, is := b.fields["probe"]; is {
		v.probe = b.part("probe", value, "write for example probe: {url: https://orders.example.com/whoami, accepted: [200, 403], refused: [401]}").probe()
	}
	b.unknown()
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

func (b *block) probe() *probe {
	const urlHint = "write an https URL that asks for a token; http is allowed on loopback"
	p := &probe{ca: b.text("ca", "write the path of a PEM file")}
	text := b.text("url", urlHint)
	u, problem := checkURL(text)
	if problem != "" {
		b.wrong("url", problem, urlHint)
		u = &url.URL{}
	}
	p.url = u
	p.accepted = b.statuses("accepted", []int{200, 204, 403})
	p.refused = b.statuses("refused", []int{401})
	for _, status := range p.accepted {
		if slices.Contains(p.refused, status) {
			b.wrong("refused", fmt.Sprintf("%d stands for both answers", status), "let each status mean one thing")
		}
	}
	b.unknown()
	return p
}

func (b *block) statuses(field string, otherwise []int) []int {
	const hint = "write statuses of HTTP, for example [401]"
	list := b.list(field, hint)
	if list == nil {
		return otherwise
	}
	var statuses []int
	for i, item := range list {
		status, ok := item.(float64)
		if !ok || status != float64(int(status)) || status < 200 || status > 499 || status >= 300 && status < 400 {
			b.wrong(fmt.Sprintf("%s[%d]", field, i), "it is no status by which a verifier could answer", hint)
			continue
		}
		statuses = append(statuses, int(status))
	}
	if len(list) == 0 {
		b.wrong(field, "it is empty", hint)
	}
	return statuses
}
