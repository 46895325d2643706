package client

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"
)

// Errors of the connection, told through Config.OnStatus and wrapped by Open.
var (
	// ErrSilent: the connection stands, but nothing came for longer than the
	// server's heartbeat.
	ErrSilent = errors.New("the server is silent")
	// ErrStreamBlocked: requests get through, but streams do not; a proxy between
	// the party and the server probably collects answers before it passes them on.
	ErrStreamBlocked = errors.New("streams do not get through")
	// ErrUnauthenticated: the server does not accept the token.
	ErrUnauthenticated = errors.New("the server refuses the token")
	// ErrDenied: the party may not do that, usually not watch one of the keys.
	ErrDenied = errors.New("the server denies the request")
	// ErrRequest: the server finds the request wrong; repeating it cannot help.
	ErrRequest = errors.New("the server finds the request wrong")
)

// errEnded is why a stream ended that the server closed in good order.
var errEnded = errors.New("the server ended the stream")

// maxRetryAfter bounds how long a server may send a party away.
const maxRetryAfter = 10 * time.Minute

// explain adds the package's sentinel to an error of the server, so that
// callers need not know the wire's codes.
func explain(err error) error {
	if err == nil {
		return nil
	}
	switch connect.CodeOf(err) {
	case connect.CodeUnauthenticated:
		return fmt.Errorf("%w; renew it, for example with a new join token: %w", ErrUnauthenticated, err)
	case connect.CodePermissionDenied:
		return fmt.Errorf("%w; ask for a role that covers these keys: %w", ErrDenied, err)
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeFailedPrecondition, connect.CodeOutOfRange, connect.CodeAlreadyExists:
		return fmt.Errorf("%w: %w", ErrRequest, err)
	default:
		return err
	}
}

// permanent reports whether err, as returned by explain, will not pass by itself.
func permanent(err error) bool {
	return errors.Is(err, ErrUnauthenticated) || errors.Is(err, ErrDenied) || errors.Is(err, ErrRequest) || errors.Is(err, ErrToken)
}

// retryAfter returns how long the server asks to stay away (RFC 9110, section
// 10.2.3), or zero. A server that is overloaded and does not say gets a second.
func retryAfter(err error, now time.Time) time.Duration {
	var busy *busyError
	if errors.As(err, &busy) {
		return busy.after
	}
	var wire *connect.Error
	if !errors.As(err, &wire) {
		return 0
	}
	if after := parseRetryAfter(wire.Meta().Get("Retry-After"), now); after > 0 {
		return after
	}
	if wire.Code() == connect.CodeResourceExhausted {
		return time.Second
	}
	return 0
}

func parseRetryAfter(text string, now time.Time) time.Duration {
	if text == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return min(time.Duration(seconds)*time.Second, maxRetryAfter)
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}

// busyError is an answer that something before the server gave: too many
// requests, or no server there.
type busyError struct {
	status string
	after  time.Duration
}

func (e *busyError) Error() string { return "overloaded: HTTP status " + e.status }
