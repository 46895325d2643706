package rpc

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// ListParties implements ControlService.
func (c Control) ListParties(ctx context.Context, request *keyturnv1.ListPartiesRequest) (*keyturnv1.ListPartiesResponse, error) {
	principal, limit, err := c.allowPage(ctx, request)
	if err != nil {
		return nil, err
	}
	visible := func(name key.Name) bool { return authz.Covers(principal.Keys, name) }
	if request.GetKey() != "" {
		name, err := parseKey("key", request.GetKey())
		if err != nil {
			return nil, err
		}
		if _, err := c.allow(ctx, authz.Read, name); err != nil {
			return nil, err
		}
		visible = func(other key.Name) bool { return other == name }
	}
	response := &keyturnv1.ListPartiesResponse{}
	states := map[key.Name]*rotation.State{}
	for after := request.GetPageToken(); ; {
		parties, err := c.config.Engine.Parties(ctx, after, limit)
		if err != nil {
			return nil, wire(err)
		}
		for i := range parties {
			after = parties[i].ID
			status, err := c.partyStatus(ctx, &parties[i], visible, states)
			if err != nil {
				return nil, wire(err)
			}
			if status == nil {
				continue
			}
			response.Parties = append(response.Parties, status)
			if len(response.GetParties()) == limit {
				response.NextPageToken = after
				return response, nil
			}
		}
		if len(parties) < limit {
			return response, nil
		}
	}
}

// RemoveParty implements ControlService.
func (c Control) RemoveParty(ctx context.Context, request *keyturnv1.RemovePartyRequest) (*keyturnv1.RemovePartyResponse, error) {
	principal, err := c.allow(ctx, authz.Operate, "")
	if err != nil {
		return nil, err
	}
	if err := checkPartyID(request.GetId()); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("id: %w", err))
	}
	if err := checkText("reason", request.GetReason(), maxReason); err != nil {
		return nil, err
	}
	if err := c.coveredParty(ctx, principal, authz.Operate, request.GetId()); err != nil {
		return nil, err
	}
	if err := c.config.Hub.Leave(ctx, actorOf(principal), request.GetId(), request.GetReason()); err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.RemovePartyResponse{}, nil
}
