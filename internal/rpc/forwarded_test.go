package rpc

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/forwarded"
	"github.com/keyturn/keyturn/internal/identity"
)

// registry knows which tokens are good, by ID.
type registry struct {
	Identity
	mu  sync.Mutex
	bad map[string]bool
	err error
}

func (r *registry) set(id string, bad bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bad[id] = bad
}

func (r *registry) Check(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bad[id] {
		return identity.ErrUnauthenticated
	}
	return r.err
}

// through is a context of a request that came through a gateway.
func through(ctx context.Context, gateway identity.Caller) context.Context {
	ctx = context.WithValue(ctx, callerKey{}, identity.Caller{Principal: authz.Principal{ID: "client"}})
	return context.WithValue(ctx, gatewayKey{}, gateway)
}

func gatewayOfTests() identity.Caller {
	return identity.Caller{Principal: authz.Principal{ID: "gateway", Name: "eu", Role: authz.Gateway}}
}

func wantGatewayRefused(t *testing.T, err error) {
	t.Helper()
	var refusal *connect.Error
	if !errors.As(err, &refusal) || refusal.Code() != connect.CodeUnauthenticated || !forwarded.IsRefusal(refusal.Meta()) {
		t.Errorf("%v is not a refusal of the gateway", err)
	}
}

// TestStreamsLookAtTheirGateway: at every check, in case nobody heard of the revocation;
// a store that does not answer ends nothing.
func TestStreamsLookAtTheirGateway(t *testing.T) {
	tokens := &registry{bad: map[string]bool{}}
	s := New(Config{Identity: tokens})
	ctx := through(t.Context(), gatewayOfTests())
	if err := s.check(ctx, "client"); err != nil {
		t.Error(err)
	}
	tokens.err = errors.New("the store does not answer")
	if err := s.check(ctx, "client"); err != nil {
		t.Error(err)
	}
	tokens.set("gateway", true)
	wantGatewayRefused(t, s.check(ctx, "client"))
	tokens.set("client", true)
	if err := s.check(ctx, "client"); connect.CodeOf(err) != connect.CodeUnauthenticated || forwarded.IsRefusal(errMeta(err)) {
		t.Errorf("the client's own token: %v", err)
	}
	// One that came by itself has no gateway to look at.
	tokens.set("client", false)
	if err := s.check(t.Context(), "client"); err != nil {
		t.Error(err)
	}
}

func errMeta(err error) map[string][]string {
	var wire *connect.Error
	if errors.As(err, &wire) {
		return wire.Meta()
	}
	return nil
}

// TestGuardedStreamsEndWithTheirGateway: within a heartbeat.
func TestGuardedStreamsEndWithTheirGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tokens := &registry{bad: map[string]bool{}}
		s := New(Config{Identity: tokens, Heartbeat: time.Second})
		guarded, end := s.guard(through(t.Context(), gatewayOfTests()), "client")
		other, endOther := s.guard(context.WithValue(t.Context(), callerKey{}, identity.Caller{}), "client")
		time.Sleep(3 * time.Second)
		if guarded.Err() != nil {
			t.Fatal(context.Cause(guarded))
		}
		tokens.set("gateway", true)
		time.Sleep(1100 * time.Millisecond)
		if guarded.Err() == nil {
			t.Fatal("it goes on")
		}
		wantGatewayRefused(t, context.Cause(guarded))
		if other.Err() != nil {
			t.Errorf("one with the same token that came by itself has ended: %v", context.Cause(other))
		}
		end()
		endOther()
	})
}

// TestStreamsEndWhenTheirGatewaysTokenExpires: at that moment.
func TestStreamsEndWhenTheirGatewaysTokenExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Identity: &registry{}})
		gateway := gatewayOfTests()
		gateway.Expires = time.Now().Add(time.Minute)
		ctx, end := s.begin(through(t.Context(), gateway), &s.streams, "client", 1)
		defer end()
		time.Sleep(59 * time.Second)
		if ctx.Err() != nil {
			t.Fatal(context.Cause(ctx))
		}
		time.Sleep(2 * time.Second)
		if ctx.Err() == nil {
			t.Fatal("it goes on")
		}
		wantGatewayRefused(t, context.Cause(ctx))
	})
}
