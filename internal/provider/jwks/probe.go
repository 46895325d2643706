package jwks

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/keyturn/keyturn/provider"
)

const (
	// tryLife is how long a token is valid that is made for a try.
	tryLife = 30 * time.Second
	// trySubject is who it names.
	trySubject = "keyturn-probe"
	// tryBackdate is how far a verifier's clock may be behind.
	tryBackdate = 10 * time.Second
	// maxSet bounds a set and what is read of a verifier's answer, in bytes.
	maxSet = 4 << 20
)

// Inside is the address from which sets are read for a try: it counts as nobody's.
const Inside = "inside"

// Probe implements provider.Verifier. It signs a short-lived token with the version
// and has it verified: by the verifier itself where it has a probe, else with the
// set that it is served, once no cache can hold another one.
func (s *system) Probe(ctx context.Context, call provider.Call, endpoint string, version provider.Version) (provider.Verdict, error) {
	v, err := s.settings.verifier(endpoint)
	if err != nil {
		return 0, err
	}
	if v != nil && v.probe != nil {
		s.provoke(ctx, v)
		return s.present(ctx, v, &version)
	}
	standing, err := s.Board.Standing(ctx, call.Key, endpoint, version.Number)
	if err != nil {
		return 0, fmt.Errorf("standing at %s: %w", endpoint, err)
	}
	if !standing.Arrived {
		return 0, s.later(standing)
	}
	set, err := s.served(ctx, endpoint)
	if err != nil {
		return 0, err
	}
	if set == nil && standing.Listed {
		return 0, fmt.Errorf("%w: the set of %s is not served although it has keys", provider.ErrSilent, endpoint)
	}
	return s.verify(set, &version)
}

// served reads the endpoint's set as its readers do; nil when there is none.
func (s *system) served(ctx context.Context, endpoint string) (*jose.JSONWebKeySet, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.settings.path(endpoint), http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("path of %s: %w", endpoint, err)
	}
	request.RemoteAddr = Inside
	answer := &answer{header: http.Header{}, status: http.StatusOK}
	s.Sets.ServeHTTP(answer, request)
	switch answer.status {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, nil
	default:
		return nil, fmt.Errorf("%w: the set of %s is answered with status %d", provider.ErrSilent, endpoint, answer.status)
	}
	set := &jose.JSONWebKeySet{}
	if err := json.Unmarshal(answer.body.Bytes(), set); err != nil {
		return nil, fmt.Errorf("the set of %s is damaged: %w", endpoint, err)
	}
	return set, nil
}

// answer takes what a handler answers.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) { a.status = status }

func (a *answer) Write(p []byte) (int, error) {
	if a.body.Len()+len(p) > maxSet {
		return 0, errors.New("the set is too large")
	}
	return a.body.Write(p)
}

// verify does what a reader of the set does with a token.
func (s *system) verify(set *jose.JSONWebKeySet, version *provider.Version) (provider.Verdict, error) {
	keyID := version.Material.Attributes[attrKeyID]
	if set == nil || len(set.Key(keyID)) == 0 {
		return provider.Refused, nil
	}
	token, err := s.token(version)
	if err != nil {
		return 0, err
	}
	parsed, err := jwt.ParseSigned(token, algorithms())
	if err != nil {
		return 0, fmt.Errorf("read the token of a try: %w", err)
	}
	var claims jwt.Claims
	if err := parsed.Claims(set, &claims); err != nil {
		return provider.Refused, nil //nolint:nilerr // that is the answer
	}
	if err := claims.ValidateWithLeeway(jwt.Expected{Issuer: s.settings.issuer, Time: s.Now()}, tryBackdate); err != nil {
		return 0, fmt.Errorf("the token of a try is not valid: %w", err)
	}
	return provider.Accepted, nil
}

// token makes one for a try. It is no use of the version.
func (s *system) token(version *provider.Version) (string, error) {
	key, err := private(version)
	if err != nil {
		return "", err
	}
	algorithm, keyID := version.Material.Attributes[attrAlgorithm], version.Material.Attributes[attrKeyID]
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.SignatureAlgorithm(algorithm), Key: jose.JSONWebKey{Key: key, KeyID: keyID}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", fmt.Errorf("sign with %s: %w", version.Number, err)
	}
	now := s.Now()
	claims := jwt.Claims{
		Issuer: s.settings.issuer, Subject: trySubject, ID: rand.Text(), IssuedAt: jwt.NewNumericDate(now),
		NotBefore: jwt.NewNumericDate(now.Add(-tryBackdate)), Expiry: jwt.NewNumericDate(now.Add(min(tryLife, max(s.settings.tokenLife, tryBackdate)))),
	}
	if s.settings.audience != "" {
		claims.Audience = jwt.Audience{s.settings.audience}
	}
	return jwt.Signed(signer).Claims(claims).Serialize()
}

// present shows a token to the verifier itself.
func (s *system) present(ctx context.Context, v *verifier, version *provider.Version) (provider.Verdict, error) {
	token, err := s.token(version)
	if err != nil {
		return 0, err
	}
	status, err := s.call(ctx, v, token)
	switch {
	case err != nil:
		return 0, err
	case slices.Contains(v.probe.accepted, status):
		return provider.Accepted, nil
	case slices.Contains(v.probe.refused, status):
		return provider.Refused, nil
	}
	return 0, provider.Hint(fmt.Errorf("verifier %s answers with status %d, which says neither", v.name, status),
		"name the statuses that do in the verifier's probe, as accepted and refused")
}

func (s *system) call(ctx context.Context, v *verifier, token string) (int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, v.probe.url.String(), http.NoBody)
	if err != nil {
		return 0, fmt.Errorf("try verifier %s: %w", v.name, err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("User-Agent", trySubject)
	response, err := s.clients[v.name].Do(request)
	if err != nil {
		return 0, fmt.Errorf("%w: try verifier %s: %w", provider.ErrSilent, v.name, err)
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10)) // so that the connection may be used again
	return response.StatusCode, nil
}

// Preflight implements provider.Preflighter: verifiers that can be tried must refuse
// a token that no key of the issuer signed; else a try would prove nothing.
func (s *system) Preflight(ctx context.Context, _ provider.Call, _ []provider.Version) ([]provider.Finding, error) {
	var problems []error
	var findings []provider.Finding
	for i := range s.settings.verifiers {
		v := &s.settings.verifiers[i]
		if v.probe == nil {
			findings = append(findings, provider.Finding{
				Code: "verifier-untried", Message: fmt.Sprintf("verifier %s cannot be tried: what it accepts is told by the set it fetched", v.name),
				Hint: "give it a probe: a URL that answers 401 to a token that it does not accept",
			})
			continue
		}
		problems = append(problems, provider.At(v.name, s.checkProbe(ctx, v)))
	}
	if s.settings.external {
		findings = append(findings, provider.Finding{
			Code: "use-unmeasured", Message: "applications sign with the key themselves, so that Keyturn cannot see when the last token of a version expires",
			Hint: "let Keyturn sign, or see docs/reference/provider-jwks.md for how to go on",
		})
	}
	return findings, errors.Join(problems...)
}

func (s *system) checkProbe(ctx context.Context, v *verifier) error {
	stranger, err := s.newStranger()
	if err != nil {
		return err
	}
	verdict, err := s.present(ctx, v, stranger)
	if err != nil || verdict == provider.Refused {
		return err
	}
	return provider.Permanent(fmt.Errorf("the probe of verifier %s lets in a token that no published key has signed", v.name),
		"name a URL as its probe that verifies tokens, and the status of a refusal as refused")
}

// newStranger returns a version that nobody knows. Its key pair is made once: only
// its name is new.
func (s *system) newStranger() (*provider.Version, error) {
	material, err := s.stranger()
	if err != nil {
		return nil, err
	}
	material.Attributes = maps.Clone(material.Attributes)
	material.Attributes[attrKeyID] = rand.Text()
	return &provider.Version{Material: material}, nil
}
