package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/key"
)

// maxPollWait is how long a poll may last.
const maxPollWait = time.Minute

// Poll implements DeliveryService.
func (r *Relay) Poll(ctx context.Context, req *keyturnv1.PollRequest) (*keyturnv1.PollResponse, error) {
	wait := req.GetWait().AsDuration()
	if wait < 0 || wait > maxPollWait {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("wait: %v is not between 0 and %v", wait, maxPollWait))
	}
	q, err := r.request(ctx, req.GetParty(), req.GetKeys())
	if err != nil {
		return nil, err
	}
	defer q.end()
	if err := r.enterPoll(); err != nil {
		return nil, err
	}
	defer r.exitPoll()
	down, refused, _ := r.link.state()
	if !down && !refused {
		answer, err := q.relayPoll(ctx, req)
		v := judge(err)
		if ctx.Err() != nil && err != nil {
			return nil, ctx.Err()
		}
		switch v {
		case isAnswer:
			if err == nil {
				return answer, nil
			}
			r.denied(ctx, &q.caller, q.names, err)
			return nil, pass(err)
		case isAway, isRefusal:
			r.link.failed()
			served, refusal := q.servePoll(ctx, wait)
			if refusal != nil {
				return nil, fmt.Errorf("%w (%w)", refusal, err)
			}
			return served, nil
		}
	}
	return q.servePoll(ctx, wait)
}

// room fails when as many streams and polls are served as may be; the caller holds the
// lock.
func (r *Relay) room() error {
	if len(r.sessions)+r.polls < r.config.MaxStreams {
		return nil
	}
	err := connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("too many parties are connected to this gateway: %d are the limit", r.config.MaxStreams))
	err.Meta().Set("Retry-After", "10")
	return err
}

func (r *Relay) enterPoll() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.room(); err != nil {
		return err
	}
	r.polls++
	return nil
}

func (r *Relay) exitPoll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.polls--
}

var errLinkDown = errors.New("the centre does not answer")

// relayPoll asks the centre. It gives up when that is late, or known to be away.
func (q *request) relayPoll(ctx context.Context, req *keyturnv1.PollRequest) (*keyturnv1.PollResponse, error) {
	r := q.relay
	asking, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(req.GetWait().AsDuration()+r.config.Late, func() { cancel(errLinkDown) })
	defer late.Stop()
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			down, _, changed := r.link.state()
			if down {
				cancel(errLinkDown)
				return
			}
			select {
			case <-changed:
			case <-r.stopping:
				cancel(errLinkDown)
				return
			case <-done:
				return
			}
		}
	}()
	calling, err := r.asClient(asking, &q.caller)
	if err != nil {
		return nil, err
	}
	from := r.config.Centre.Current()
	answer, err := r.centre.Poll(calling, req)
	if err != nil {
		if errors.Is(context.Cause(asking), errLinkDown) {
			return nil, errLinkDown
		}
		if judge(err) == isAway && ctx.Err() == nil {
			r.config.Centre.Leave(from)
		}
		return nil, err
	}
	q.answered(ctx, q.knows)
	q.told(answer.GetAssignments())
	return answer, nil
}

// servePoll answers by the relay itself, at once or when a version arrives.
func (q *request) servePoll(ctx context.Context, wait time.Duration) (*keyturnv1.PollResponse, error) {
	r := q.relay
	if err := q.mayServe(ctx, true); err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.ownPolls++ // before it is noted: see tidyOnce
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.ownPolls--
		r.mu.Unlock()
	}()
	if err := q.begin(ctx); err != nil {
		return nil, err
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		news := r.keys.watch()
		list, err := q.handOut(ctx)
		if err != nil || len(list) > 0 {
			return &keyturnv1.PollResponse{Assignments: list}, err
		}
		_, _, changed := r.link.state()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timer.C:
			return &keyturnv1.PollResponse{}, nil
		case <-r.stopping:
			return &keyturnv1.PollResponse{}, nil
		case <-changed: // the next poll asks the centre
			return &keyturnv1.PollResponse{}, nil
		case <-news:
		}
	}
}

// call relays a request that is answered once. What the centre does not answer is
// unavailable: the client repeats it.
func (r *Relay) call(ctx context.Context, c *caller, send func(context.Context) error) error {
	down, refused, _ := r.link.state()
	if down || refused {
		return awayError(nil, "this can wait: repeat it")
	}
	calling, err := r.asClient(ctx, c)
	if err != nil {
		return awayError(err, "this gateway has no token of its own")
	}
	from := r.config.Centre.Current()
	err = send(calling)
	switch judge(err) {
	case isAnswer:
		r.link.answered()
		if err == nil {
			return nil
		}
		if connect.CodeOf(err) == connect.CodeUnauthenticated {
			r.denied(ctx, c, nil, err)
		}
		return pass(err)
	case isAway, isRefusal:
		if ctx.Err() == nil {
			r.link.failed()
			r.config.Centre.Leave(from)
		}
	}
	return awayError(err, "this can wait: repeat it")
}

// Ack implements DeliveryService.
func (r *Relay) Ack(ctx context.Context, req *keyturnv1.AckRequest) (*keyturnv1.AckResponse, error) {
	c := r.caller(ctx)
	answer := &keyturnv1.AckResponse{}
	err := r.call(ctx, &c, func(ctx context.Context) (err error) {
		answer, err = r.centre.Ack(ctx, req)
		return err
	})
	r.denied(ctx, &c, outcomeKeys(req), err)
	// What a party says of itself is true also while the centre cannot be told.
	for _, o := range req.GetOutcomes() {
		if o.GetCode() == keyturnv1.OutcomeCode_OUTCOME_CODE_APPLIED {
			r.owed.acked(req.GetPartyId(), c.of, key.Name(o.GetKey()), o.GetEpoch(), key.Version(o.GetUsing()), err == nil)
		}
	}
	if err != nil {
		return nil, err
	}
	return answer, nil
}

func outcomeKeys(req *keyturnv1.AckRequest) []key.Name {
	names := []key.Name{}
	for _, o := range req.GetOutcomes() {
		names = append(names, key.Name(o.GetKey()))
	}
	return names
}

// Report implements DeliveryService.
func (r *Relay) Report(ctx context.Context, req *keyturnv1.ReportRequest) (*keyturnv1.ReportResponse, error) {
	c := r.caller(ctx)
	answer := &keyturnv1.ReportResponse{}
	err := r.call(ctx, &c, func(ctx context.Context) (err error) {
		answer, err = r.centre.Report(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// Leave implements DeliveryService.
func (r *Relay) Leave(ctx context.Context, req *keyturnv1.LeaveRequest) (*keyturnv1.LeaveResponse, error) {
	c := r.caller(ctx)
	answer := &keyturnv1.LeaveResponse{}
	err := r.call(ctx, &c, func(ctx context.Context) (err error) {
		answer, err = r.centre.Leave(ctx, req)
		return err
	})
	r.owed.left(req.GetPartyId(), c.of, err == nil)
	if err != nil {
		return nil, err
	}
	r.grants.leave(c.of, req.GetPartyId())
	return answer, nil
}

// Join implements DeliveryService.
func (r *Relay) Join(ctx context.Context, req *keyturnv1.JoinRequest) (*keyturnv1.JoinResponse, error) {
	c := r.caller(ctx)
	c.token, c.of = "", subject{} // the proof is in the request
	answer := &keyturnv1.JoinResponse{}
	err := r.call(ctx, &c, func(ctx context.Context) (err error) {
		answer, err = r.centre.Join(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return answer, nil
}
