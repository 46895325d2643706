package relay

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/keyturn/keyturn/client"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/key"
)

// request is what a Watch or a Poll asks for.
type request struct {
	relay  *Relay
	caller caller
	party  *keyturnv1.Party
	// knows is what the party holds, and what was sent to it since.
	knows []known
	names []key.Name
	// counted: the party's arrival is noted in owed.
	counted bool
	// noted is when it was last noted that the centre accepts the party.
	noted time.Time
}

func (r *Relay) request(ctx context.Context, party *keyturnv1.Party, keys []*keyturnv1.Known) (*request, error) {
	q := &request{relay: r, caller: r.caller(ctx), party: party}
	if len(keys) == 0 || len(keys) > client.MaxKeys {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("keys: 1 to %d are needed, not %d", client.MaxKeys, len(keys)))
	}
	if n := len(party.GetId()); n == 0 || n > 128 {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("party.id: 1 to 128 characters are needed, not %d", n))
	}
	seen := make(map[key.Name]bool, len(keys))
	for i, k := range keys {
		name, err := key.ParseName(k.GetKey())
		if err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("keys[%d].key: %w", i, err))
		}
		if seen[name] {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("keys[%d]: %s is named twice", i, name))
		}
		seen[name] = true
		q.names = append(q.names, name)
		q.knows = append(q.knows, known{name: name, version: key.Version(k.GetVersion()), epoch: k.GetEpoch()})
	}
	q.counted = r.owed.arrive(party.GetId(), q.caller.of, agentOf(party) != "", false)
	return q, nil
}

func (q *request) end() {
	if q.counted {
		q.relay.owed.leave(q.party.GetId())
	}
}

// answered takes note that the centre has answered a request in which the party said
// that it uses what sent says.
func (q *request) answered(ctx context.Context, sent []known) {
	r := q.relay
	q.goesOn(ctx)
	for _, one := range sent {
		r.owed.known(q.party.GetId(), one.name, one.version)
	}
}

// goesOn takes note that the centre accepts the party, as long as a stream stands: the
// centre ends it when it accepts the token no more.
func (q *request) goesOn(ctx context.Context) {
	r := q.relay
	r.link.answered()
	if now := r.config.Monotonic(); q.noted.IsZero() || now.Sub(q.noted) >= min(r.config.ServeFor, r.config.KeepKeys)/32 {
		q.noted = now
		r.grants.accept(q.caller.of, agentOf(q.party), q.names)
		r.keys.ask(ctx, q.names)
	}
}

// told takes note of what the centre tells the party.
func (q *request) told(list []*keyturnv1.Assignment) {
	for _, a := range list {
		i := slices.Index(q.names, key.Name(a.GetKey()))
		if i < 0 {
			continue
		}
		q.knows[i].version, q.knows[i].epoch = key.Version(a.GetVersion()), a.GetEpoch()
		q.relay.owed.known(q.party.GetId(), q.names[i], key.Version(a.GetVersion()))
	}
}

// mayServe returns an error unless the relay may serve the party by itself now.
func (q *request) mayServe(ctx context.Context, isNew bool) error {
	r := q.relay
	if _, refused, _ := r.link.state(); refused {
		return connect.NewError(connect.CodeUnavailable, errors.New("the centre refuses this gateway's own token, so that nothing is handed out here; an operator must give it a good one"))
	}
	all, some := r.grants.allows(q.caller.of, agentOf(q.party), q.names)
	if !some && isNew {
		r.config.Refused(ctx)
	}
	if !all {
		return awayError(nil, fmt.Sprintf("it has not accepted this token for these keys through this gateway within %v", r.config.ServeFor))
	}
	if name, lacks := r.keys.lacks(q.knows); lacks && isNew {
		return awayError(nil, fmt.Sprintf("this gateway holds no version of key %s", name))
	}
	return nil
}

// begin makes it durable that the relay serves the party by itself, and notes what the
// party may be using meanwhile: the centre may forget it.
func (q *request) begin(ctx context.Context) error {
	r, id, agent := q.relay, q.party.GetId(), agentOf(q.party) != ""
	if r.owed.full(r.config.MaxHandouts+r.config.MaxStreams, id) {
		return connect.NewError(connect.CodeResourceExhausted, errors.New("the centre does not answer, and this gateway serves as many parties by itself as it may"))
	}
	if err := r.mark(ctx); err != nil {
		return connect.NewError(connect.CodeUnavailable, err)
	}
	if q.counted {
		r.owed.leave(id) // it arrives anew, as one that is served
	}
	q.counted = r.owed.arrive(id, q.caller.of, agent, true)
	if agent {
		return nil // the centre waits for it as long as it takes
	}
	for _, one := range q.knows {
		r.owed.vouch(id, one.name, one.version, one.epoch)
	}
	return nil
}

// handOut returns what the party is to be given by the relay itself, when that is durably
// noted; nothing if there is nothing.
func (q *request) handOut(ctx context.Context) ([]*keyturnv1.Assignment, error) {
	r, id := q.relay, q.party.GetId()
	list := r.keys.offer(q.knows, func(m *material) { r.owed.vouch(id, m.name, m.version, m.epoch) })
	if len(list) == 0 {
		return nil, nil
	}
	now := r.clock.now()
	notes := make([]handout, 0, len(list))
	for _, m := range list {
		notes = append(notes, handout{
			Token: q.caller.id, Party: id, Address: q.caller.addressText(), Key: m.name, Version: m.version, Epoch: m.epoch,
			Agent: agentOf(q.party) != "", First: now, Last: now,
		})
	}
	if err := r.notes.add(ctx, notes); err != nil {
		code := connect.CodeUnavailable
		if errors.Is(err, errFull) {
			code = connect.CodeResourceExhausted
		}
		return nil, connect.NewError(code, fmt.Errorf("the centre does not answer, and nothing can be handed out: %w", err))
	}
	out := make([]*keyturnv1.Assignment, 0, len(list))
	for _, m := range list {
		out = append(out, m.wire())
		i := slices.Index(q.names, m.name)
		q.knows[i].version, q.knows[i].epoch = m.version, m.epoch
	}
	return out, nil
}

// sender is what a session needs of a stream.
type sender interface {
	Send(*keyturnv1.WatchResponse) error
}

// session is one stream of a client. All its methods but replace run in one goroutine.
type session struct {
	*request
	out sender

	// own: the relay serves it by itself; relayed: the centre does.
	own, relayed atomic.Bool
	replaced     chan struct{}

	// up is the present stream to the centre; nil: there is none.
	up       *upstream
	events   chan event
	failures int
	// began is when the stream that is open was; quiet when its next sign of life is late.
	watchdog, late, retry, beat *time.Timer
	heartbeat                   time.Duration
	sent                        int
}

// upstream is a stream to the centre.
type upstream struct {
	cancel context.CancelFunc
	from   *url.URL
	// sent is what the party was said to hold.
	sent     []known
	answered bool
}

// event is an answer of the centre, or the end of a stream.
type event struct {
	of     *upstream
	answer *keyturnv1.WatchResponse
	err    error
	ended  bool
}

func stopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// Watch implements DeliveryService.
func (r *Relay) Watch(ctx context.Context, req *keyturnv1.WatchRequest, stream *connect.ServerStream[keyturnv1.WatchResponse]) error {
	return r.watch(ctx, req, stream)
}

func (r *Relay) watch(ctx context.Context, req *keyturnv1.WatchRequest, out sender) error {
	q, err := r.request(ctx, req.GetParty(), req.GetKeys())
	if err != nil {
		return err
	}
	defer q.end()
	s := &session{
		request: q, out: out, replaced: make(chan struct{}), events: make(chan event), heartbeat: heartbeatDefault,
		watchdog: stopped(), late: stopped(), retry: stopped(), beat: stopped(),
	}
	if err := r.enter(s); err != nil {
		return err
	}
	defer r.exit(s)
	return s.run(ctx)
}

// enter counts a stream; a relay that stops lets nobody in.
func (r *Relay) enter(s *session) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.room(); err != nil {
		return err
	}
	r.sessions[s] = struct{}{}
	return nil
}

func (r *Relay) exit(s *session) {
	s.close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sessions, s)
	if r.latest[s.party.GetId()] == s {
		delete(r.latest, s.party.GetId())
	}
}

// newest ends an older stream of the party that the relay serves by itself: only the
// latest counts, as at the centre.
func (r *Relay) newest(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := s.party.GetId()
	if old := r.latest[id]; old != nil && old != s && old.caller.of == s.caller.of {
		close(old.replaced)
		delete(r.latest, id)
	}
	if r.latest[id] == nil {
		r.latest[id] = s
	}
}

func (s *session) run(ctx context.Context) error {
	r := s.relay
	down, refused, link := r.link.state()
	if down || refused {
		if err := s.serve(ctx, true); err != nil {
			return err
		}
		s.retry.Reset(r.around(retryMost))
	} else {
		s.open(ctx)
		s.late.Reset(r.config.Late)
	}
	for {
		var news <-chan struct{}
		if s.own.Load() {
			news = r.keys.watch()
			if err := s.offer(ctx); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.stopping:
			return s.send(&keyturnv1.WatchResponse{ComeBack: durationpb.New(r.returns())})
		case <-s.replaced:
			return connect.NewError(connect.CodeAborted, errors.New("the party has connected again; only its latest session counts"))
		case e := <-s.events:
			if e.of != s.up {
				continue // of a stream that was given up
			}
			if done, err := s.on(ctx, e); done || err != nil {
				return err
			}
		case <-s.late.C:
			if s.up != nil && !s.up.answered {
				r.link.failed()
				_ = s.serve(ctx, false) // or it goes on waiting
			}
		case <-s.watchdog.C:
			r.link.failed()
			r.config.Centre.Leave(s.up.from)
			if err := s.lost(ctx, errors.New("the centre is silent")); err != nil {
				return err
			}
		case <-s.beat.C:
			if err := s.beats(ctx); err != nil {
				return err
			}
		case <-s.retry.C:
			if s.up == nil || !s.up.answered {
				s.open(ctx)
			}
		case <-news:
		case <-link:
			down, refused, link = r.link.state()
			if err := s.linkChanged(ctx, down, refused); err != nil {
				return err
			}
		}
	}
}

// linkChanged takes note of the state of the link.
func (s *session) linkChanged(ctx context.Context, down, refused bool) error {
	switch {
	case refused:
		if s.own.Load() {
			return s.mayServe(ctx, false)
		}
	case down:
		if !s.own.Load() && (s.up == nil || !s.up.answered) {
			return s.serve(ctx, s.sent == 0)
		}
	case s.up == nil || !s.up.answered:
		// All come at once: each takes a part of the time that it takes to let them in.
		s.retry.Reset(time.Duration(s.relay.random() * float64(s.relay.crowd())))
	}
	return nil
}

// returns is over which time the clients come back.
func (r *Relay) returns() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.comeBack
}

// crowd is over which time the streams go back to the centre.
func (r *Relay) crowd() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return min(time.Duration(len(r.sessions))*comeBackEach, comeBackMost)
}

func (s *session) send(answer *keyturnv1.WatchResponse) error {
	s.sent++
	return s.out.Send(answer)
}

// open asks the centre, with what the party holds now.
func (s *session) open(ctx context.Context) {
	s.close()
	ctx, cancel := context.WithCancel(ctx)
	up := &upstream{cancel: cancel, from: s.relay.config.Centre.Current(), sent: slices.Clone(s.knows)}
	s.up = up
	go s.receive(ctx, up)
}

// close gives the present stream to the centre up.
func (s *session) close() {
	if s.up != nil {
		s.up.cancel()
		s.up = nil
	}
	s.relayed.Store(false)
	s.watchdog.Stop()
}

// receive passes on what the centre answers.
func (s *session) receive(ctx context.Context, up *upstream) {
	tell := func(e event) bool {
		e.of = up
		select {
		case s.events <- e:
			return true
		case <-ctx.Done():
			return false
		}
	}
	calling, err := s.relay.asClient(ctx, &s.caller)
	if err != nil {
		tell(event{err: err, ended: true})
		return
	}
	stream, err := s.relay.centre.Watch(calling, &keyturnv1.WatchRequest{Party: s.party, Keys: wireKnown(up.sent)})
	if err != nil {
		tell(event{err: err, ended: true})
		return
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		if !tell(event{answer: stream.Msg()}) {
			return
		}
	}
	tell(event{err: stream.Err(), ended: true})
}

// on takes an event of the present stream to the centre.
func (s *session) on(ctx context.Context, e event) (done bool, err error) {
	r := s.relay
	if !e.ended {
		return s.pass(ctx, e.answer)
	}
	if e.err == nil {
		return false, s.lost(ctx, errors.New("the centre ended the stream"))
	}
	switch judge(e.err) {
	case isAnswer:
		r.link.answered()
		if s.sent > 0 && connect.CodeOf(e.err) == connect.CodeResourceExhausted {
			return false, s.full(ctx, e.err)
		}
		r.denied(ctx, &s.caller, s.names, e.err)
		return true, pass(e.err)
	case isRefusal, isAway:
		r.link.failed()
		if ctx.Err() == nil {
			r.config.Centre.Leave(s.up.from)
		}
		return false, s.lost(ctx, e.err)
	}
	return false, nil
}

// pass hands on what the centre answers.
func (s *session) pass(ctx context.Context, answer *keyturnv1.WatchResponse) (done bool, err error) {
	r, up := s.relay, s.up
	if d := answer.GetComeBack(); d.IsValid() && d.AsDuration() > 0 {
		return s.comeBack(ctx, answer, min(d.AsDuration(), time.Minute))
	}
	if !up.answered {
		up.answered = true
		s.noted = time.Time{}
		s.answered(ctx, up.sent)
		s.failures = 0
		s.own.Store(false)
		s.relayed.Store(true)
		r.newest(s)
		s.late.Stop()
		s.retry.Stop()
		s.beat.Stop()
	}
	if d := answer.GetHeartbeat(); d.IsValid() && d.AsDuration() > 0 {
		s.heartbeat = min(max(d.AsDuration(), time.Second), heartbeatMost)
	}
	s.watchdog.Reset(s.heartbeat)
	s.goesOn(ctx)
	s.told(answer.GetAssignments())
	return false, s.send(answer)
}

// comeBack leaves a server of the centre that stops: another one may serve already, else
// it is asked again when it said. The client need not hear of it.
func (s *session) comeBack(ctx context.Context, answer *keyturnv1.WatchResponse, within time.Duration) (done bool, err error) {
	centre, share := s.relay.config.Centre, s.relay.random()
	centre.Leave(s.up.from)
	if centre.Servers() == 1 {
		share = 0.25 + 0.75*share
	}
	s.close()
	if err := s.serve(ctx, s.sent == 0); err != nil {
		return true, s.send(answer)
	}
	s.retry.Reset(time.Duration(share * float64(within)))
	return false, nil
}

// lost goes on without the stream to the centre, and tries another one.
func (s *session) lost(ctx context.Context, err error) error {
	s.close()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.failures++
	s.retry.Reset(s.relay.backoff(s.failures))
	if s.own.Load() {
		return nil
	}
	if refused := s.serve(ctx, s.sent == 0); refused != nil {
		return s.cause(refused, err)
	}
	return nil
}

// full goes on without the centre, which has others to let in first: a client that is
// served need not hear of it.
func (s *session) full(ctx context.Context, err error) error {
	if lost := s.lost(ctx, err); lost != nil {
		return lost
	}
	wait := retryMost
	if wire, ok := asConnect(err); ok {
		if seconds, err := strconv.ParseUint(wire.Meta().Get("Retry-After"), 10, 16); err == nil {
			wait = min(time.Duration(seconds)*time.Second, time.Minute)
		}
	}
	// Everybody was told the same.
	s.retry.Reset(wait + time.Duration(s.relay.random()*float64(max(wait, retryLeast))))
	return nil
}

// cause adds why the centre did not answer.
func (s *session) cause(refused, err error) error {
	wire, ok := asConnect(refused)
	if !ok {
		return refused
	}
	return connect.NewError(wire.Code(), fmt.Errorf("%s (%w)", wire.Message(), err))
}

// serve begins to serve the client by the relay itself. An error says why it may not.
func (s *session) serve(ctx context.Context, isNew bool) error {
	if s.own.Load() {
		return nil
	}
	if err := s.mayServe(ctx, isNew); err != nil {
		return err
	}
	s.own.Store(true) // before it is noted: see tidyOnce
	if err := s.begin(ctx); err != nil {
		s.own.Store(false)
		return err
	}
	s.relay.newest(s)
	s.late.Stop()
	s.beat.Reset(0) // tells at once that somebody is there
	return nil
}

// beats gives a sign of life.
func (s *session) beats(ctx context.Context) error {
	if !s.own.Load() {
		return nil
	}
	if err := s.mayServe(ctx, false); err != nil {
		return err
	}
	every := s.relay.config.Heartbeat
	s.beat.Reset(every)
	return s.send(&keyturnv1.WatchResponse{Heartbeat: durationpb.New(3 * every)})
}

// offer hands out what the relay holds and the client lacks.
func (s *session) offer(ctx context.Context) error {
	list, err := s.handOut(ctx)
	if err != nil || len(list) == 0 {
		return err
	}
	every := s.relay.config.Heartbeat
	s.beat.Reset(every)
	if err := s.send(&keyturnv1.WatchResponse{Assignments: list, Heartbeat: durationpb.New(3 * every)}); err != nil {
		return err
	}
	if s.up != nil {
		s.open(ctx) // it was told of what the client held before
	}
	return nil
}
