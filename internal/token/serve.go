package token

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/webtoken"
	"github.com/keyturn/keyturn/key"
)

// Page is a document that is served. It never changes.
type Page struct {
	// Body is JSON, ETag names it, quotes included.
	Body []byte
	ETag string
	// Type is its media type.
	Type string
	// Life is how long caches may hold it, in whole seconds.
	Life time.Duration
	// Public: shared caches may hold it as well.
	Public bool

	key      key.Name
	newest   key.Version
	endpoint string
	seq      uint64
	from     []netip.Prefix
	// until is when it is served no more; zero: for ever.
	until time.Time
}

// Newest returns the key whose page it is, and the newest version that it names; 0
// if it names none.
func (p *Page) Newest() (key.Name, key.Version) { return p.key, p.newest }

// Find returns what is served under a path, from memory. It fails with ErrUnknown
// when there is nothing, and with ErrNotReady while this node cannot know whether
// that is still true.
func (b *Board) Find(path string) (*Page, error) {
	b.mu.RLock()
	page, ok := b.pages[path]
	err := b.fresh()
	b.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	if !ok || page.isOver(b.config.Now()) {
		return nil, ErrUnknown
	}
	return page, nil
}

func (p *Page) isOver(now time.Time) bool { return !p.until.IsZero() && !now.Before(p.until) }

// fresh reports whether the node may serve what it has; the caller holds the lock.
func (b *Board) fresh() error {
	if !b.loaded {
		return fmt.Errorf("%w: the published sets are being read", ErrNotReady)
	}
	if age := b.config.Now().Sub(b.said); age >= b.config.Outage {
		return fmt.Errorf("%w: the store has not answered for %v", ErrNotReady, age.Truncate(time.Second))
	}
	return nil
}

// showOwn serves a set that this node has changed.
func (b *Board) showOwn(doc *store.Doc) error {
	news, err := b.show(doc)
	if news {
		b.mu.Lock()
		b.unsaid = true
		b.mu.Unlock()
	}
	return err
}

// show serves a set as it was committed, unless a newer one is served already. It
// says whether anything else is listed than before.
func (b *Board) show(doc *store.Doc) (news bool, err error) {
	s, err := decode[set](doc)
	if err != nil {
		return false, err
	}
	p := &published{set: s, rev: doc.Rev}
	if p.keys, err = keysAt(&s, Published); err != nil {
		return false, fmt.Errorf("published set of %s: %w", doc.Name, err)
	}
	pages, err := b.pagesOf(key.Name(doc.Name), &s)
	if err != nil {
		return false, fmt.Errorf("published set of %s: %w", doc.Name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	name := key.Name(doc.Name)
	old := b.sets[name]
	if old != nil && old.rev >= doc.Rev {
		return false, nil
	}
	maps.DeleteFunc(b.pages, func(_ string, page *Page) bool { return page.key == name })
	maps.Copy(b.pages, pages)
	maps.DeleteFunc(b.paths, func(_ string, of issuerOf) bool { return of.key == name })
	if s.Issuer != "" && !s.External {
		for _, f := range s.Former {
			b.paths[issuerPath(f.Issuer)] = issuerOf{name, f.Issuer, f.Until}
		}
		b.paths[issuerPath(s.Issuer)] = issuerOf{key: name, issuer: s.Issuer}
	}
	b.sets[name] = p
	close(b.changed)
	b.changed = make(chan struct{})
	return old == nil || old.Seq != s.Seq, nil
}

// discovery is the metadata of an issuer (OpenID Connect Discovery 1.0, section 3).
type discovery struct {
	Issuer        string   `json:"issuer"`
	Keys          string   `json:"jwks_uri"`
	ResponseTypes []string `json:"response_types_supported"`
	SubjectTypes  []string `json:"subject_types_supported"`
	Algorithms    []string `json:"id_token_signing_alg_values_supported"`

	// Of issuers that give tokens (RFC 8414, RFC 9449, section 5.1).
	TokenEndpoint   string   `json:"token_endpoint,omitempty"`
	Introspection   string   `json:"introspection_endpoint,omitempty"`
	Revocation      string   `json:"revocation_endpoint,omitempty"`
	Grants          []string `json:"grant_types_supported,omitempty"`
	Authentication  []string `json:"token_endpoint_auth_methods_supported,omitempty"`
	ProofAlgorithms []string `json:"dpop_signing_alg_values_supported,omitempty"`
	BoundToTLS      bool     `json:"tls_client_certificate_bound_access_tokens,omitempty"`
}

// grantTypes are those of RFC 8693 and RFC 6749.
func grantTypes() []string {
	return []string{"urn:ietf:params:oauth:grant-type:token-exchange", "client_credentials"}
}

// The paths of an issuer's endpoints, below its own.
const (
	TokenPath      = "/oauth/token" //nolint:gosec // a path
	IntrospectPath = "/oauth/introspect"
	RevokePath     = "/oauth/revoke"
	ReportPath     = "/oauth/report"
)

// issuerOf is whose issuer has a path; until is when it is over, zero: never.
type issuerOf struct {
	key    key.Name
	issuer string
	until  time.Time
}

// Issuer returns the signing key whose issuer has a path, or had it lately, and that
// issuer. Keys with which applications sign themselves are not among them. It fails
// with ErrUnknown.
func (b *Board) Issuer(path string) (key.Name, string, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if of, ok := b.paths[path]; ok && (of.until.IsZero() || b.config.Now().Before(of.until)) {
		return of.key, of.issuer, nil
	}
	return "", "", ErrUnknown
}

// pagesOf returns what is served of a key, by path.
func (b *Board) pagesOf(name key.Name, s *set) (map[string]*Page, error) {
	pages := map[string]*Page{}
	if s.Issuer == "" {
		return pages, nil
	}
	for _, f := range s.Former {
		if err := b.addPages(pages, name, s, f.Issuer, f.Until); err != nil {
			return nil, err
		}
	}
	return pages, b.addPages(pages, name, s, s.Issuer, time.Time{})
}

// addPages adds what is served of an issuer, until it is over.
func (b *Board) addPages(pages map[string]*Page, name key.Name, s *set, issuer string, until time.Time) error {
	base := issuerPath(issuer) + "/.well-known/"
	for endpoint, e := range s.Endpoints {
		if !e.Served {
			continue // a reader that finds nothing keeps nothing
		}
		body := struct {
			Keys []json.RawMessage `json:"keys"`
		}{Keys: []json.RawMessage{}}
		page := &Page{Type: "application/jwk-set+json", Life: s.CacheLife, Public: endpoint == Published, key: name, endpoint: endpoint, seq: s.Seq, from: e.From, until: until}
		for i := range s.Versions {
			if s.Versions[i].At[endpoint].Listed {
				body.Keys = append(body.Keys, s.Versions[i].JWK)
				page.newest = max(page.newest, s.Versions[i].Number)
			}
		}
		if err := page.fill(body); err != nil {
			return err
		}
		if endpoint == Published {
			pages[base+"jwks.json"] = page
		} else {
			pages[base+"jwks/"+endpoint+".json"] = page
		}
	}
	if pages[base+"jwks.json"] == nil {
		return nil
	}
	meta := discovery{Issuer: issuer, Keys: issuer + "/.well-known/jwks.json", ResponseTypes: []string{"id_token"}, SubjectTypes: []string{"public"}, Algorithms: []string{}}
	if !s.External {
		meta.TokenEndpoint, meta.Introspection, meta.Revocation = issuer+TokenPath, issuer+IntrospectPath, issuer+RevokePath
		meta.Grants = grantTypes()
		meta.Authentication = []string{"client_secret_basic", "client_secret_post"}
		if b.config.ClientCertificates {
			meta.Authentication, meta.BoundToTLS = append(meta.Authentication, "tls_client_auth"), true
		}
		meta.ProofAlgorithms = []string{"EdDSA", "ES256", "ES384", "PS256", "RS256"}
	}
	for i := range s.Versions {
		if v := &s.Versions[i]; v.At[Published].Listed && !slices.Contains(meta.Algorithms, v.Algorithm) {
			meta.Algorithms = append(meta.Algorithms, v.Algorithm)
		}
	}
	page := &Page{Type: "application/json", Life: s.CacheLife, Public: true, key: name, until: until}
	if err := page.fill(meta); err != nil {
		return err
	}
	pages[base+"openid-configuration"] = page
	return nil
}

func (p *Page) fill(body any) error {
	var err error
	if p.Body, err = json.Marshal(body); err != nil {
		return err
	}
	sum := sha256.Sum256(p.Body)
	p.ETag = `"` + base64.RawURLEncoding.EncodeToString(sum[:16]) + `"`
	return nil
}

// verifyKeys are public keys by kid.
type verifyKeys map[string]verifyKey

type verifyKey struct {
	webtoken.Key

	version key.Version
}

// keysAt returns the keys that are listed at an endpoint.
func keysAt(s *set, endpoint string) (verifyKeys, error) {
	keys := verifyKeys{}
	for i := range s.Versions {
		v := &s.Versions[i]
		if !v.At[endpoint].Listed {
			continue
		}
		k, err := parseKey(v)
		if err != nil {
			return nil, err
		}
		keys[v.KeyID] = k
	}
	return keys, nil
}

// parseKey reads the public key of a version; the algorithm must be one for it.
func parseKey(v *version) (verifyKey, error) {
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(v.JWK); err != nil {
		return verifyKey{}, fmt.Errorf("its public key is damaged: %w", err)
	}
	if !jwk.IsPublic() || !jwk.Valid() || jwk.KeyID != v.KeyID || jwk.Algorithm != v.Algorithm || v.KeyID == "" {
		return verifyKey{}, fmt.Errorf("its public key is not one with the kid %q for %s", v.KeyID, v.Algorithm)
	}
	if !slices.Contains(webtoken.Algorithms(), jose.SignatureAlgorithm(v.Algorithm)) {
		return verifyKey{}, fmt.Errorf("algorithm %q is none for public keys", v.Algorithm)
	}
	return verifyKey{Key: webtoken.Key{Public: jwk.Key, Algorithm: jose.SignatureAlgorithm(v.Algorithm)}, version: v.Number}, nil
}

// IsPublic reports whether a path could be one that a Board serves.
func IsPublic(path string) bool { return strings.Contains(path, "/.well-known/") }
