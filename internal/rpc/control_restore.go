package rpc

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
)

// Reconcile implements ControlService.
func (c Control) Reconcile(ctx context.Context, request *keyturnv1.ReconcileRequest) (*keyturnv1.ReconcileResponse, error) {
	name, principal, err := c.allowKey(ctx, authz.Operate, request.GetName())
	if err != nil {
		return nil, err
	}
	if err := checkText("reason", request.GetReason(), maxReason); err != nil {
		return nil, err
	}
	asked := engine.ReconcileRequest{Key: name, LockOut: request.GetLockOut(), Reason: request.GetReason()}
	if how := request.GetHow(); how != "" {
		if err := asked.How.UnmarshalText([]byte(how)); err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("how: %q is unknown; use as-remembered, as-found or replace", how))
		}
	}
	if asked.LockOut && asked.How != rotation.AsRemembered {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("lock_out: only as-remembered can lock anybody out; leave it out"))
	}
	id, err := c.config.Engine.Reconcile(ctx, actorOf(principal), asked)
	if err != nil {
		return nil, wire(err)
	}
	response := &keyturnv1.ReconcileResponse{}
	if !id.IsZero() {
		response.RotationId = id.String()
	}
	return response, nil
}
