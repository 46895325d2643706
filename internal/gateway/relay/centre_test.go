package relay_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/forwarded"
)

const (
	gatewayToken = "kt_gateway_x"
	gatewayName  = "gw"
	forgetAfter  = 2 * time.Minute
	beat         = 10 * time.Second
)

// centre is a model of the centre: one party for each name, versions of keys that it
// tells in one stage, and the rule of the protocol that a version is revoked when no
// registered presenter may be using it.
type centre struct {
	t testing.TB

	mu      sync.Mutex
	keys    map[string]*modelKey
	seen    map[string]time.Time // parties: when their last stream ended; zero: connected
	kinds   map[string]keyturnv1.PartyKind
	streams map[string]*modelStream
	tokens  map[string]string // with the prefix of the keys that it covers
	// revoked hears of every version that is revoked.
	revoked func(name string, v uint64)
	batches map[string]bool
	told    []*keyturnv1.Handout
	acks    []string
	// busy blocks every request until it is closed.
	busy chan struct{}
	// refuseGateway refuses the gateway's own token.
	refuseGateway bool
	// mute lets no answer of a stream through.
	mute bool
	// full is how many calls of Watch it refuses, since it has too much to do.
	full int
	// refuseHandout is a key of which it takes no hand-outs.
	refuseHandout string
	// forgot counts clients that were forgotten.
	forgot int
	stops  chan struct{}
	// stopped: the process does not run.
	stopped bool
}

type modelKey struct {
	current, target, last uint64
	epoch                 uint64
	accepted              map[uint64]bool
	presenters            map[string]*modelPresenter
}

type modelPresenter struct {
	told, epoch uint64
	acked       bool
	maybe       map[uint64]bool
}

type modelStream struct {
	wake  chan struct{}
	ended chan struct{}
	known map[string]uint64 // epochs
	// again: what is not acknowledged was told again already.
	again map[string]bool
}

func newCentre(t testing.TB, keys ...string) *centre {
	c := &centre{
		t: t, keys: map[string]*modelKey{}, seen: map[string]time.Time{}, kinds: map[string]keyturnv1.PartyKind{}, streams: map[string]*modelStream{},
		tokens: map[string]string{gatewayToken: "", "kt_app_x": ""}, revoked: func(string, uint64) {}, batches: map[string]bool{}, stops: make(chan struct{}),
	}
	for _, name := range keys {
		c.keys[name] = &modelKey{current: 1, last: 1, accepted: map[uint64]bool{1: true}, presenters: map[string]*modelPresenter{}}
	}
	return c
}

func (c *centre) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(keyturnv1connect.NewDeliveryServiceHandler(c))
	mux.Handle(keyturnv1connect.NewGatewayServiceHandler(c))
	return mux
}

// token makes a token good for the keys with a prefix.
func (c *centre) token(token, prefix string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tokens[token] = prefix
}

func (c *centre) revoke(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.tokens, token)
}

// rotate mints a version and tells everybody.
func (c *centre) rotate(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.keys[name]
	if k.target != 0 {
		return
	}
	k.last++
	k.target = k.last
	k.accepted[k.target] = true
	c.advance(name)
}

// back rolls a rotation back that is under way.
func (c *centre) back(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys[name].target = 0
	c.advance(name)
}

// advance follows the protocol; the caller holds the lock.
func (c *centre) advance(name string) {
	k := c.keys[name]
	want := k.current
	if k.target != 0 {
		want = k.target
	}
	all := true
	for id, p := range k.presenters {
		if p.told != want {
			k.epoch++
			p.told, p.epoch, p.acked = want, k.epoch, false
			p.maybe[want] = true
			if s := c.streams[id]; s != nil {
				wake(s.wake)
			}
		}
		all = all && p.acked && len(p.maybe) == 1
	}
	if k.target != 0 && all && len(k.presenters) > 0 {
		k.current, k.target = k.target, 0
	}
	for v := range k.accepted {
		used := v == k.current || v == k.target
		for _, p := range k.presenters {
			used = used || p.maybe[v]
		}
		if !used {
			delete(k.accepted, v)
			c.revoked(name, v)
		}
	}
}

func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// forget forgets clients that are away; the centre calls it as time passes.
func (c *centre) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, at := range c.seen {
		if !c.stopped && !at.IsZero() && time.Since(at) >= forgetAfter && c.kinds[id] == keyturnv1.PartyKind_PARTY_KIND_CLIENT {
			c.remove(id)
			c.forgot++
		}
	}
}

// remove takes a party from its keys; the caller holds the lock.
func (c *centre) remove(id string) {
	delete(c.seen, id)
	delete(c.kinds, id)
	for name, k := range c.keys {
		if _, is := k.presenters[id]; is {
			delete(k.presenters, id)
			c.advance(name)
		}
	}
}

// run says whether the process runs.
func (c *centre) run(is bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped == !is {
		return
	}
	c.stopped = !is
	for id, at := range c.seen {
		if !at.IsZero() {
			c.seen[id] = time.Now() // it cannot know how long they are away
		}
	}
}

func (c *centre) allow(ctx context.Context, keys []string) error {
	info, _ := connect.CallInfoForHandlerContext(ctx)
	c.mu.Lock()
	busy := c.busy
	c.mu.Unlock()
	if busy != nil {
		select {
		case <-busy:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	token := strings.TrimPrefix(info.RequestHeader().Get("Authorization"), "Bearer ")
	claim, is, err := forwarded.Parse(info.RequestHeader())
	if err != nil || is && (claim.Token.RevealString() != gatewayToken || c.refuseGateway) {
		refusal := connect.NewError(connect.CodeUnauthenticated, errors.New("the gateway is refused"))
		refusal.Meta().Set(forwarded.Gateway, forwarded.Refused)
		return refusal
	}
	if !is && token != gatewayToken {
		c.t.Errorf("a request of a client came without the gateway's headers")
	}
	prefix, known := c.tokens[token]
	if !known || token == gatewayToken && c.refuseGateway {
		return connect.NewError(connect.CodeUnauthenticated, errors.New("unknown token"))
	}
	for _, name := range keys {
		if !strings.HasPrefix(name, prefix) {
			return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("not allowed: the token of x does not cover key %s, only %s**; ask an admin for one that does", name, prefix))
		}
	}
	for _, name := range keys {
		if c.keys[name] == nil {
			return connect.NewError(connect.CodeNotFound, fmt.Errorf("not found: key %s; apply it first", name))
		}
	}
	return nil
}

// join registers a party with what it holds; the caller holds the lock.
func (c *centre) join(party *keyturnv1.Party, keys []*keyturnv1.Known) {
	c.kinds[party.GetId()] = party.GetKind()
	for name, k := range c.keys {
		if _, is := k.presenters[party.GetId()]; is && !slices.ContainsFunc(keys, func(known *keyturnv1.Known) bool { return known.GetKey() == name }) {
			delete(k.presenters, party.GetId())
			c.advance(name)
		}
	}
	for _, known := range keys {
		k := c.keys[known.GetKey()]
		p := k.presenters[party.GetId()]
		if p == nil {
			p = &modelPresenter{maybe: map[uint64]bool{}}
			k.presenters[party.GetId()] = p
		}
		k.epoch = max(k.epoch, known.GetEpoch())
		if v := known.GetVersion(); v != 0 && !p.maybe[v] {
			p.maybe[v] = true
			p.acked = false
		}
		if known.GetVersion() != p.told || known.GetEpoch() > p.epoch {
			p.told, p.acked = 0, false
		}
		c.advance(known.GetKey())
	}
}

// due is what a stream is to be told; the caller holds the lock.
func (c *centre) due(id string, s *modelStream) []*keyturnv1.Assignment {
	var list []*keyturnv1.Assignment
	for _, name := range slices.Sorted(maps.Keys(s.known)) {
		p := c.keys[name].presenters[id]
		if p == nil || p.told == 0 || p.epoch <= s.known[name] && (p.acked || s.again[name]) {
			continue
		}
		s.known[name], s.again[name] = p.epoch, true
		list = append(list, assignment(name, p.told, p.epoch))
	}
	return list
}

func assignment(name string, v, epoch uint64) *keyturnv1.Assignment {
	return &keyturnv1.Assignment{
		Key: name, Version: v, Epoch: epoch, Attributes: map[string]string{"username": "u"},
		Secrets: map[string][]byte{"password": fmt.Appendf(nil, "%s-%d", name, v)},
	}
}

func names(keys []*keyturnv1.Known) (list []string) {
	for _, k := range keys {
		list = append(list, k.GetKey())
	}
	return list
}

func (c *centre) Watch(ctx context.Context, req *keyturnv1.WatchRequest, out *connect.ServerStream[keyturnv1.WatchResponse]) error {
	if err := c.allow(ctx, names(req.GetKeys())); err != nil {
		return err
	}
	c.mu.Lock()
	full, mute := c.full > 0, c.mute
	c.full--
	c.mu.Unlock()
	if mute {
		<-ctx.Done()
		return ctx.Err()
	}
	if full {
		err := connect.NewError(connect.CodeResourceExhausted, errors.New("too many calls"))
		err.Meta().Set("Retry-After", "3")
		return err
	}
	id := req.GetParty().GetId()
	s := &modelStream{wake: make(chan struct{}, 1), ended: make(chan struct{}), known: map[string]uint64{}, again: map[string]bool{}}
	for _, k := range req.GetKeys() {
		s.known[k.GetKey()] = k.GetEpoch()
	}
	c.mu.Lock()
	if old := c.streams[id]; old != nil {
		close(old.ended)
	}
	c.streams[id], c.seen[id] = s, time.Time{}
	c.join(req.GetParty(), req.GetKeys())
	stops := c.stops
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.streams[id] == s {
			delete(c.streams, id)
			if _, is := c.seen[id]; is {
				c.seen[id] = time.Now()
			}
		}
	}()
	for first := true; ; first = false {
		c.mu.Lock()
		list := c.due(id, s)
		c.mu.Unlock()
		if len(list) == 0 && !first {
			timer := time.NewTimer(beat)
			select {
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			case <-s.ended:
				timer.Stop()
				return connect.NewError(connect.CodeAborted, errors.New("replaced"))
			case <-stops:
				timer.Stop()
				return out.Send(&keyturnv1.WatchResponse{ComeBack: durationpb.New(2 * time.Second)})
			case <-s.wake:
				timer.Stop()
				continue
			case <-timer.C:
			}
		}
		if err := out.Send(&keyturnv1.WatchResponse{Assignments: list, Heartbeat: durationpb.New(3 * beat)}); err != nil {
			return err
		}
	}
}

func (c *centre) Poll(ctx context.Context, req *keyturnv1.PollRequest) (*keyturnv1.PollResponse, error) {
	if err := c.allow(ctx, names(req.GetKeys())); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	id := req.GetParty().GetId()
	if _, is := c.streams[id]; !is {
		c.seen[id] = time.Now()
	}
	c.join(req.GetParty(), req.GetKeys())
	s := &modelStream{known: map[string]uint64{}, again: map[string]bool{}}
	for _, k := range req.GetKeys() {
		s.known[k.GetKey()] = k.GetEpoch()
	}
	return &keyturnv1.PollResponse{Assignments: c.due(id, s)}, nil
}

func (c *centre) Ack(ctx context.Context, req *keyturnv1.AckRequest) (*keyturnv1.AckResponse, error) {
	var list []string
	for _, o := range req.GetOutcomes() {
		list = append(list, o.GetKey())
	}
	if err := c.allow(ctx, list); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range req.GetOutcomes() {
		p := c.keys[o.GetKey()].presenters[req.GetPartyId()]
		if p == nil || p.epoch != o.GetEpoch() || p.told == 0 {
			continue
		}
		p.acked, p.maybe = true, map[uint64]bool{p.told: true, o.GetUsing(): true}
		c.acks = append(c.acks, fmt.Sprintf("%s %s %d", req.GetPartyId(), o.GetKey(), o.GetVersion()))
		c.advance(o.GetKey())
	}
	return &keyturnv1.AckResponse{}, nil
}

func (c *centre) Report(ctx context.Context, _ *keyturnv1.ReportRequest) (*keyturnv1.ReportResponse, error) {
	return &keyturnv1.ReportResponse{}, c.allow(ctx, nil)
}

func (c *centre) Leave(ctx context.Context, req *keyturnv1.LeaveRequest) (*keyturnv1.LeaveResponse, error) {
	if err := c.allow(ctx, nil); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(req.GetPartyId())
	return &keyturnv1.LeaveResponse{}, nil
}

func (c *centre) Join(context.Context, *keyturnv1.JoinRequest) (*keyturnv1.JoinResponse, error) {
	return &keyturnv1.JoinResponse{PartyId: "agent-1", Token: "kt_joined_x"}, nil
}

func (c *centre) Handouts(ctx context.Context, req *keyturnv1.HandoutsRequest) (*keyturnv1.HandoutsResponse, error) {
	if err := c.allow(ctx, nil); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range req.GetHandouts() {
		if h.GetKey() == c.refuseHandout {
			return nil, connect.NewError(connect.CodePermissionDenied, errors.New("the token does not cover it"))
		}
	}
	if !c.batches[req.GetBatchId()] {
		c.batches[req.GetBatchId()] = true
		c.told = append(c.told, req.GetHandouts()...)
	}
	return &keyturnv1.HandoutsResponse{}, nil
}

// acked reports whether a party's acknowledgement of a version has come.
func (c *centre) acked(party, name string, v uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.acks, fmt.Sprintf("%s %s %d", party, name, v))
}

// accepts reports whether a version is accepted.
func (c *centre) accepts(name string, v uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keys[name].accepted[v]
}

// handedOut are the hand-outs that the centre was told of.
func (c *centre) handedOut() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []string
	for _, h := range c.told {
		list = append(list, fmt.Sprintf("%s %s %s %d x%d %s", h.GetTokenId(), h.GetPartyId(), h.GetKey(), h.GetVersion(), h.GetCount(), h.GetClientAddress()))
	}
	slices.Sort(list)
	return list
}
