package server

import (
	"context"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

const (
	// revokedPause is the least time between two looks for revoked tokens,
	// revokedPoll how often they are looked for without having been woken.
	revokedPause = 100 * time.Millisecond
	revokedPoll  = 2 * time.Second
)

// followRevocations ends the streams of tokens that other servers on the same
// store revoke, until ctx ends. While the store does not answer they end within
// a minute after it does.
func (s *Server) followRevocations(ctx context.Context) {
	woken := s.store.Watch(ctx, store.TopicDocs)
	poll := time.NewTicker(revokedPoll)
	defer poll.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	rev, failing := uint64(0), false
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		ids, next, err := s.identity.Revoked(ctx, rev)
		if err != nil && ctx.Err() == nil && !failing {
			s.log.ErrorContext(ctx, "tokens that other servers revoked could not be read; trying again", "error", err)
		}
		rev, failing = next, err != nil
		for _, id := range ids {
			s.service.EndStreams(id)
		}
		select {
		case <-ctx.Done():
			return
		case <-woken:
		case <-poll.C:
		}
		pause.Reset(revokedPause)
	}
}
