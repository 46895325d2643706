package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/key"
)

const (
	// gather is how long new keys wait for others before the party connects anew.
	gather = 250 * time.Millisecond
	// firstLate is how long the first answer of a stream may take before a poll asks for
	// the same.
	firstLate = 10 * time.Second
	// pollFor is how long a party polls whose stream does not get through, pollWait how
	// long one poll lasts.
	pollFor, pollWait = 5 * time.Minute, 30 * time.Second
	// heartbeatDefault applies when the centre states none; heartbeatMost bounds it.
	heartbeatDefault, heartbeatMost = time.Minute, 10 * time.Minute
	// retryLeast and retryMost bound the time between two tries.
	retryLeast, retryMost = time.Second, 10 * time.Second
	// requestTime bounds requests that are no streams.
	requestTime = 10 * time.Second
	// ackEvery is how often acknowledgements that are held are looked at.
	ackEvery = time.Second
	// ackSpreadMost bounds the spread that the centre may state.
	ackSpreadMost = 10 * time.Second
)

// party is one of the relay's own at the centre.
type party struct {
	relay  *Relay
	number int
	id     string
	// changed: there is a key more or less. Answers: there may be something to acknowledge.
	changed, answers chan struct{}
	// registered: the centre may have the party for some key.
	registered bool
	// trying is how many keys are tried at once that the centre did not accept yet.
	trying int
	// quiet is until when acknowledgements are spread.
	quiet time.Time
	order uint64
}

func newParty(r *Relay, number int) *party {
	id := r.config.Name
	if number > 0 {
		id = fmt.Sprintf("%s/%d", id, number+1)
	}
	return &party{relay: r, number: number, id: id, changed: make(chan struct{}, 1), answers: make(chan struct{}, 1), trying: maxTrying}
}

// maxTrying is how many new keys a party tries at once.
const maxTrying = 1000

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (p *party) wake() { nudge(p.changed) }

// run watches the party's keys until ctx ends.
func (p *party) run(ctx context.Context) {
	r, failures := p.relay, 0
	for ctx.Err() == nil {
		accepted, others := r.keys.of(p.number)
		trial := others[:min(len(others), p.trying)]
		names := append(accepted, trial...) //nolint:gocritic // both are ours
		if len(names) == 0 {
			p.trying = maxTrying
			if p.registered && !p.leave(ctx) {
				failures++
				p.pause(ctx, r.backoff(failures))
				continue
			}
			select {
			case <-ctx.Done():
			case <-p.changed:
				_ = sleep(ctx, gather)
			}
			continue
		}
		answered, err := p.stream(ctx, names)
		if errors.Is(err, errBlocked) {
			answered, err = p.poll(ctx, names)
		}
		if ctx.Err() != nil {
			return
		}
		if answered {
			failures = 0
		}
		switch {
		case err == nil: // the keys changed, or it is tried anew
			failures = 0
			_ = sleep(ctx, gather)
			continue
		case judge(err) == isAnswer && p.isolate(ctx, trial, names, err):
			continue
		}
		failures++
		wait := r.backoff(failures)
		if judge(err) == isAway {
			r.link.failed()
			r.config.Logger.DebugContext(ctx, "the gateway's party does not reach the centre", "party", p.id, "retry_in", wait, "error", err)
		} else {
			wait = max(wait, r.around(retryMost))
			r.config.Logger.WarnContext(ctx, "the centre refuses the gateway's party", "party", p.id, "retry_in", wait, "error", err)
		}
		p.pause(ctx, wait)
	}
}

// pause waits; it ends early when the centre is there again.
func (p *party) pause(ctx context.Context, d time.Duration) {
	down, _, changed := p.relay.link.state()
	if !down {
		changed = nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-changed:
		_ = sleep(ctx, time.Duration(p.relay.random()*float64(gather)))
	}
}

// isolate finds the keys that the centre does not let the party have. It reports whether
// another try is worth while at once.
func (p *party) isolate(ctx context.Context, trial, names []key.Name, err error) bool {
	code := connect.CodeOf(err)
	if code != connect.CodePermissionDenied && code != connect.CodeNotFound && code != connect.CodeInvalidArgument {
		return false
	}
	bad := named(names, err.Error())
	switch {
	case len(bad) > 0:
	case len(trial) > 1:
		p.trying = len(trial) / 2
		return true
	case len(trial) == 1:
		bad = trial
	default:
		return false // a key that was fine before, and the centre does not say which
	}
	if dropErr := p.relay.keys.refuse(ctx, bad, err); dropErr != nil {
		p.relay.config.Logger.ErrorContext(ctx, "keys could not be dropped", "error", dropErr)
		return false
	}
	return true
}

// errBlocked: a stream is open and brings nothing, while polls get through.
var errBlocked = errors.New("streams do not get through to the centre")

func (p *party) wire() *keyturnv1.Party {
	return &keyturnv1.Party{Id: p.id, Kind: keyturnv1.PartyKind_PARTY_KIND_AGENT, Region: p.relay.config.Region, Labels: p.relay.config.Labels}
}

func wireKnown(list []known) []*keyturnv1.Known {
	out := make([]*keyturnv1.Known, 0, len(list))
	for _, one := range list {
		out = append(out, &keyturnv1.Known{Key: string(one.name), Version: uint64(one.version), Epoch: one.epoch})
	}
	return out
}

// stream serves one stream of the party. It returns nil when the keys have changed.
func (p *party) stream(ctx context.Context, names []key.Name) (answered bool, err error) {
	r := p.relay
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	from := r.config.Centre.Current()
	answers, ended := make(chan *keyturnv1.WatchResponse), make(chan error, 1)
	r.running.Go(func() {
		ended <- p.receive(ctx, &keyturnv1.WatchRequest{Party: p.wire(), Keys: wireKnown(r.keys.known(names))}, answers)
	})
	silence, heartbeat := time.NewTimer(firstLate), heartbeatDefault
	defer silence.Stop()
	for {
		select {
		case <-ctx.Done():
			return answered, ctx.Err()
		case answer := <-answers:
			if d := answer.GetComeBack(); d.IsValid() && d.AsDuration() > 0 {
				r.config.Centre.Leave(from)
				if r.config.Centre.Servers() == 1 {
					p.pause(ctx, time.Duration((0.25+0.75*r.random())*float64(min(d.AsDuration(), time.Minute))))
				}
				return answered, nil
			}
			if !answered {
				answered = true
				p.accepted(names)
			}
			if d := answer.GetHeartbeat(); d.IsValid() && d.AsDuration() > 0 {
				heartbeat = min(max(d.AsDuration(), time.Second), heartbeatMost)
			}
			silence.Reset(heartbeat)
			r.link.answered()
			if err := p.take(ctx, answer.GetAssignments(), answer.GetAckSpread()); err != nil {
				return answered, err
			}
		case err := <-ended:
			if judge(err) == isAway {
				r.config.Centre.Leave(from)
			}
			return answered, err
		case <-silence.C:
			if !answered && p.pollOnce(ctx, names, 0) == nil {
				return false, errBlocked
			}
			r.config.Centre.Renew()
			r.config.Centre.Leave(from)
			return answered, fmt.Errorf("the centre is silent for %v", heartbeat)
		case <-p.changed:
			return answered, nil
		}
	}
}

// leave tells the centre that the party presents nothing any more. It reports whether
// the centre has heard that.
func (p *party) leave(ctx context.Context) bool {
	r := p.relay
	if untold, _, _ := r.notes.untold(); untold > 0 && p.number == 0 {
		return false // it is as this party that the centre is told
	}
	leaving, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	leaving, err := r.asGateway(leaving)
	if err == nil {
		_, err = r.centre.Leave(leaving, &keyturnv1.LeaveRequest{PartyId: p.id})
	}
	if judge(err) != isAnswer || connect.CodeOf(err) == connect.CodeUnauthenticated && err != nil {
		return false
	}
	p.registered = false
	return true
}

// accepted notes that the centre takes the party for keys.
func (p *party) accepted(names []key.Name) {
	p.registered = true
	p.relay.keys.accept(names)
	p.trying = min(2*p.trying, maxTrying)
	if _, others := p.relay.keys.of(p.number); len(others) > 0 {
		p.wake()
	}
}

func (p *party) receive(ctx context.Context, req *keyturnv1.WatchRequest, answers chan<- *keyturnv1.WatchResponse) error {
	calling, err := p.relay.asGateway(ctx)
	if err != nil {
		return err
	}
	s, err := p.relay.centre.Watch(calling, req)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	for s.Receive() {
		select {
		case answers <- s.Msg():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := s.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}

// poll serves the party by polls for a while, where streams do not get through.
func (p *party) poll(ctx context.Context, names []key.Name) (answered bool, err error) {
	until := time.NewTimer(p.relay.around(pollFor))
	defer until.Stop()
	for ctx.Err() == nil {
		select {
		case <-until.C:
			return answered, nil
		case <-p.changed:
			return answered, nil
		default:
		}
		began := p.relay.config.Monotonic()
		if err := p.pollOnce(ctx, names, pollWait); err != nil {
			return answered, err
		}
		if !answered {
			answered = true
			p.accepted(names)
		}
		// An answer that is early and empty must not become a busy loop.
		if p.relay.config.Monotonic().Sub(began) < retryLeast {
			_ = sleep(ctx, retryLeast)
		}
	}
	return answered, ctx.Err()
}

func (p *party) pollOnce(ctx context.Context, names []key.Name, wait time.Duration) error {
	r := p.relay
	ctx, cancel := context.WithTimeout(ctx, wait+requestTime)
	defer cancel()
	calling, err := r.asGateway(ctx)
	if err != nil {
		return err
	}
	answer, err := r.centre.Poll(calling, &keyturnv1.PollRequest{Party: p.wire(), Keys: wireKnown(r.keys.known(names)), Wait: durationpb.New(wait)})
	if err != nil {
		return err
	}
	r.link.answered()
	return p.take(ctx, answer.GetAssignments(), nil)
}

// take makes what was told durable and has it acknowledged.
func (p *party) take(ctx context.Context, list []*keyturnv1.Assignment, spread *durationpb.Duration) error {
	if len(list) == 0 {
		return nil
	}
	var told []*material
	for _, a := range list {
		m, err := materialOf(a)
		if err != nil {
			p.relay.config.Logger.ErrorContext(ctx, "an assignment is left out", "error", err)
			continue
		}
		told = append(told, m)
	}
	if err := p.relay.keys.take(ctx, told); err != nil {
		p.relay.config.Logger.ErrorContext(ctx, "versions are not acknowledged, since the cache cannot be written", "error", err)
		return err
	}
	if d := spread.AsDuration(); spread.IsValid() && d > 0 {
		p.relay.mu.Lock()
		p.quiet = p.relay.config.Monotonic().Add(time.Duration((0.5 + 0.5*p.relay.random()) * float64(min(d, ackSpreadMost))))
		p.relay.mu.Unlock()
	}
	nudge(p.answers)
	return nil
}

// acknowledge sends the acknowledgements that may go out, until ctx ends.
func (p *party) acknowledge(ctx context.Context) {
	r := p.relay
	var again <-chan time.Time
	for failures := 0; ctx.Err() == nil; {
		select {
		case <-ctx.Done():
			return
		case <-p.answers:
		case <-again:
		}
		again = nil
		r.mu.Lock()
		wait := p.quiet.Sub(r.config.Monotonic())
		r.mu.Unlock()
		if wait > 0 {
			_ = sleep(ctx, wait)
		}
		due, held := r.keys.answers(p.number, r.owed)
		if down, _, _ := r.link.state(); down {
			due = nil
		}
		if held+len(due) > 0 {
			again = time.After(ackEvery)
		}
		if len(due) == 0 {
			continue
		}
		if err := p.ack(ctx, due); err != nil {
			failures++
			again = time.After(r.backoff(failures))
			if ctx.Err() == nil {
				r.config.Logger.WarnContext(ctx, "the gateway's acknowledgements are not taken yet", "party", p.id, "keys", len(due), "error", err)
			}
			continue
		}
		failures = 0
	}
}

func (p *party) ack(ctx context.Context, due []known) error {
	r := p.relay
	ctx, cancel := context.WithTimeout(ctx, 3*requestTime)
	defer cancel()
	calling, err := r.asGateway(ctx)
	if err != nil {
		return err
	}
	// Later than any that this process or an earlier one has used, unless the clock went
	// back since: then the version is told anew.
	p.order = max(p.order+1, uint64(max(0, r.clock.now().UnixMicro())))
	req := &keyturnv1.AckRequest{PartyId: p.id}
	for _, one := range due {
		req.Outcomes = append(req.Outcomes, &keyturnv1.Outcome{
			Key: string(one.name), Version: uint64(one.version), Epoch: one.epoch,
			Code: keyturnv1.OutcomeCode_OUTCOME_CODE_APPLIED, Using: uint64(one.version), Order: p.order,
		})
	}
	_, err = r.centre.Ack(calling, req)
	switch judge(err) {
	case isAway:
		r.link.failed()
		return err
	case isRefusal:
		r.link.failed()
		return err
	case isAnswer:
		r.link.answered()
	}
	switch {
	case err == nil:
	case connect.CodeOf(err) == connect.CodeUnauthenticated || connect.CodeOf(err) == connect.CodeResourceExhausted:
		return err
	case len(due) > 1:
		// One of them must not hold up the others.
		half := len(due) / 2
		return errors.Join(p.ack(ctx, due[:half]), p.ack(ctx, due[half:]))
	}
	// What the centre does not take, it does not wait for: what it waits for it tells again.
	r.keys.answered(due)
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
