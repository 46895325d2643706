package grant

import (
	"slices"
	"strings"
	"time"
)

// Bounds of rules.
const (
	// MaxRules is how many a key may have, MaxList how long each list may be.
	MaxRules = 200
	MaxList  = 64
	// MaxText is how long each text may be, in bytes.
	MaxText = 512
	// MinLife is the least life of a token, MaxLife the longest, DefaultLife that of
	// rules that say nothing.
	MinLife     = 10 * time.Second
	MaxLife     = time.Hour
	DefaultLife = 5 * time.Minute
)

// Source is what a rule goes by. The zero value is invalid.
type Source uint8

// The sources.
const (
	// Federated: a token of another issuer, as jobs and workloads have it.
	Federated Source = iota + 1
	// APIKey: one of Keyturn's API keys.
	APIKey
	// Token: one of Keyturn's own tokens.
	Token
	// Certificate: a TLS certificate that the client showed.
	Certificate
)

// String returns the source's name.
func (s Source) String() string {
	switch s {
	case Federated:
		return "federated"
	case APIKey:
		return "api-key"
	case Token:
		return "token"
	case Certificate:
		return "certificate"
	}
	return "invalid"
}

// Binding is what a token is bound to. The zero value means: to nothing that is
// demanded; who shows a proof gets a token bound to it all the same.
type Binding uint8

// The bindings that a rule may demand.
const (
	// BindDPoP: a key of the client (RFC 9449).
	BindDPoP Binding = iota + 1
	// BindTLS: a certificate of the client (RFC 8705).
	BindTLS
	// BindEither: one of the two.
	BindEither
)

// Rule grants tokens.
type Rule struct {
	Name   string
	Source Source

	// Issuer, Audience and Claims are those of a federated token. Keys and CA are
	// where its issuer's keys are, if not where its metadata says, and the PEM file
	// of the authority for both.
	Issuer, Audience, Keys, CA string
	// Claims holds patterns by the path of a claim; any of a list fits.
	Claims map[string][]string
	// Names are patterns: of names of API keys, of names of tokens, or of names in
	// certificates (URI or DNS) that CA issued.
	Names []string

	// Subject is the claim sub; empty means the rule's name, a slash, and the subject
	// that was proven.
	Subject string
	// Audiences and Scopes are what may be asked for.
	Audiences, Scopes []string
	// Copy are claims of a federated token that the new one has as well.
	Copy []string
	// Life is how long tokens live.
	Life time.Duration
	Bind Binding
	// Once: a federated token is exchanged once.
	Once bool
}

// Proven is what somebody has proven.
type Proven struct {
	Source Source
	// Subject is who: the claim sub, a key's or token's name, or a certificate's name.
	Subject string
	// Names are all names that were proven, of an API key, a token or a certificate;
	// CA is the file of the authority that issued the certificate.
	Names []string
	CA    string
	// Issuer, Audience and Claims are those of a federated token.
	Issuer   string
	Audience []string
	Claims   map[string]any
	// ID is the claim jti of a federated token, empty if it has none; Expires its end.
	ID      string
	Expires time.Time
	// Scopes limit what may be granted; nil: no limit.
	Scopes []string
}

// Fits reports whether the rule is one for what was proven.
func (r *Rule) Fits(p *Proven) bool {
	if r.Source != p.Source {
		return false
	}
	switch r.Source {
	case Federated:
		if r.Issuer == "" || p.Issuer != r.Issuer || !slices.Contains(p.Audience, r.Audience) || len(r.Claims) == 0 {
			return false
		}
		for path, patterns := range r.Claims {
			if !matchesAny(patterns, textsOf(p.Claims, path)) {
				return false
			}
		}
		return true
	case APIKey, Token:
		return matchesAny(r.Names, p.Names)
	case Certificate:
		return r.CA == p.CA && matchesAny(r.Names, p.Names)
	}
	return false
}

// Covers reports whether the rule grants all the scopes to what was proven.
func (r *Rule) Covers(p *Proven, scopes []string) bool {
	for _, scope := range scopes {
		if !slices.Contains(r.Scopes, scope) || p.Scopes != nil && !slices.Contains(p.Scopes, scope) {
			return false
		}
	}
	return true
}

// For returns the claim sub of a token for what was proven.
func (r *Rule) For(p *Proven) string {
	if r.Subject != "" {
		return r.Subject
	}
	return r.Name + "/" + p.Subject
}

// Find returns a claim by its path: its name, or names within each other joined by
// slashes.
func Find(claims map[string]any, path string) (any, bool) {
	if v, ok := claims[path]; ok {
		return v, true
	}
	for i := 0; i < len(path); i++ {
		if path[i] != '/' {
			continue
		}
		if inner, ok := claims[path[:i]].(map[string]any); ok {
			if v, found := Find(inner, path[i+1:]); found {
				return v, true
			}
		}
	}
	return nil, false
}

// textsOf returns a claim as texts: several if it is a list, none if it is no text.
func textsOf(claims map[string]any, path string) []string {
	v, _ := Find(claims, path)
	switch v := v.(type) {
	case string:
		return []string{v}
	case bool:
		if v {
			return []string{"true"}
		}
		return []string{"false"}
	case []any:
		var texts []string
		for _, one := range v {
			if text, ok := one.(string); ok {
				texts = append(texts, text)
			}
		}
		return texts
	}
	return nil
}

func matchesAny(patterns, texts []string) bool {
	for _, text := range texts {
		for _, pattern := range patterns {
			if Matches(pattern, text) {
				return true
			}
		}
	}
	return false
}

// Matches reports whether a pattern fits a whole text. Its cost is bounded by the
// product of both lengths.
func Matches(pattern, text string) bool {
	if len(text) > 8*MaxText {
		return false
	}
	// fits[i]: what was read of the pattern fits the first i bytes of the text.
	fits := make([]bool, len(text)+1)
	fits[0] = true
	for len(pattern) > 0 {
		literal := pattern[0]
		deep := strings.HasPrefix(pattern, "**")
		switch {
		case deep:
			pattern = pattern[2:]
		default:
			pattern = pattern[1:]
		}
		if literal == '*' {
			for i := range text {
				if text[i] != '/' && text[i] != ':' || deep {
					fits[i+1] = fits[i+1] || fits[i]
				}
			}
			continue
		}
		for i := len(text); i > 0; i-- {
			fits[i] = fits[i-1] && text[i-1] == literal
		}
		fits[0] = false
	}
	return fits[len(text)]
}
