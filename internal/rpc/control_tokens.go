package rpc

import (
	"context"
	"fmt"
	"strings"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/identity"
	"github.com/keyturn/keyturn/key"
)

// CreateToken implements ControlService.
func (c Control) CreateToken(ctx context.Context, request *keyturnv1.CreateTokenRequest) (*keyturnv1.CreateTokenResponse, error) {
	principal, err := c.allow(ctx, authz.Administer, "")
	if err != nil {
		return nil, err
	}
	role, err := authz.ParseRole(request.GetRole())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("role: %w", err))
	}
	if err := allWithinReach(principal, request.GetKeys()); err != nil {
		return nil, c.deny(ctx, principal, authz.Administer, "", err)
	}
	wanted := identity.Request{Name: request.GetName(), Role: role, Keys: request.GetKeys(), Lifetime: request.GetLifetime().AsDuration()}
	if request.GetParty() != nil {
		party, err := partyOf(request.GetParty(), true)
		if err != nil {
			return nil, err
		}
		wanted.Party = identity.PartyShape{ID: party.ID, Kind: party.Kind, Region: party.Region, Labels: party.Labels}
	}
	token, text, err := c.config.Identity.Issue(ctx, actorOf(principal), wanted)
	if err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.CreateTokenResponse{Id: token.ID, Token: text.RevealString(), ExpiresAt: timestamp(token.Expires)}, nil
}

func allWithinReach(p authz.Principal, patterns []string) error {
	for _, pattern := range patterns {
		if err := withinReach(p, pattern); err != nil {
			return err
		}
	}
	return nil
}

// withinReach keeps an admin of some keys from making tokens for others.
func withinReach(p authz.Principal, pattern string) error {
	if !strings.Contains(pattern, "*") && authz.Covers(p.Keys, key.Name(pattern)) {
		return nil
	}
	for _, own := range p.Keys {
		if own == "**" || own == pattern {
			return nil
		}
		if prefix, ok := strings.CutSuffix(own, "/**"); ok && !strings.Contains(prefix, "*") && strings.HasPrefix(pattern, prefix+"/") {
			return nil
		}
	}
	return fmt.Errorf("%w: your token covers %s, and so does not reach one for %s", authz.ErrDenied, strings.Join(p.Keys, ", "), pattern)
}

// ListTokens implements ControlService.
func (c Control) ListTokens(ctx context.Context, _ *keyturnv1.ListTokensRequest) (*keyturnv1.ListTokensResponse, error) {
	principal, err := c.allow(ctx, authz.Administer, "")
	if err != nil {
		return nil, err
	}
	tokens, err := c.config.Identity.List(ctx)
	if err != nil {
		return nil, wire(err)
	}
	response := &keyturnv1.ListTokensResponse{}
	for i := range tokens {
		t := &tokens[i]
		if allWithinReach(principal, t.Keys) != nil {
			continue
		}
		response.Tokens = append(response.Tokens, &keyturnv1.Token{
			Id: t.ID, Name: t.Name, Role: t.Role, Keys: t.Keys,
			CreatedAt: timestamp(t.Created), ExpiresAt: timestamp(t.Expires), LastUsedAt: timestamp(t.LastUsed),
		})
	}
	return response, nil
}

// RevokeToken implements ControlService.
func (c Control) RevokeToken(ctx context.Context, request *keyturnv1.RevokeTokenRequest) (*keyturnv1.RevokeTokenResponse, error) {
	principal, err := c.allow(ctx, authz.Administer, "")
	if err != nil {
		return nil, err
	}
	token, err := c.config.Identity.Find(ctx, request.GetId())
	if err != nil {
		return nil, wire(err)
	}
	if err := allWithinReach(principal, token.Keys); err != nil {
		return nil, c.deny(ctx, principal, authz.Administer, "", err)
	}
	if err := c.config.Identity.Revoke(ctx, actorOf(principal), token.ID); err != nil {
		return nil, wire(err)
	}
	c.EndStreams(token.ID)
	return &keyturnv1.RevokeTokenResponse{}, nil
}
