package rpc

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/internal/identity"
)

// streams are the calls that outlive their authentication, by token.
type streams struct {
	mu      sync.Mutex
	open    map[string]map[*stream]struct{}
	stopped bool
}

type stream struct{ cancel context.CancelCauseFunc }

// begin returns a context that ends, with the reason as its cause, when the
// token is revoked, has so many streams already, or the server stops. end must be
// called.
func (s *streams) begin(ctx context.Context, token string, most int) (_ context.Context, end func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	one := &stream{cancel: cancel}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open[token]) >= most {
		cancel(tooMany(10*time.Second, fmt.Sprintf("this token has %d streams open; end some, or give each party a token of its own", most)))
		return ctx, func() {}
	}
	if s.stopped {
		cancel(hub.ErrStopped)
		return ctx, func() {}
	}
	if s.open == nil {
		s.open = map[string]map[*stream]struct{}{}
	}
	if s.open[token] == nil {
		s.open[token] = map[*stream]struct{}{}
	}
	s.open[token][one] = struct{}{}
	return ctx, func() {
		cancel(context.Canceled)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open[token], one)
		if len(s.open[token]) == 0 {
			delete(s.open, token)
		}
	}
}

// revoke ends the streams of a token, for a reason.
func (s *streams) revoke(token string, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for one := range s.open[token] {
		one.cancel(why)
	}
}

// EndStreams ends the streams of a token that was revoked, here or at another
// server on the same store; those of a gateway are all that came through it.
func (s *Service) EndStreams(token string) {
	s.streams.revoke(token, identity.ErrUnauthenticated)
	s.watches.revoke(token, identity.ErrUnauthenticated)
	s.forwarded.revoke(token, errGateway(identity.ErrUnauthenticated))
}

// Stop ends all streams, now and from now on; their callers are told to come back.
func (s *Service) Stop() {
	s.streams.stop()
	s.watches.stop()
	s.forwarded.stop()
}

func (s *streams) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	for _, list := range s.open {
		for one := range list {
			one.cancel(hub.ErrStopped)
		}
	}
}

// maxWatches is how many rotations one token may watch at the same time.
const maxWatches = 200

// begin is that of list; the context ends as well when the caller's token expires, and
// with that of the gateway through which it came. A clock that is set meanwhile is
// noticed at the next heartbeat.
func (s *Service) begin(ctx context.Context, list *streams, token string, most int) (context.Context, func()) {
	ctx, leave := list.begin(ctx, token, most)
	ctx, part := s.through(ctx)
	end := func() { part(); leave() }
	c, err := caller(ctx)
	if err != nil || c.Expires.IsZero() {
		return ctx, end
	}
	ctx, stop := context.WithTimeoutCause(ctx, c.Expires.Sub(s.config.Now()), c.Expired())
	return ctx, func() { stop(); end() }
}

// guard is begin for streams that do not look at their token themselves: it
// checks every heartbeat that the token is still good.
func (s *Service) guard(ctx context.Context, token string) (context.Context, func()) {
	return s.guardIn(ctx, &s.watches, token, maxWatches)
}

func (s *Service) guardIn(ctx context.Context, list *streams, token string, most int) (context.Context, func()) {
	ctx, end := s.begin(ctx, list, token, most)
	var running sync.WaitGroup
	done := make(chan struct{})
	ctx, cancel := context.WithCancelCause(ctx)
	running.Go(func() {
		ticker := time.NewTicker(s.config.Heartbeat)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if err := s.check(ctx, token); err != nil {
				cancel(err)
			}
		}
	})
	return ctx, func() {
		close(done)
		cancel(context.Canceled)
		end()
		running.Wait()
	}
}

// ended is the error of a stream: why its context ended, if that is the reason.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && err != nil {
		return wire(context.Cause(ctx))
	}
	return wire(err)
}
