package rpc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"time"

	"connectrpc.com/connect"

	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/forwarded"
	"github.com/keyturn/keyturn/internal/identity"
)

type gatewayKey struct{}

// vouchTime bounds how long a gateway's token may take to be checked.
const vouchTime = 10 * time.Second

// Forwarded wraps everything that clients reach. A request that a good gateway sends
// on is one from the client's address from here on: for limits, records and audit
// entries; its connection, which others share, is the gateway's. What is not vouched
// for is refused: it was either meant to deceive or comes from a gateway that is set up
// wrongly, and then every address in the log would be the gateway's without anybody
// noticing. Bad tokens of gateways count against the address of the connection.
func (s *Service) Forwarded(next http.Handler, gate Gate) http.Handler {
	writer := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claim, ok, err := forwarded.Parse(r.Header)
		if err != nil {
			_ = writer.Write(w, r, refuseGateway(connect.NewError(connect.CodeInvalidArgument, err))) // the caller is gone if this fails
			return
		}
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		gateway, err := s.vouches(r, gate, &claim)
		if err != nil {
			_ = writer.Write(w, r, err) // the caller is gone if this fails
			return
		}
		// Nobody needs them from here on.
		r.Header.Del(forwarded.Gateway)
		r.Header.Del(forwarded.ClientAddress)
		r = r.WithContext(context.WithValue(r.Context(), gatewayKey{}, gateway))
		r.RemoteAddr = netip.AddrPortFrom(claim.Client, 0).String()
		next.ServeHTTP(w, r)
	})
}

// vouches returns the gateway whose token a request carries, or why it is refused.
func (s *Service) vouches(r *http.Request, gate Gate, claim *forwarded.Claim) (identity.Caller, error) {
	ctx, cancel := context.WithTimeout(r.Context(), vouchTime)
	defer cancel()
	if gate.Blocked(r) && !s.config.Identity.Recent(claim.Token) {
		return identity.Caller{}, refuseGateway(errBlocked())
	}
	gateway, err := s.config.Identity.Authenticate(ctx, claim.Token)
	if errors.Is(err, identity.ErrUnauthenticated) {
		gate.Refused(r)
		return gateway, errGateway(err)
	}
	if err != nil {
		return gateway, wire(err)
	}
	if err := authz.Allow(gateway.Principal, authz.Forward, ""); err != nil {
		err = fmt.Errorf("%s: %w; a gateway needs one of the role gateway", forwarded.Gateway, err)
		return gateway, refuseGateway(s.deny(ctx, gateway.Principal, authz.Forward, "", err))
	}
	return gateway, nil
}

// errGateway says that it is the gateway's own token that is not good.
func errGateway(err error) error {
	return refuseGateway(connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("%s: %w; give the gateway another token, of the role gateway", forwarded.Gateway, err)))
}

// refuseGateway marks an error as one of the gateway, and not of its client.
func refuseGateway(err error) error {
	var refusal *connect.Error
	if errors.As(err, &refusal) && refusal.Code() != connect.CodeUnavailable {
		refusal.Meta().Set(forwarded.Gateway, forwarded.Refused)
	}
	return err
}

// gatewayOf returns the gateway through which a request came; ok is false when it came
// by itself.
func gatewayOf(ctx context.Context) (gateway identity.Caller, ok bool) {
	gateway, ok = ctx.Value(gatewayKey{}).(identity.Caller)
	return gateway, ok
}

// through returns a context that ends, too, when the token of the gateway through
// which a stream came is revoked or expires. end must be called.
func (s *Service) through(ctx context.Context) (_ context.Context, end func()) {
	gateway, ok := gatewayOf(ctx)
	if !ok {
		return ctx, func() {}
	}
	ctx, leave := s.forwarded.begin(ctx, gateway.ID, math.MaxInt) // its clients' tokens are what bounds them
	if gateway.Expires.IsZero() {
		return ctx, leave
	}
	ctx, stop := context.WithTimeoutCause(ctx, gateway.Expires.Sub(s.config.Now()), errGateway(gateway.Expired()))
	return ctx, func() { stop(); leave() }
}

// check fails with the error of a stream when its token is not good any more, or that
// of the gateway through which it came. While the store does not answer, what is known
// holds.
func (s *Service) check(ctx context.Context, token string) error {
	if err := s.config.Identity.Check(ctx, token); errors.Is(err, identity.ErrUnauthenticated) {
		return wire(err)
	}
	if gateway, ok := gatewayOf(ctx); ok {
		if err := s.config.Identity.Check(ctx, gateway.ID); errors.Is(err, identity.ErrUnauthenticated) {
			return errGateway(err)
		}
	}
	return nil
}
