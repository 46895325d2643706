package grant

import (
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Problem is what is wrong with a field, and how to mend it.
type Problem struct{ Path, Text, Hint string }

// Error implements error.
func (p Problem) Error() string { return p.Path + ": " + p.Text + "; " + p.Hint }

// reader reads fields and gathers problems.
type reader struct{ problems []Problem }

func (r *reader) wrong(path, text, hint string) {
	r.problems = append(r.problems, Problem{path, text, hint})
}

// Parse reads the rules of a key: the list that its config has under "grants".
func Parse(list any) ([]Rule, []Problem) {
	r := &reader{}
	const hint = "write a list of rules, each with name, from, audiences and scopes"
	items, ok := list.([]any)
	if !ok || len(items) == 0 {
		r.wrong("grants", "it is no list of rules", hint)
		return nil, r.problems
	}
	if len(items) > MaxRules {
		r.wrong("grants", fmt.Sprintf("there are %d rules", len(items)), fmt.Sprintf("write %d at most", MaxRules))
		return nil, r.problems
	}
	rules := make([]Rule, 0, len(items))
	names := map[string]bool{}
	for i, item := range items {
		at := fmt.Sprintf("grants[%d]", i)
		fields, ok := item.(map[string]any)
		if !ok {
			r.wrong(at, "it has no fields", hint)
			continue
		}
		rule := r.rule(at, fields)
		if names[rule.Name] {
			r.wrong(at+".name", fmt.Sprintf("%q is taken", rule.Name), "give each rule a name of its own")
		}
		names[rule.Name] = true
		rules = append(rules, rule)
	}
	return rules, r.problems
}

func (r *reader) known(at string, fields map[string]any, known ...string) {
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		if !slices.Contains(known, field) {
			r.wrong(at+"."+field, "there is no such field", "known ones are "+strings.Join(known, ", "))
		}
	}
}

func (r *reader) text(at string, fields map[string]any, field, hint string) string {
	v, is := fields[field]
	if !is {
		return ""
	}
	text, ok := v.(string)
	if !ok || !isText(text) {
		r.wrong(at+"."+field, "it is no text", hint)
		return ""
	}
	return text
}

func isText(text string) bool {
	return text != "" && len(text) <= MaxText && !strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c == 0x7f || c == 0xfffd })
}

func (r *reader) texts(at string, fields map[string]any, field, hint string, ok func(string) bool) []string {
	v, is := fields[field]
	if !is {
		return nil
	}
	if one, single := v.(string); single {
		v = []any{one}
	}
	list, is := v.([]any)
	if !is || len(list) == 0 || len(list) > MaxList {
		r.wrong(at+"."+field, fmt.Sprintf("it is no list of 1 to %d texts", MaxList), hint)
		return nil
	}
	texts := make([]string, 0, len(list))
	for i, item := range list {
		text, is := item.(string)
		if !is || !isText(text) || !ok(text) || slices.Contains(texts, text) {
			r.wrong(fmt.Sprintf("%s.%s[%d]", at, field, i), "it is none that can be used here, or is there twice", hint)
			continue
		}
		texts = append(texts, text)
	}
	return texts
}

func anyText(string) bool { return true }

// isScope reports whether a text is a scope-token (RFC 6749, section 3.3).
func isScope(text string) bool {
	return !strings.ContainsFunc(text, func(c rune) bool { return c <= ' ' || c == '"' || c == '\\' || c > '~' })
}

func isRuleName(name string) bool {
	return name != "" && len(name) <= 63 && name[0] != '-' && !strings.ContainsFunc(name, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-'
	})
}

func (r *reader) rule(at string, fields map[string]any) Rule {
	r.known(at, fields, "name", "from", "subject", "audiences", "scopes", "copy", "life", "bind", "once")
	const nameHint, scopeHint = "write lower-case letters, digits and hyphens, for example deploy", `write scopes without blanks, in quotes, for example ["orders:read"]`
	rule := Rule{
		Name: r.text(at, fields, "name", nameHint), Subject: r.text(at, fields, "subject", "write the subject of its tokens"), Life: DefaultLife,
		Audiences: r.texts(at, fields, "audiences", "write who accepts its tokens, for example [orders]", anyText),
		Scopes:    r.texts(at, fields, "scopes", scopeHint, isScope),
		Copy:      r.texts(at, fields, "copy", "write claims to be taken over, for example [repository]", isCopied),
	}
	if !isRuleName(rule.Name) {
		r.wrong(at+".name", fmt.Sprintf("%q is no name", rule.Name), nameHint)
	}
	if len(rule.Audiences) == 0 {
		r.wrong(at+".audiences", "it is missing: a token for everybody is accepted by everybody", "write who accepts its tokens, for example [orders]")
	}
	lifeHint := fmt.Sprintf("write whole seconds between %v and %v, for example 5m", MinLife, MaxLife)
	if text := r.text(at, fields, "life", lifeHint); text != "" {
		life, err := time.ParseDuration(text)
		if err != nil || life < MinLife || life > MaxLife || life%time.Second != 0 {
			r.wrong(at+".life", fmt.Sprintf("%q is no duration in these bounds", text), lifeHint)
		}
		rule.Life = life
	}
	switch bind := r.text(at, fields, "bind", "write dpop, mtls or either"); bind {
	case "":
	case "dpop":
		rule.Bind = BindDPoP
	case "mtls":
		rule.Bind = BindTLS
	case "either":
		rule.Bind = BindEither
	default:
		r.wrong(at+".bind", fmt.Sprintf("%q is unknown", bind), "write dpop, mtls or either; leave it out to demand none")
	}
	if once, is := fields["once"]; is {
		if rule.Once, is = once.(bool); !is {
			r.wrong(at+".once", "it is neither true nor false", "write true if each token of the issuer is exchanged once")
		}
	}
	from, ok := fields["from"].(map[string]any)
	if !ok {
		r.wrong(at+".from", "it is missing", sourceHint)
		return rule
	}
	r.from(at+".from", from, &rule)
	if len(rule.Copy) > 0 && rule.Source != Federated {
		r.wrong(at+".copy", "only tokens of another issuer have claims", "leave it out")
	}
	if rule.Once && rule.Source != Federated {
		r.wrong(at+".once", "only tokens of another issuer are exchanged once", "leave it out")
	}
	return rule
}

// isCopied refuses claims that the signer sets, or that tell what a token is.
func isCopied(claim string) bool {
	switch strings.ToLower(claim) {
	case "iss", "sub", "aud", "exp", "nbf", "iat", "jti", "scope", "client_id", "cnf", "act", "may_act":
		return false
	}
	return len(claim) <= 128
}

const sourceHint = "write exactly one of issuer (with audience and claims), apiKeys, tokens, certificate"

func (r *reader) from(at string, fields map[string]any, rule *Rule) {
	sources := 0
	for field, source := range map[string]Source{"issuer": Federated, "apiKeys": APIKey, "tokens": Token, "certificate": Certificate} {
		if _, is := fields[field]; is {
			sources++
			rule.Source = source
		}
	}
	if sources != 1 {
		rule.Source = 0
		r.wrong(at, "it names no source, or several", sourceHint)
		return
	}
	switch rule.Source {
	case Federated:
		r.federated(at, fields, rule)
	case APIKey:
		r.known(at, fields, "apiKeys")
		rule.Names = r.texts(at, fields, "apiKeys", "write names of API keys, for example [partners/*]", anyText)
	case Token:
		r.known(at, fields, "tokens")
		rule.Names = r.texts(at, fields, "tokens", "write names of tokens, for example [ci]", anyText)
	case Certificate:
		r.known(at, fields, "certificate")
		at += ".certificate"
		inner, _ := fields["certificate"].(map[string]any)
		r.known(at, inner, "ca", "names")
		rule.CA = r.file(at, inner, "ca")
		rule.Names = r.texts(at, inner, "names", `write URIs or DNS names, for example ["spiffe://example.com/orders/*"]`, anyText)
		if rule.CA == "" || len(rule.Names) == 0 {
			r.wrong(at, "it lacks ca or names", "write the PEM file of the authority, and the names it vouches for")
		}
	}
}

func (r *reader) file(at string, fields map[string]any, field string) string {
	text := r.text(at, fields, field, "write the path of a PEM file")
	if text != "" && !filepath.IsAbs(text) {
		r.wrong(at+"."+field, "it is no absolute path", "write the whole path of a PEM file on every server")
	}
	return text
}

func (r *reader) federated(at string, fields map[string]any, rule *Rule) {
	r.known(at, fields, "issuer", "audience", "claims", "keys", "ca")
	const urlHint = "write an https URL, as the claim iss has it; http is allowed on loopback"
	rule.Issuer = r.text(at, fields, "issuer", urlHint)
	if !isURL(rule.Issuer) {
		r.wrong(at+".issuer", "it is no https URL", urlHint)
	}
	if rule.Keys = r.text(at, fields, "keys", urlHint); rule.Keys != "" && !isURL(rule.Keys) {
		r.wrong(at+".keys", "it is no https URL", "write where the issuer's JSON Web Key Set is")
	}
	rule.CA = r.file(at, fields, "ca")
	if rule.Audience = r.text(at, fields, "audience", "write the audience that jobs ask their tokens for"); rule.Audience == "" {
		r.wrong(at+".audience", "it is missing: a token made for others would be accepted", "write the audience that jobs ask their tokens for, for example this key's issuer")
	}
	const hint = "write patterns by claim, for example {repository: acme/orders, ref: refs/heads/main}"
	claims, _ := fields["claims"].(map[string]any)
	if len(claims) == 0 || len(claims) > MaxList {
		r.wrong(at+".claims", "it is missing: everybody who has tokens of this issuer would be let in", hint)
		return
	}
	rule.Claims = map[string][]string{}
	fixed := false
	for _, path := range slices.Sorted(maps.Keys(claims)) {
		if !isText(path) {
			r.wrong(at+".claims", "a claim has no name", hint)
			continue
		}
		v := claims[path]
		if flag, is := v.(bool); is {
			v = fmt.Sprint(flag)
		}
		patterns := r.texts(at+".claims", map[string]any{path: v}, path, hint, anyText)
		rule.Claims[path] = patterns
		named := len(patterns) > 0
		for _, pattern := range patterns {
			named = named && !strings.HasPrefix(pattern, "*")
		}
		fixed = fixed || named && path != "aud" && path != "iss"
	}
	if !fixed {
		r.wrong(at+".claims", "every claim may begin with anything: everybody who has tokens of this issuer would be let in", hint)
	}
}

func isURL(text string) bool {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || u.RawQuery != "" {
		return false
	}
	host := u.Hostname()
	return u.Scheme == "https" || u.Scheme == "http" && (host == "localhost" || host == "127.0.0.1" || host == "::1")
}
