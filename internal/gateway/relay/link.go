package relay

import (
	"context"
	"sync"
	"time"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/forwarded"
)

// link knows whether the centre answers. A single failure only makes it ask: one stream
// that broke says nothing of the others.
type link struct {
	now func() time.Time // monotonic

	mu      sync.Mutex
	down    bool
	refused bool
	word    time.Time
	// changed is closed and replaced when down or refused change.
	changed chan struct{}
	// doubt has room for one token and holds one when something failed.
	doubt chan struct{}
}

func newLink(now func() time.Time) *link {
	return &link{now: now, changed: make(chan struct{}), doubt: make(chan struct{}, 1)}
}

// state returns whether the centre is known to be away, whether it refuses the relay, and
// a channel that is closed when that changes.
func (l *link) state() (down, refused bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.down, l.refused, l.changed
}

// answered notes that the centre has answered something.
func (l *link) answered() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.word = l.now()
	l.set(false, l.refused)
}

// set changes the state; the caller holds the lock.
func (l *link) set(down, refused bool) {
	if l.down == down && l.refused == refused {
		return
	}
	l.down, l.refused = down, refused
	close(l.changed)
	l.changed = make(chan struct{})
}

// failed notes that something was not answered, so that the centre is asked.
func (l *link) failed() {
	select {
	case l.doubt <- struct{}{}:
	default:
	}
}

// tested notes the outcome of asking.
func (l *link) tested(v verdict) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch v {
	case isAway:
		l.set(true, l.refused)
	case isRefusal:
		l.word = l.now()
		l.set(false, true)
	case isAnswer:
		l.word = l.now()
		l.set(false, false)
	}
}

// last is when the centre last answered.
func (l *link) last() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.word
}

// verdict is what an error of a call says. The zero value is invalid.
type verdict uint8

const (
	// isAnswer: the centre has decided.
	isAnswer verdict = iota + 1
	// isAway: there was no answer, or one that may be another at any time.
	isAway
	// isRefusal: the centre refuses the relay itself, and says nothing of its client.
	isRefusal
)

// judge says what the outcome of a relayed call means.
func judge(err error) verdict {
	if err == nil {
		return isAnswer
	}
	if wire, ok := asConnect(err); ok && forwarded.IsRefusal(wire.Meta()) {
		return isRefusal
	}
	if !connect.IsWireError(err) {
		return isAway // the network, or something between
	}
	switch connect.CodeOf(err) {
	case connect.CodeUnauthenticated, connect.CodePermissionDenied, connect.CodeInvalidArgument, connect.CodeNotFound,
		connect.CodeAlreadyExists, connect.CodeFailedPrecondition, connect.CodeOutOfRange, connect.CodeUnimplemented,
		connect.CodeResourceExhausted, connect.CodeAborted, connect.CodeInternal, connect.CodeDataLoss, connect.CodeUnknown:
		return isAnswer
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeCanceled:
		return isAway
	}
	return isAway
}

const (
	// askLate is how long the centre may take to answer when it is in doubt.
	askLate = 2 * time.Second
	// askEvery is the mean time between two questions while it is away.
	askEvery = time.Second
	// askRefused is the mean time between two while it refuses the relay.
	askRefused = 15 * time.Second
)

// test asks the centre, when in doubt and while it is away, until ctx ends.
func (r *Relay) test(ctx context.Context) {
	for ctx.Err() == nil {
		down, refused, _ := r.link.state()
		var again <-chan time.Time
		switch {
		case down:
			again = time.After(r.around(askEvery))
		case refused:
			again = time.After(r.around(askRefused))
		}
		select {
		case <-ctx.Done():
			return
		case <-r.link.doubt:
		case <-again:
		}
		asked := r.config.Monotonic()
		v := r.askOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		if v == isAway && r.link.last().After(asked) {
			continue // it has answered somebody meanwhile
		}
		r.link.tested(v)
		if nowDown, nowRefused, _ := r.link.state(); nowDown != down || nowRefused != refused {
			r.config.Logger.WarnContext(ctx, "link to the centre", "up", !nowDown, "refused", nowRefused)
		}
		if v == isAway {
			select {
			case <-r.link.doubt: // what failed meanwhile is answered by this
			default:
			}
		}
	}
}

// askOnce asks the centre whether it knows the relay: a report of nothing.
func (r *Relay) askOnce(ctx context.Context) verdict {
	from := r.config.Centre.Current()
	ctx, cancel := context.WithTimeout(ctx, askLate)
	defer cancel()
	calling, err := r.asGateway(ctx)
	if err == nil {
		_, err = r.centre.Report(calling, &keyturnv1.ReportRequest{PartyId: r.config.Name})
	}
	v := judge(err)
	if v == isAnswer && connect.CodeOf(err) == connect.CodeUnauthenticated && err != nil {
		return isRefusal // it is the relay's own token
	}
	if v == isAway {
		r.config.Logger.DebugContext(ctx, "the centre does not answer", "error", err)
		r.config.Centre.Leave(from)
	}
	return v
}
