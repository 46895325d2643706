package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/broker"
	"github.com/keyturn/keyturn/internal/compat/apikeys"
	"github.com/keyturn/keyturn/internal/compat/oauth"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/grant"
	"github.com/keyturn/keyturn/internal/identity"
	"github.com/keyturn/keyturn/internal/ingress"
	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// newBroker makes the service that gives tokens; the engine must be there.
func (s *Server) newBroker(keys keeper.Keeper) *broker.Broker {
	return broker.New(broker.Config{
		Store: s.store, Alone: s.config.Store.Postgres == nil, Keeper: keys, Journal: s.engine, Signer: s.tokens.signer, Verifier: s.tokens.board, Logger: s.log, Now: s.clock.Now,
		Grants: s.grants, Client: s.clientOf, Stale: s.config.Tokens.Outage,
		Issued:  func(source grant.Source, result string) { s.telemetry.TokensIssued(source.String(), result).Inc() },
		Revoked: func() { s.telemetry.TokensRevoked().Inc() }, Refused: s.observeRefused,
	})
}

// grants returns the rules of a signing key as it was applied.
func (s *Server) grants(ctx context.Context, name key.Name) (any, error) {
	view, err := s.engine.Key(ctx, name)
	if errors.Is(err, engine.ErrNotFound) {
		return nil, nil // it was deleted: nobody is granted anything
	}
	if err != nil {
		return nil, err
	}
	return view.Resource.Spec.Config["grants"], nil
}

// clientOf authenticates the client of an API key, or of a token of Keyturn.
func (s *Server) clientOf(ctx context.Context, text secret.Value, address string) (grant.Proven, error) {
	verdict, unsure := s.apiKeys.Verify(text.RevealString(), apikey.Caller{Address: address, Application: "token"})
	if unsure == nil {
		return grant.Proven{
			Source: grant.APIKey, Subject: string(verdict.Key), Names: []string{string(verdict.Key)}, Scopes: append([]string{}, verdict.Scopes...),
		}, nil
	}
	if errors.Is(unsure, apikey.ErrLimited) {
		return grant.Proven{Source: grant.APIKey}, fmt.Errorf("%w: %w", broker.ErrAway, unsure)
	}
	caller, err := s.identity.Authenticate(ctx, text)
	switch {
	case err == nil:
		return grant.Proven{Source: grant.Token, Subject: caller.Name, Names: []string{caller.Name}}, nil
	case !errors.Is(err, identity.ErrUnauthenticated), errors.Is(unsure, apikey.ErrUnsure) && keytable.Check([]byte(text.RevealString())) == nil:
		return grant.Proven{}, fmt.Errorf("%w: %w", broker.ErrAway, errors.Join(err, unsure))
	}
	return grant.Proven{}, fmt.Errorf("%w: %w", broker.ErrClient, err)
}

// bearer authenticates a token of Keyturn and asks whether it may do a.
func (s *Server) bearer(ctx context.Context, text secret.Value, a authz.Action, name key.Name) (authz.Principal, error) {
	caller, err := s.identity.Authenticate(ctx, text)
	if errors.Is(err, identity.ErrUnauthenticated) {
		return caller.Principal, fmt.Errorf("%w: %w", broker.ErrClient, err)
	}
	if err != nil {
		return caller.Principal, fmt.Errorf("%w: %w", broker.ErrAway, err)
	}
	if err := authz.Allow(caller.Principal, a, name); err != nil {
		return caller.Principal, fmt.Errorf("%w: %w", broker.ErrGrant, err)
	}
	return caller.Principal, nil
}

// revoker says who may revoke what: operators all tokens of a key, clients their own.
func (s *Server) revoker(ctx context.Context, text secret.Value, name key.Name, address string) (actor audit.Actor, client string, err error) {
	if verdict, err := s.apiKeys.Verify(text.RevealString(), apikey.Caller{Address: address, Application: "token"}); err == nil {
		return apikeys.ActorOf(verdict.Key), string(verdict.Key), nil
	}
	principal, err := s.bearer(ctx, text, authz.Operate, name)
	return audit.Actor{ID: principal.Name, Kind: "user"}, "", err
}

// brokerRoutes answers at the issuers' endpoints before everything else.
func (s *Server) brokerRoutes(gate *ingress.Gate, next http.Handler) http.Handler {
	rate := ingress.NewAddressRate(ingress.AddressRateConfig{
		Rate: ingress.Rate{PerSecond: s.config.Tokens.IssuePerSecond, Burst: max(1, int(2*s.config.Tokens.IssuePerSecond))},
		What: "requests for tokens; tokens.issuePerSecond says how many an address may make", Now: s.clock.Now, Tally: s.tally,
	})
	handler := gate.Wrap(s.service.Forwarded(oauth.New(oauth.Config{
		Broker: s.broker, Issuers: s.tokens.board,
		Inspector: func(ctx context.Context, text secret.Value, name key.Name) error {
			_, err := s.bearer(ctx, text, authz.Verify, name)
			return err
		},
		Revoker: s.revoker, Reported: s.observeReported,
		Admit: rate.Admit, Blocked: gate.Blocked, Refused: gate.Refused,
	}), gate))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if oauth.Is(r.URL.Path) {
			handler.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}
