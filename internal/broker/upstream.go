package broker

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	strict "github.com/go-jose/go-jose/v4/json"

	"github.com/keyturn/keyturn/internal/grant"
	"github.com/keyturn/keyturn/internal/webtoken"
)

const (
	// maxKeySet bounds what an issuer answers, in bytes, and maxKeys its keys.
	maxKeySet = 1 << 20
	maxKeys   = 100
	// fetchTime bounds one fetch of an issuer's keys.
	fetchTime = 5 * time.Second
	// fetchPause is the least time between two: unknown keys in tokens must not make
	// this server flood an issuer.
	fetchPause = 5 * time.Second
	// maxUpstreams bounds the issuers that are remembered.
	maxUpstreams = 1000
)

// algorithms are those of other issuers' tokens.
func algorithms() []string {
	var names []string
	for _, a := range webtoken.Algorithms() {
		names = append(names, string(a))
	}
	return names
}

// upstreamOf is how an issuer is reached.
type upstreamOf struct{ issuer, keys, ca string }

type upstreams struct {
	mu    sync.Mutex
	known map[upstreamOf]*upstream
}

// upstream is another issuer.
type upstream struct {
	of     upstreamOf
	client *http.Client

	mu      sync.Mutex
	keys    keySet
	fetched time.Time
	tried   time.Time
	failure error
}

// keySet are the keys of an issuer, and their names.
type keySet struct {
	public []crypto.PublicKey
	names  map[string]bool
}

func boundedClient(roots *x509.CertPool) *http.Client {
	return &http.Client{
		Timeout: fetchTime,
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true, MaxResponseHeaderBytes: 64 << 10,
		},
		// Where the keys are is said by the metadata, not by a redirect.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// upstreamFor returns the issuer of a rule.
func (b *Broker) upstreamFor(r *grant.Rule) (*upstream, error) {
	of := upstreamOf{r.Issuer, r.Keys, r.CA}
	b.upstreams.mu.Lock()
	defer b.upstreams.mu.Unlock()
	if u, ok := b.upstreams.known[of]; ok {
		return u, nil
	}
	var roots *x509.CertPool
	if r.CA != "" {
		var err error
		if roots, err = readRoots(r.CA); err != nil {
			return nil, err
		}
	}
	if len(b.upstreams.known) >= maxUpstreams {
		clear(b.upstreams.known)
	}
	u := &upstream{of: of, client: b.config.HTTP(roots)}
	b.upstreams.known[of] = u
	return u, nil
}

func readRoots(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return roots, nil
}

// current returns the issuer's keys. again asks for those that it has now; asked says
// whether it was.
func (u *upstream) current(ctx context.Context, now time.Time, fresh, stale time.Duration, again bool) (keys keySet, asked bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	age := now.Sub(u.fetched)
	old := u.fetched.IsZero() || age >= fresh || age < 0
	if (old || again) && (u.tried.IsZero() || now.Sub(u.tried) >= fetchPause || now.Before(u.tried)) {
		u.tried = now
		// Whoever came first may go: the others wait for its fetch.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTime)
		keys, err := u.fetch(ctx)
		cancel()
		if u.failure = err; err == nil {
			u.keys, u.fetched = keys, now
			return keys, true, nil
		}
	}
	if u.keys.public != nil && now.Sub(u.fetched) < stale {
		return u.keys, false, nil
	}
	return keySet{}, false, fmt.Errorf("%w: the keys of %s: %w", ErrAway, u.of.issuer, errors.Join(u.failure, errors.New("they were not to be had")))
}

// fetch gets the keys. The metadata must name the issuer itself (OpenID Connect
// Discovery 1.0, section 4.3).
func (u *upstream) fetch(ctx context.Context) (keySet, error) {
	where := u.of.keys
	if where == "" {
		var meta struct {
			Issuer string `json:"issuer"`
			Keys   string `json:"jwks_uri"`
		}
		if err := u.get(ctx, strings.TrimSuffix(u.of.issuer, "/")+"/.well-known/openid-configuration", &meta); err != nil {
			return keySet{}, err
		}
		if meta.Issuer != u.of.issuer {
			return keySet{}, errors.New("its metadata is that of another issuer")
		}
		if !strings.HasPrefix(meta.Keys, "https://") && !strings.HasPrefix(u.of.issuer, "http://") {
			return keySet{}, errors.New("its metadata names keys in plain text")
		}
		where = meta.Keys
	}
	var set jose.JSONWebKeySet
	if err := u.get(ctx, where, &set); err != nil {
		return keySet{}, err
	}
	if len(set.Keys) > maxKeys {
		return keySet{}, fmt.Errorf("it has %d keys, at most %d are read", len(set.Keys), maxKeys)
	}
	keys := keySet{names: map[string]bool{}}
	for i := range set.Keys {
		// Shared secrets and keys for encryption verify nothing.
		if k := &set.Keys[i]; k.IsPublic() && k.Valid() && (k.Use == "" || k.Use == "sig") {
			keys.public, keys.names[k.KeyID] = append(keys.public, k.Key), true
		}
	}
	if len(keys.public) == 0 {
		return keySet{}, errors.New("its set has no key for signatures")
	}
	return keys, nil
}

func (u *upstream) get(ctx context.Context, where string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, where, http.NoBody)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", "application/json")
	response, err := u.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", where, response.Status)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxKeySet+1))
	if err != nil {
		return err
	}
	if len(body) > maxKeySet {
		return fmt.Errorf("%s answers more than %d bytes", where, maxKeySet)
	}
	return json.Unmarshal(body, into)
}

// errSubject: a subject token does not verify. Why stays here.
func errSubject(why string) error {
	return fmt.Errorf("%w: the subject token is not accepted (%s)", ErrRequest, why)
}

// said is what a token says of itself. Nothing of it is believed.
type said struct{ issuer, keyID string }

func saidBy(compact string) (said, error) {
	shown, err := webtoken.Parse(compact)
	if err != nil {
		return said{}, errSubject(err.Error())
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	if json.Unmarshal(shown.Unproven(), &claims) != nil || claims.Issuer == "" {
		return said{}, errSubject("it does not say who made it")
	}
	return said{claims.Issuer, shown.Header().KeyID}, nil
}

// subject verifies a token of another issuer.
func (b *Broker) subject(ctx context.Context, all []grant.Rule, compact string) (grant.Proven, error) {
	about, err := saidBy(compact)
	if err != nil {
		return grant.Proven{}, err
	}
	tried := map[upstreamOf]bool{}
	err = errSubject("no rule names its issuer")
	for i := range all {
		r := &all[i]
		if r.Source != grant.Federated || r.Issuer != about.issuer || tried[upstreamOf{r.Issuer, r.Keys, r.CA}] {
			continue
		}
		tried[upstreamOf{r.Issuer, r.Keys, r.CA}] = true
		var proven grant.Proven
		if proven, err = b.verifyWith(ctx, r, about.keyID, compact); err == nil {
			return proven, nil
		}
	}
	return grant.Proven{}, err
}

func (b *Broker) verifyWith(ctx context.Context, r *grant.Rule, keyID, compact string) (grant.Proven, error) {
	u, err := b.upstreamFor(r)
	if err != nil {
		return grant.Proven{}, fmt.Errorf("%w: %w", ErrAway, err)
	}
	now := b.config.Now()
	for _, again := range []bool{false, true} {
		keys, asked, err := u.current(ctx, now, b.config.KeysFresh, b.config.KeysStale, again)
		if err != nil {
			return grant.Proven{}, err
		}
		if unknown := keyID != "" && !keys.names[keyID]; unknown && !again {
			continue
		} else if unknown && !asked {
			// The issuer was asked a moment ago, and may have a new key since.
			return grant.Proven{}, fmt.Errorf("%w: %s is asked for its keys again in %v at most", ErrAway, r.Issuer, fetchPause)
		}
		verifier := oidc.NewVerifier(r.Issuer, &oidc.StaticKeySet{PublicKeys: keys.public}, &oidc.Config{
			SupportedSigningAlgs: algorithms(), Now: func() time.Time { return now.Add(-b.config.Skew) },
			SkipClientIDCheck: true, // every rule has an audience of its own
		})
		verified, err := verifier.Verify(ctx, compact)
		if err == nil {
			return b.provenBy(verified, now)
		}
		var expired *oidc.TokenExpiredError
		if errors.As(err, &expired) {
			return grant.Proven{}, errSubject("it has expired")
		}
	}
	return grant.Proven{}, errSubject("it does not verify with its issuer's keys")
}

// maxAhead is how long a subject token may live: one that lives for ever is a
// stored credential, no identity of a job.
const maxAhead = 25 * time.Hour

func (b *Broker) provenBy(t *oidc.IDToken, now time.Time) (grant.Proven, error) {
	var payload json.RawMessage
	if err := t.Claims(&payload); err != nil {
		return grant.Proven{}, errSubject("its claims cannot be read")
	}
	p := grant.Proven{Source: grant.Federated, Subject: t.Subject, Issuer: t.Issuer, Audience: t.Audience, Expires: t.Expiry}
	if err := strict.Unmarshal(payload, &p.Claims); err != nil {
		return grant.Proven{}, errSubject("a claim is there twice")
	}
	switch {
	case !plain(t.Subject):
		return grant.Proven{}, errSubject("it has no subject, or none that can be printed")
	case t.IssuedAt.After(now.Add(b.config.Skew)):
		return grant.Proven{}, errSubject("it was issued in the future")
	case t.Expiry.Sub(now) > maxAhead:
		return grant.Proven{}, errSubject("it lives too long")
	}
	p.ID, _ = p.Claims["jti"].(string)
	return p, nil
}
