package server

import (
	"context"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

const (
	// revokedPause is how long after a commit revoked tokens are looked for, revokedPoll
	// how often without having been woken.
	revokedPause = 100 * time.Millisecond
	revokedPoll  = 2 * time.Second
)

// followRevocations ends the streams of tokens that other servers on the same
// store revoke, until ctx ends. While the store does not answer they end within
// a minute after it does.
func (s *Server) followRevocations(ctx context.Context) {
	rev := uint64(0)
	follower := store.Follower{
		Store: s.store, Topic: store.TopicDocs, Pause: revokedPause, Poll: revokedPoll,
		Failed: func(ctx context.Context, err error) {
			s.log.ErrorContext(ctx, "tokens that other servers revoked could not be read; trying again", "error", err)
		},
	}
	follower.Run(ctx, func(ctx context.Context) error {
		ids, next, err := s.identity.Revoked(ctx, rev)
		rev = next
		for _, id := range ids {
			s.service.EndStreams(id)
		}
		return err
	})
}
