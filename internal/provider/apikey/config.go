package apikey

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providerconf"
)

// Limits of a config.
const (
	maxClient = 128
	maxScopes = 64
	maxScope  = 64
	maxRate   = 1_000_000
)

// settings is a decoded config:
//
//	config:
//	  client: ACME Ltd.
//	  prefix: kt_live
//	  scopes: [orders:read]
//	  rate: {perSecond: 50, burst: 100}
//	  expires: 2027-12-31
//	  keep: shown-once
//	  notify: {email: [keys@acme.example], webhook: ["https://acme.example/keys"], remind: 7d, ahead: 14d}
//	  late: 14d
type settings struct {
	prefix string
	rules  keytable.Rules
	notify Notify
	// sealed: the key stays sealed in the store after its client has it.
	sealed bool
}

// RulesOf reads what the config of a key lets its versions do; it fails as Check
// does.
func RulesOf(config provider.Config) (keytable.Rules, error) {
	s, err := parse(config)
	return s.rules, err
}

// parse reports every problem at once, each with its place and its mend.
func parse(config provider.Config) (settings, error) {
	b := providerconf.Read(config, "client", "prefix", "scopes", "rate", "expires", "keep", "notify", "late")
	var s settings
	s.rules.Client, _ = b.Value("client").(string)
	if n := utf8.RuneCountInString(s.rules.Client); n == 0 || n > maxClient || strings.ContainsFunc(s.rules.Client, func(r rune) bool { return !unicode.IsPrint(r) }) {
		b.Report("client", fmt.Sprintf("1 to %d printable characters are required", maxClient), "say whose key it is, for example ACME Ltd.")
	}
	s.prefix, _ = b.Value("prefix").(string)
	if err := keytable.CheckPrefix(s.prefix); err != nil {
		b.Report("prefix", err.Error(), "write for example kt_live: scanners recognise keys by it")
	}
	s.rules.Scopes = scopes(b)
	if b.Has("rate") {
		rate(&s.rules, b.Block("rate", "write for example {perSecond: 50, burst: 100}", "perSecond", "burst"))
	}
	if b.Has("expires") {
		s.rules.Expires = expiry(b)
	}
	s.sealed = b.Choice("keep", "shown-once forgets the key once its client has it, sealed keeps it", "shown-once", "sealed") == "sealed"
	s.notify = notices(b)
	s.notify.Client, s.notify.Expires, s.notify.Late = s.rules.Client, s.rules.Expires, span(b, "late", defaultLate, minLate)
	return s, b.Err()
}

func scopes(b *providerconf.Block) []string {
	var all []string
	for i, one := range b.List("scopes", 0, maxScopes, `write for example ["orders:read"]`) {
		scope, _ := one.(string)
		switch {
		case scope == "" || len(scope) > maxScope || strings.ContainsFunc(scope, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }):
			b.Report(providerconf.Index("scopes", i), fmt.Sprintf("1 to %d characters as in RFC 6749 are required", maxScope), `write for example "orders:read", in quotes: between braces a colon begins a value`)
		case slices.Contains(all, scope):
			b.Report(providerconf.Index("scopes", i), fmt.Sprintf("%s is there twice", scope), "name each scope once")
		default:
			all = append(all, scope)
		}
	}
	return all
}

func rate(rules *keytable.Rules, b *providerconf.Block) {
	perSecond, _ := b.Value("perSecond").(float64)
	if !(perSecond > 0 && perSecond <= maxRate) {
		b.Report("perSecond", fmt.Sprintf("a number above 0, at most %d, is required", maxRate), "write for example 50")
		perSecond = 0
	}
	rules.PerSecond, rules.Burst = perSecond, b.Int("burst", 1, maxRate, max(int(perSecond), 1), "write for example 100")
}

func expiry(b *providerconf.Block) time.Time {
	text, _ := b.Value("expires").(string)
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if at, err := time.Parse(layout, text); err == nil {
			return at.UTC()
		}
	}
	b.Report("expires", fmt.Sprintf("%.40q is no time", text), "write a date, 2027-12-31 (it expires when the day begins, in UTC), or a time as in RFC 3339")
	return time.Time{}
}
