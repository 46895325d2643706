package gateway

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/client/apikeycheck"
	"github.com/keyturn/keyturn/client/tokencheck"
)

// late is something that the centre's first answer makes. Nobody waits for that: until
// it comes there is none. Its methods may be called concurrently.
type late[T any] struct {
	value atomic.Pointer[T]
	stop  context.CancelFunc
	// ended is closed when value is there, or open has failed with err.
	ended chan struct{}
	err   error
}

// openLate begins to open one; stop must be called.
func openLate[T any](ctx context.Context, open func(ctx context.Context) (*T, error)) *late[T] {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx)) //nolint:gosec // end calls it
	l := &late[T]{stop: stop, ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		value, err := open(ctx)
		if err == nil {
			l.value.Store(value)
		}
		l.err = err
	}()
	return l
}

// startTime is how long the centre may take, for all that needs it together, before the
// start goes on without it.
const startTime = 2 * time.Second

// wait gives the centre until moment ends. It fails when it does not matter what the
// centre says: the configuration is wrong.
func (l *late[T]) wait(moment context.Context) error {
	select {
	case <-l.ended:
	case <-moment.Done():
	}
	select {
	case <-l.ended:
		return l.err
	default:
		return nil
	}
}

// end stops the opening, and returns what was opened; nil if there is none.
func (l *late[T]) end() *T {
	l.stop()
	<-l.ended
	return l.value.Load()
}

// apiKeys verifies API keys; before there is a snapshot the answer is ErrUnsure.
type apiKeys struct{ *late[apikeycheck.Checker] }

// Check implements forward.Keys.
func (v apiKeys) Check(text, address string) (apikeycheck.Result, error) {
	if checker := v.value.Load(); checker != nil {
		return checker.Check(text, address)
	}
	return apikeycheck.Result{}, apikeycheck.ErrUnsure
}

// Identify implements forward.Keys.
func (v apiKeys) Identify(text string) (apikeycheck.Result, error) {
	if checker := v.value.Load(); checker != nil {
		return checker.Identify(text)
	}
	return apikeycheck.Result{}, apikeycheck.ErrUnsure
}

// accessTokens verifies access tokens; before there is a set of keys the answer is
// ErrUnsure.
type accessTokens struct{ *late[tokencheck.Checker] }

// Check implements forward.Tokens.
func (v accessTokens) Check(ctx context.Context, shown *tokencheck.Shown) (tokencheck.Claims, error) {
	if checker := v.value.Load(); checker != nil {
		return checker.Check(ctx, shown)
	}
	return tokencheck.Claims{}, tokencheck.ErrUnsure
}

// Nonce implements forward.Tokens.
func (v accessTokens) Nonce() string {
	if checker := v.value.Load(); checker != nil {
		return checker.Nonce()
	}
	return ""
}
