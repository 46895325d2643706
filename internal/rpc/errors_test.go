package rpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"

	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/handout"
	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/internal/identity"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// TestCodes: clients drop what they wanted to say on invalid_argument, not_found
// and failed_precondition, so that no error that may pass must become one of these.
func TestCodes(t *testing.T) {
	tests := map[error]connect.Code{
		identity.ErrUnauthenticated:    connect.CodeUnauthenticated,
		authz.ErrDenied:                connect.CodePermissionDenied,
		engine.ErrNotFound:             connect.CodeNotFound,
		identity.ErrNotFound:           connect.CodeNotFound,
		rotation.ErrUnknown:            connect.CodeNotFound,
		engine.ErrInvalid:              connect.CodeInvalidArgument,
		identity.ErrInvalid:            connect.CodeInvalidArgument,
		handout.ErrInvalid:             connect.CodeInvalidArgument,
		rotation.ErrInvalid:            connect.CodeInvalidArgument,
		key.ErrName:                    connect.CodeInvalidArgument,
		key.ErrRotationID:              connect.CodeInvalidArgument,
		authz.ErrPattern:               connect.CodeInvalidArgument,
		engine.ErrState:                connect.CodeFailedPrecondition,
		rotation.ErrBusy:               connect.CodeFailedPrecondition,
		rotation.ErrPhase:              connect.CodeFailedPrecondition,
		rotation.ErrCompromised:        connect.CodeFailedPrecondition,
		rotation.ErrRestored:           connect.CodeFailedPrecondition,
		rotation.ErrLockOut:            connect.CodeFailedPrecondition,
		rotation.ErrStale:              connect.CodeFailedPrecondition,
		hub.ErrReplaced:                connect.CodeAborted,
		hub.ErrFull:                    connect.CodeResourceExhausted,
		hub.ErrStopped:                 connect.CodeUnavailable,
		context.DeadlineExceeded:       connect.CodeDeadlineExceeded,
		context.Canceled:               connect.CodeCanceled,
		errors.New("the disk is full"): connect.CodeUnavailable,
		tooMany(time.Second, "wait"):   connect.CodeResourceExhausted,
	}
	for err, want := range tests {
		if got := connect.CodeOf(wire(fmt.Errorf("doing: %w", err))); got != want {
			t.Errorf("%v: got %v, want %v", err, got, want)
		}
	}
	if wire(nil) != nil {
		t.Error("nil is an error")
	}
	for _, c := range codes() {
		found := false
		for err := range tests {
			found = found || errors.Is(err, c.err)
		}
		if !found {
			t.Errorf("%v has no row in this test", c.err)
		}
	}
}

func TestClipKeepsCharactersWhole(t *testing.T) {
	for n := range 8 {
		clipped := clip(strings.Repeat("x", maxDetail-4+n) + "äöü€")
		if !utf8.ValidString(clipped) || len(clipped) > maxDetail || len(clipped) < maxDetail-4 {
			t.Errorf("%d: %d bytes, %q", n, len(clipped), clipped[len(clipped)-6:])
		}
	}
}

func TestWithinReach(t *testing.T) {
	for _, test := range []struct {
		own, asked string
		want       bool
	}{
		{"**", "a/**", true},
		{"a/**", "a/**", true},
		{"a/**", "a/b", true},
		{"a/**", "a/*", true},
		{"a/**", "a", true},
		{"a/**", "a*", false},
		{"a/**", "**", false},
		{"a/*", "a/b", true},
		{"a/*", "a/b/c", false},
		{"a/*", "a/**", false},
		{"*/b", "a/b", true},
		{"*/**", "a/**", false},
	} {
		err := withinReach(authz.Principal{Keys: []string{test.own}}, test.asked)
		if (err == nil) != test.want || err != nil && !errors.Is(err, authz.ErrDenied) {
			t.Errorf("%s reaches %s: %v", test.own, test.asked, err)
		}
	}
}
