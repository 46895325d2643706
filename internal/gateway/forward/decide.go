package forward

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyturn/keyturn/client/apikeycheck"
	"github.com/keyturn/keyturn/client/tokencheck"
	"github.com/keyturn/keyturn/internal/authz"
)

// asked is what a proxy tells of a request.
type asked struct {
	values headers
	// address is where the client is; target what it wants, if that is known.
	address string
	target  func() (target, bool)
}

// decision is what is answered.
type decision struct {
	outcome Outcome
	kind    Kind
	// dpop: the client uses that scheme, and nonce is one for its next proof.
	dpop  bool
	nonce string
	// retry is in what time it may try again.
	retry time.Duration

	// Whose credential it is, if it is admitted.
	key, version, client, subject string
	scopes                        []string
}

// decide is where it is decided whether a request is let in.
func (s *Service) decide(ctx context.Context, g *gate, a *asked) decision {
	shown, problem := readShown(a.values)
	if problem != 0 {
		return decision{outcome: problem}
	}
	// An API key has no dot, and every token two.
	if isKey := shown.header || !shown.dpop && (g.tokens == nil || len(g.Keys) > 0 && !strings.Contains(shown.text, ".")); isKey {
		return s.decideKey(g, &shown, a)
	}
	return s.decideToken(ctx, g, &shown, a)
}

func (s *Service) decideKey(g *gate, shown *shown, a *asked) decision {
	d := decision{kind: APIKey, outcome: Refused}
	if len(g.Keys) == 0 {
		return d
	}
	result, err := s.config.Keys.Check(shown.text, a.address)
	limited := errors.Is(err, apikeycheck.ErrLimited)
	switch {
	case errors.Is(err, apikeycheck.ErrRefused):
		return d
	case err != nil && !limited:
		d.outcome, d.retry = Unsure, unsureRetry
		return d
	case !g.every && !authz.Covers(g.Keys, result.Key):
		d.outcome = Outside
	case !hasAll(result.Scopes, g.Scopes):
		d.outcome = Lacking
	case limited:
		d.outcome, d.retry = Limited, result.Retry
	default:
		d.outcome, d.client, d.scopes = Admitted, result.Client, result.Scopes
		d.key, d.version = string(result.Key), strconv.FormatUint(uint64(result.Version), 10)
	}
	return d
}

// unsureRetry is when somebody of whom nothing can be told is to try again.
const unsureRetry = 2 * time.Second

func (s *Service) decideToken(ctx context.Context, g *gate, shown *shown, a *asked) decision {
	d := decision{kind: AccessToken, outcome: Refused, dpop: shown.dpop}
	if g.tokens == nil {
		return d
	}
	check := &tokencheck.Shown{Token: shown.text, DPoP: shown.dpop, Proofs: shown.proofs, Address: a.address}
	if shown.dpop {
		t, ok := a.target()
		if !ok {
			s.said.warn(ctx, "proof "+g.name, "a token that is bound to a key (DPoP) was refused: the proxy does not tell the method and URL of the client's request as requestURL of the gate says",
				"gate", g.name, "requestURL", g.RequestURL)
			d.outcome = Unproven
			return d
		}
		check.Method, check.URL = t.method, t.url
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	claims, err := g.tokens.Check(ctx, check)
	switch {
	case errors.Is(err, tokencheck.ErrNonce):
		d.outcome, d.nonce = WantsNonce, g.tokens.Nonce()
	case errors.Is(err, tokencheck.ErrUnsure):
		d.outcome, d.retry = Unsure, unsureRetry
	case errors.Is(err, tokencheck.ErrRefused):
	case err != nil:
		d.outcome, d.retry = Unsure, unsureRetry
	case len(g.Clients) > 0 && !slices.Contains(g.Clients, claims.Client):
		d.outcome = Outside
	case !hasAll(claims.Scopes, g.Scopes):
		d.outcome = Lacking
	default:
		d.outcome, d.client, d.subject, d.scopes = Admitted, claims.Client, claims.Subject, claims.Scopes
	}
	return d
}

func hasAll(has, needed []string) bool {
	for _, scope := range needed {
		if !slices.Contains(has, scope) {
			return false
		}
	}
	return true
}
