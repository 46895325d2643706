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
