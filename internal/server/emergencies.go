package server

import (
	"context"

	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/emergency"
	"github.com/keyturn/keyturn/internal/identity"
)

// readingTokens are the tokens whose roles may get secrets, by reading or presenting;
// whole is false when there may be more than are listed.
func (s *Server) readingTokens(ctx context.Context) (list []emergency.Token, whole bool, err error) {
	all, err := s.identity.List(ctx)
	if err != nil {
		return nil, false, err
	}
	for i := range all {
		t := &all[i]
		role, err := authz.ParseRole(t.Role)
		if err != nil {
			return nil, false, err
		}
		p := authz.Principal{Name: t.Name, Role: role}
		presents := authz.Allow(p, authz.Present, "") == nil
		// A join token is redeemed for one that may.
		if authz.Allow(p, authz.Reveal, "") != nil && !presents && role != authz.Join {
			continue
		}
		list = append(list, emergency.Token{
			ID: t.ID, Name: t.Name, Party: t.Party.ID, Labels: t.Party.Labels, Keys: t.Keys,
			Speaks: role == authz.Agent || role == authz.Gateway, Gateway: role == authz.Gateway,
		})
	}
	return list, len(all) < identity.MaxListed, nil
}
