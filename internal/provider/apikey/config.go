package apikey

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/provider"
)

// Limits of a config.
const (
	maxClient = 128
	maxScopes = 64
	maxScope  = 64
	maxRate   = 1e6
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
	var s settings
	var problems []error
	report := func(path, problem, hint string) {
		problems = append(problems, &provider.ConfigError{Path: path, Problem: problem, Hint: hint})
	}
	for field := range config {
		if !slices.Contains([]string{"client", "prefix", "scopes", "rate", "expires", "keep", "notify", "late"}, field) {
			report(field, "unknown field", "the fields are client, prefix, scopes, rate, expires, keep, notify and late")
		}
	}
	s.rules.Client, _ = config["client"].(string)
	if n := utf8.RuneCountInString(s.rules.Client); n == 0 || n > maxClient || strings.ContainsFunc(s.rules.Client, func(r rune) bool { return !unicode.IsPrint(r) }) {
		report("client", fmt.Sprintf("1 to %d printable characters are required", maxClient), "say whose key it is, for example ACME Ltd.")
	}
	s.prefix, _ = config["prefix"].(string)
	if err := keytable.CheckPrefix(s.prefix); err != nil {
		report("prefix", err.Error(), "write for example kt_live: scanners recognise keys by it")
	}
	s.rules.Scopes = scopes(config["scopes"], report)
	rate(&s.rules, config["rate"], report)
	if value, has := config["expires"]; has {
		s.rules.Expires = expiry(value, report)
	}
	switch keep := config["keep"]; keep {
	case nil, "shown-once":
	case "sealed":
		s.sealed = true
	default:
		report("keep", fmt.Sprintf("%v is unknown", keep), "shown-once forgets the key once its client has it, sealed keeps it")
	}
	s.notify = notices(config["notify"], report)
	s.notify.Client, s.notify.Late = s.rules.Client, span("late", config["late"], defaultLate, minLate, report)
	slices.SortFunc(problems, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return s, errors.Join(problems...)
}

func scopes(value any, report func(path, problem, hint string)) []string {
	if value == nil {
		return nil
	}
	list, ok := value.([]any)
	if !ok || len(list) > maxScopes {
		report("scopes", fmt.Sprintf("a list of at most %d is required", maxScopes), "write for example [orders:read]")
		return nil
	}
	var all []string
	for i, one := range list {
		scope, _ := one.(string)
		if scope == "" || len(scope) > maxScope || strings.ContainsFunc(scope, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
			report(fmt.Sprintf("scopes[%d]", i), fmt.Sprintf("1 to %d characters as in RFC 6749 are required", maxScope), "write for example orders:read")
			continue
		}
		if slices.Contains(all, scope) {
			report(fmt.Sprintf("scopes[%d]", i), fmt.Sprintf("%s is there twice", scope), "name each scope once")
			continue
		}
		all = append(all, scope)
	}
	return all
}

func rate(rules *keytable.Rules, value any, report func(path, problem, hint string)) {
	if value == nil {
		return
	}
	block, ok := value.(map[string]any)
	if !ok {
		report("rate", "a block is required", "write for example {perSecond: 50, burst: 100}")
		return
	}
	for field := range block {
		if field != "perSecond" && field != "burst" {
			report("rate."+field, "unknown field", "the fields are perSecond and burst")
		}
	}
	rules.PerSecond, _ = block["perSecond"].(float64)
	if !(rules.PerSecond > 0 && rules.PerSecond <= maxRate) {
		report("rate.perSecond", fmt.Sprintf("a number above 0, at most %g, is required", maxRate), "write for example 50")
		rules.PerSecond = 0
	}
	burst, has := block["burst"].(float64)
	if _, there := block["burst"]; there && !has || has && !(burst >= 1 && burst <= maxRate && burst == float64(int(burst))) {
		report("rate.burst", fmt.Sprintf("a whole number from 1 to %g is required", maxRate), "write for example 100")
		return
	}
	rules.Burst = max(int(burst), int(rules.PerSecond), 1)
	if has {
		rules.Burst = int(burst)
	}
}

func expiry(value any, report func(path, problem, hint string)) time.Time {
	text, _ := value.(string)
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if at, err := time.Parse(layout, text); err == nil {
			return at.UTC()
		}
	}
	report("expires", fmt.Sprintf("%v is no time", value), "write a date, 2027-12-31 (it expires when the day begins, in UTC), or a time as in RFC 3339")
	return time.Time{}
}
