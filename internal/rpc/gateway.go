package rpc

import (
	"context"
	"fmt"
	"net/netip"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/handout"
	"github.com/keyturn/keyturn/key"
)

// Handouts is what the transport needs to enter hand-outs.
type Handouts interface {
	Enter(ctx context.Context, actor audit.Actor, batch *handout.Batch) error
}

// Gateway implements the gateway API.
type Gateway struct{ *Service }

// Handouts implements GatewayService.
func (g Gateway) Handouts(ctx context.Context, request *keyturnv1.HandoutsRequest) (*keyturnv1.HandoutsResponse, error) {
	principal, err := g.allow(ctx, authz.Forward, "")
	if err != nil {
		return nil, err
	}
	if err := checkPartyID(request.GetPartyId()); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("party_id: %w", err))
	}
	if err := authz.MaySpeakFor(principal, request.GetPartyId()); err != nil {
		return nil, g.deny(ctx, principal, authz.Forward, "", err)
	}
	batch := &handout.Batch{Gateway: request.GetPartyId(), ID: request.GetBatchId()}
	if n := len(request.GetHandouts()); n > handout.MaxBatch {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("handouts: %d are too many, at most %d are allowed", n, handout.MaxBatch))
	}
	covered := map[key.Name]bool{}
	for i, told := range request.GetHandouts() {
		one, err := handoutOf(told)
		if err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("handouts[%d].%w", i, err))
		}
		if !covered[one.Key] {
			if err := authz.Allow(principal, authz.Present, one.Key); err != nil {
				return nil, g.deny(ctx, principal, authz.Forward, one.Key, err)
			}
			covered[one.Key] = true
		}
		batch.Handouts = append(batch.Handouts, one)
	}
	if after, ok := g.handouts.admit(principal.ID, len(batch.Handouts), g.config.Now()); !ok {
		return nil, tooMany(after, "this gateway tells of more hand-outs than can be entered; tell them again later")
	}
	if err := g.config.Handouts.Enter(ctx, actorOf(principal), batch); err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.HandoutsResponse{}, nil
}

// handoutOf reads one hand-out; what it says is judged where it is entered.
func handoutOf(told *keyturnv1.Handout) (handout.Handout, error) {
	one := handout.Handout{
		Party: told.GetPartyId(), Version: key.Version(told.GetVersion()), Epoch: told.GetEpoch(), Token: told.GetTokenId(),
		Count: told.GetCount(), First: told.GetFirst().AsTime(), Last: told.GetLast().AsTime(),
	}
	var err error
	if one.Key, err = key.ParseName(told.GetKey()); err != nil {
		return one, fmt.Errorf("key: %w", err)
	}
	if err := checkPartyID(one.Party); err != nil {
		return one, fmt.Errorf("party_id: %w", err)
	}
	if one.Address, err = netip.ParseAddr(told.GetClientAddress()); err != nil {
		return one, fmt.Errorf("client_address: %q is not an IP address", clip(told.GetClientAddress()))
	}
	one.Address = one.Address.Unmap().WithZone("")
	return one, nil
}
