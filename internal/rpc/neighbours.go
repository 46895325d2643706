package rpc

import (
	"context"

	"github.com/keyturn/keyturn/internal/authz"
)

// Principal returns who made a request that Authenticate let through, for
// transports beside this one, if the caller may do a. A denial is entered into the
// audit log.
func (s *Service) Principal(ctx context.Context, a authz.Action) (authz.Principal, error) {
	return s.allow(ctx, a, "")
}

// Guard returns a context for a stream of a caller: it ends with the server, and
// when the caller's token is revoked. end must be called.
func (s *Service) Guard(ctx context.Context, p *authz.Principal) (guarded context.Context, end func()) {
	return s.guardIn(ctx, &s.streams, p.ID, s.config.StreamsPerToken)
}
