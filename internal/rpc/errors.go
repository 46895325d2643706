package rpc

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/handout"
	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/internal/identity"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// codes maps errors to codes; the first that matches counts.
func codes() []struct {
	err  error
	code connect.Code
} {
	return []struct {
		err  error
		code connect.Code
	}{
		{identity.ErrUnauthenticated, connect.CodeUnauthenticated},
		{authz.ErrDenied, connect.CodePermissionDenied},
		{engine.ErrNotFound, connect.CodeNotFound},
		{identity.ErrNotFound, connect.CodeNotFound},
		{rotation.ErrUnknown, connect.CodeNotFound},
		{engine.ErrInvalid, connect.CodeInvalidArgument},
		{identity.ErrInvalid, connect.CodeInvalidArgument},
		{handout.ErrInvalid, connect.CodeInvalidArgument},
		{rotation.ErrInvalid, connect.CodeInvalidArgument},
		{key.ErrName, connect.CodeInvalidArgument},
		{key.ErrRotationID, connect.CodeInvalidArgument},
		{authz.ErrPattern, connect.CodeInvalidArgument},
		{engine.ErrState, connect.CodeFailedPrecondition},
		{rotation.ErrBusy, connect.CodeFailedPrecondition},
		{rotation.ErrPhase, connect.CodeFailedPrecondition},
		{rotation.ErrCompromised, connect.CodeFailedPrecondition},
		{rotation.ErrRestored, connect.CodeFailedPrecondition},
		{rotation.ErrLockOut, connect.CodeFailedPrecondition},
		{rotation.ErrStale, connect.CodeFailedPrecondition},
		{hub.ErrReplaced, connect.CodeAborted},
		{hub.ErrFull, connect.CodeResourceExhausted},
		{hub.ErrStopped, connect.CodeUnavailable},
		{context.DeadlineExceeded, connect.CodeDeadlineExceeded},
		{context.Canceled, connect.CodeCanceled},
	}
}

// wire turns an error into one with a code. What is none of the caller's doing
// is unavailable: it may be tried again.
func wire(err error) error {
	if err == nil {
		return nil
	}
	var already *connect.Error
	if errors.As(err, &already) {
		return err
	}
	for _, c := range codes() {
		if errors.Is(err, c.err) {
			return connect.NewError(c.code, err)
		}
	}
	return connect.NewError(connect.CodeUnavailable, err)
}
