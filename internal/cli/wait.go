package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"

	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/rotation"
)

// How long to wait between two tries to watch, and how long to try.
const (
	watchRetryFirst = 200 * time.Millisecond
	watchRetryMost  = 5 * time.Second
	watchGiveUp     = 2 * time.Minute
)

// errReached ends a watch from within.
var errReached = errors.New("reached")

// wait follows a rotation until it has reached the goal or ended.
func (a *app) wait(ctx context.Context, id string, w waitFlags) error {
	api, err := a.control()
	if err != nil {
		return err
	}
	waiting := ctx
	if w.most > 0 {
		var cancel context.CancelFunc
		waiting, cancel = context.WithTimeout(ctx, w.most)
		defer cancel()
	}
	show := a.newProgress()
	var last *keyturnv1.Rotation
	err = a.follow(waiting, api, id, func(r *keyturnv1.Rotation) error {
		last = r
		show.update(r)
		if r.GetEnded() || reached(r, w) {
			return errReached
		}
		return nil
	}, show)
	show.end()
	switch {
	case errors.Is(err, errReached):
		return a.waited(ctx, api, last, w)
	case ctx.Err() != nil:
		return &failure{exit: ExitInterrupted, message: "interrupted; the rotation goes on", hint: "keyturn rotation watch " + shortID(id), err: ctx.Err()}
	case ranOut(waiting, err):
		phase := "unknown"
		if last != nil {
			phase = headline(last)
		}
		return fail(ExitFailed, "keyturn rotation watch "+shortID(id), "after %v the rotation has not got as far as %s: %s; it goes on", w.most, w.goal, phase)
	}
	return err
}

// ranOut reports whether the time to wait is over. The server, which knows the
// deadline, may have noticed it a moment earlier.
func ranOut(waiting context.Context, err error) bool {
	deadline, bounded := waiting.Deadline()
	return waiting.Err() != nil || bounded && connect.CodeOf(err) == connect.CodeDeadlineExceeded && time.Until(deadline) < time.Second
}

// reached reports whether a rotation has got as far as the goal.
func reached(r *keyturnv1.Rotation, w waitFlags) bool {
	switch w.goal {
	case goalCutOver:
		return r.GetCutOverAt() != nil && r.GetPhase() != rotation.RollingBack.String() && !r.GetEnded()
	case goalRevoked:
		return r.GetPhase() == rotation.Quarantine.String() || r.GetPhase() == rotation.Destroying.String()
	}
	return false
}

// succeeded reports whether a rotation that has ended did so as hoped for.
func succeeded(r *keyturnv1.Rotation, w waitFlags) bool {
	return r.GetPhase() == rotation.Done.String() || w.back && r.GetPhase() == rotation.RolledBack.String()
}

// waited prints the outcome.
func (a *app) waited(ctx context.Context, api keyturnv1connect.ControlServiceClient, r *keyturnv1.Rotation, w waitFlags) error {
	err := a.result(r, func(out io.Writer) {
		if !r.GetEnded() || succeeded(r, w) {
			fmt.Fprintf(out, "%s: %s\n", clean(r.GetKey()), outcome(r))
		}
	})
	if err != nil || !r.GetEnded() || succeeded(r, w) {
		return err
	}
	why := ""
	if response, err := api.GetRotation(ctx, &keyturnv1.GetRotationRequest{Id: r.GetId()}); err == nil {
		why = cause(response.GetTimeline())
	}
	if why != "" {
		why = ": " + why
	}
	return fail(ExitNotDone, "keyturn rotation show "+shortID(r.GetId())+" tells the whole story", "the rotation of %s ended %s%s", r.GetKey(), r.GetPhase(), why)
}

// outcome says where a rotation has got to, as the last line of a wait.
func outcome(r *keyturnv1.Rotation) string {
	switch {
	case r.GetPhase() == rotation.RolledBack.String():
		return fmt.Sprintf("rolled back; version %d is in use", r.GetFrom())
	case r.GetEnded() && r.GetFrom() == 0:
		return fmt.Sprintf("done; version %d is current", r.GetTo())
	case r.GetEnded():
		return fmt.Sprintf("done; version %d is current, version %d is gone", r.GetTo(), r.GetFrom())
	case r.GetPhase() == rotation.Quarantine.String() || r.GetPhase() == rotation.Destroying.String():
		return fmt.Sprintf("version %d is current, version %d is refused everywhere", r.GetTo(), r.GetFrom())
	}
	return fmt.Sprintf("version %d is current, version %d is still accepted", r.GetTo(), r.GetFrom())
}

// cause finds in a timeline why a rotation turned back or ended early: the
// message of the first phase or hold that tells one after things went wrong.
func cause(timeline []*keyturnv1.TimelineEntry) string {
	for _, e := range slices.Backward(timeline) {
		if e.GetEvent() == string(rotation.RotationPhase) {
			if _, message, ok := cutMessage(e.GetMessage()); ok {
				return message
			}
		}
	}
	return ""
}

// cutMessage splits "planned → failed: why".
func cutMessage(s string) (before, message string, ok bool) {
	for i := range len(s) - 1 {
		if s[i:i+2] == ": " {
			return s[:i], s[i+2:], true
		}
	}
	return s, "", false
}

// follow hands every state of a rotation to visit until that returns an error,
// which follow returns, or the rotation has ended. It survives a server that is
// away for a while.
func (a *app) follow(ctx context.Context, api keyturnv1connect.ControlServiceClient, id string, visit func(*keyturnv1.Rotation) error, show *progress) error {
	return a.followAny(ctx, show, func(ctx context.Context, seen func(ended bool)) error {
		return watchOnce(ctx, api, id, func(r *keyturnv1.Rotation) error {
			seen(r.GetEnded())
			return visit(r)
		})
	})
}

// followAny calls watch, which calls seen for everything that arrives, until that was
// the end or an error that does not pass.
func (a *app) followAny(ctx context.Context, show *progress, watch func(ctx context.Context, seen func(ended bool)) error) error {
	delay := watchRetryFirst
	var lost time.Time
	for {
		ended, arrived := false, false
		err := within(ctx, func(ctx context.Context) error {
			return watch(ctx, func(end bool) {
				if !lost.IsZero() {
					show.say("the server is back")
				}
				ended, arrived, lost, delay = end, true, time.Time{}, watchRetryFirst
			})
		})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil && ended:
			return nil
		case err != nil && !passing(err):
			return err
		}
		now := a.config.Now()
		if lost.IsZero() && (err != nil || !arrived) {
			lost = now
			show.say("the connection to the server is lost; trying again")
		}
		if !lost.IsZero() && now.Sub(lost) > watchGiveUp {
			if err == nil {
				err = connect.NewError(connect.CodeUnavailable, errors.New("the server ends the stream again and again"))
			}
			return err
		}
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		delay = min(2*delay, watchRetryMost)
	}
}

// passing reports whether an error may go away by itself.
func passing(err error) bool {
	var remote *connect.Error
	if !errors.As(err, &remote) {
		return false
	}
	return remote.Code() == connect.CodeUnavailable || remote.Code() == connect.CodeAborted || remote.Code() == connect.CodeInternal && !connect.IsWireError(err) ||
		remote.Code() == connect.CodeUnknown && !connect.IsWireError(err)
}

func watchOnce(ctx context.Context, api keyturnv1connect.ControlServiceClient, id string, visit func(*keyturnv1.Rotation) error) error {
	stream, err := api.WatchRotation(ctx, &keyturnv1.WatchRotationRequest{Id: id})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // all is read, or the context ended
	for stream.Receive() {
		if err := visit(stream.Msg().GetRotation()); err != nil {
			return err
		}
	}
	return stream.Err()
}

// within runs fn with a context that ends with it.
func within(ctx context.Context, fn func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return fn(ctx)
}
