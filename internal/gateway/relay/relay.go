package relay

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/forwarded"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// Relay implements the delivery API of a gateway. Its methods may be called concurrently.
type Relay struct {
	config Config
	clock  *clock
	cache  *cache
	link   *link
	keys   *keys
	grants *grants
	owed   *owed
	notes  *notes
	// hashKey is what tokens are hashed with.
	hashKey []byte

	centre  keyturnv1connect.DeliveryServiceClient
	gateway keyturnv1connect.GatewayServiceClient

	mu       sync.Mutex
	sessions map[*session]struct{}
	polls    int
	ownPolls int
	// latest is the newest stream of each party that the relay serves by itself.
	latest  map[string]*session
	stopped bool
	// comeBack is over which time the clients come back.
	comeBack time.Duration
	// marked: the cache says that the relay may have served somebody by itself.
	marked bool
	// seen is the time that was written last.
	seen time.Time

	saving   sync.Mutex
	stopping chan struct{}
	cancel   context.CancelFunc
	running  sync.WaitGroup
}

var _ keyturnv1connect.DeliveryServiceHandler = (*Relay)(nil)

// maxAnswerBytes bounds one answer of the centre: 1,000 keys of 64 KiB.
const maxAnswerBytes = 64 << 20

// Open returns a relay with what its cache holds; the centre need not answer. It fails
// with ErrConfig, and when the cache cannot be read or its keeper cannot be asked.
func Open(ctx context.Context, config Config) (*Relay, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	r := &Relay{
		config:   config,
		clock:    &clock{wall: config.Now, monotonic: config.Monotonic},
		cache:    &cache{store: config.Store, keeper: config.Keeper, belongs: belongs(config.Name, config.CentreName)},
		link:     newLink(config.Monotonic),
		sessions: map[*session]struct{}{}, latest: map[string]*session{}, stopping: make(chan struct{}),
	}
	r.keys = newKeys(r.cache, &r.config, r.clock.now)
	r.grants = newGrants(&r.config, r.clock.now)
	r.owed = newOwed(&r.config)
	r.notes = newNotes(r.cache, config.MaxHandouts)
	for i := range config.Parties {
		r.keys.parties = append(r.keys.parties, newParty(r, i))
	}
	options := connect.WithReadMaxBytes(maxAnswerBytes)
	r.centre = keyturnv1connect.NewDeliveryServiceClient(config.Centre, config.Centre.Address(), options)
	r.gateway = keyturnv1connect.NewGatewayServiceClient(config.Centre, config.Centre.Address(), options)
	if err := r.load(ctx); err != nil {
		return nil, fmt.Errorf("the gateway's cache: %w", err)
	}
	return r, nil
}

// clockSlack is how far a clock that is kept in step may be behind what it said before.
const clockSlack = 5 * time.Second

func (r *Relay) load(ctx context.Context) (err error) {
	if r.hashKey, err = r.cache.hashKey(ctx, &r.config); err != nil {
		return err
	}
	state, err := r.cache.state(ctx)
	if err != nil {
		return err
	}
	back := r.config.Now().Add(clockSlack).Before(state.Seen)
	if !back {
		r.clock.since(state.Seen)
	}
	if state.Own {
		// Who was served before, and by whom it is used, is not known any more.
		r.marked, r.owed.until = true, r.config.Monotonic().Add(r.config.ForgetClients)
	}
	for _, p := range r.keys.parties {
		p.registered = !state.Seen.IsZero()
	}
	if err := r.keys.load(ctx); err != nil {
		return err
	}
	if err := r.loadGrants(ctx, back); err != nil {
		return err
	}
	return r.notes.load(ctx, func(h *handout) {
		if h.Agent {
			r.owed.restore(h.Party, h.Key, h.Version, h.Epoch)
		}
	})
}

// loadGrants reads what the centre accepted. When the clock went back behind what the
// cache has seen it is not known how old that is: none of it counts.
func (r *Relay) loadGrants(ctx context.Context, back bool) error {
	if back {
		r.config.Logger.WarnContext(ctx, "the clock is behind what the gateway's cache has seen: nobody is served without the centre before that has answered them again")
	}
	return r.cache.list(ctx, kindGrant, func(doc *store.Doc) error {
		var record grantRecord
		raw, err := hex.DecodeString(doc.Name)
		if err != nil || len(raw) != len(subject{}) || json.Unmarshal(doc.Body, &record) != nil || back {
			if len(raw) == len(subject{}) {
				r.grants.load(subject(raw), nil)
			}
			return nil
		}
		r.grants.load(subject(raw), record.Accepted)
		return nil
	})
}

// Start begins to watch the centre. Stop must be called.
func (r *Relay) Start(ctx context.Context) {
	ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
	r.running.Go(func() { r.test(ctx) })
	r.running.Go(func() { r.tellAll(ctx) })
	r.running.Go(func() { r.tidy(ctx) })
	r.running.Go(func() { r.save(ctx) })
	for _, p := range r.keys.parties {
		r.running.Go(func() { p.run(ctx) })
		r.running.Go(func() { p.acknowledge(ctx) })
	}
	r.link.failed() // ask
}

const (
	// comeBackEach is what it takes to let one client in again.
	comeBackEach                = 500 * time.Microsecond
	comeBackLeast, comeBackMost = 500 * time.Millisecond, 30 * time.Second
)

// Stop tells the clients to come back, ends their streams, and waits for what runs. It
// may be called more than once.
func (r *Relay) Stop() {
	r.mu.Lock()
	if !r.stopped {
		r.stopped = true
		r.comeBack = min(max(time.Duration(len(r.sessions))*comeBackEach, comeBackLeast), comeBackMost)
		close(r.stopping)
	}
	r.mu.Unlock()
	if r.cancel != nil {
		r.cancel()
	}
	r.running.Wait()
}

// tidyEvery is how often what is not needed any more is removed, and the time noted.
const tidyEvery = 15 * time.Second

func (r *Relay) tidy(ctx context.Context) {
	ticker := time.NewTicker(tidyEvery)
	defer ticker.Stop()
	for {
		if err := r.tidyOnce(ctx); err != nil && ctx.Err() == nil {
			r.config.Logger.ErrorContext(ctx, "the gateway's cache could not be tidied; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (r *Relay) tidyOnce(ctx context.Context) error {
	left := r.owed.expire()
	for _, p := range r.keys.parties {
		nudge(p.answers)
	}
	r.grants.expire()
	if parties := r.owed.late(); len(parties) > 0 {
		r.config.Logger.WarnContext(ctx, "acknowledgements wait for parties that the gateway served by itself and that the centre did not hear of since; agents are waited for as long as they are served", "parties", parties)
	}
	r.mu.Lock()
	own := r.marked
	if left == 0 && !r.config.Monotonic().Before(r.owed.until) && !r.servesOwn() {
		own = false
	}
	r.mu.Unlock()
	return errors.Join(
		r.putState(ctx, own),
		r.notes.sweep(ctx, r.owesHandout),
		r.keys.tidy(ctx, r.owed),
	)
}

// servesOwn reports whether somebody is served by the relay itself; the caller holds the lock.
func (r *Relay) servesOwn() bool {
	if r.ownPolls > 0 {
		return true
	}
	for s := range r.sessions {
		if s.own.Load() {
			return true
		}
	}
	return false
}

// seenEvery is how far the time in the cache may lag.
const seenEvery = time.Minute

func (r *Relay) putState(ctx context.Context, own bool) error {
	now := r.clock.now()
	r.mu.Lock()
	same := r.marked == own && !r.seen.IsZero() && now.Sub(r.seen) < seenEvery
	r.marked = r.marked && own // who begins to be served now writes it again
	r.mu.Unlock()
	if same {
		return nil
	}
	r.keys.writing.Lock()
	defer r.keys.writing.Unlock()
	r.mu.Lock()
	own = own || r.marked
	r.mu.Unlock()
	err := r.cache.putState(ctx, stateRecord{Seen: now, Own: own})
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen = now; err != nil {
		r.seen, r.marked = time.Time{}, false // it is not known what is written
	}
	return err
}

// mark makes durable that the relay serves somebody by itself, before it does.
func (r *Relay) mark(ctx context.Context) error {
	r.mu.Lock()
	marked := r.marked
	r.mu.Unlock()
	if marked {
		return nil
	}
	r.keys.writing.Lock()
	defer r.keys.writing.Unlock()
	if err := r.cache.putState(ctx, stateRecord{Seen: r.clock.now(), Own: true}); err != nil {
		return fmt.Errorf("note that the gateway serves by itself: %w", err)
	}
	r.mu.Lock()
	r.marked = true
	r.mu.Unlock()
	return nil
}

// saveEvery is how often grants are written at most.
const saveEvery = time.Second

// save writes grants until ctx ends.
func (r *Relay) save(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
		case <-r.grants.changed:
			_ = sleep(ctx, saveEvery) // others come together with it
		}
		if ctx.Err() != nil {
			r.saveLast(ctx)
			return
		}
		if err := r.saveOnce(ctx); err != nil && ctx.Err() == nil {
			r.config.Logger.ErrorContext(ctx, "what the centre accepts is not written to the cache; trying again", "error", err)
		}
	}
}

func (r *Relay) saveLast(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := r.saveOnce(ctx); err != nil {
		r.config.Logger.ErrorContext(ctx, "what the centre accepted last is not in the cache", "error", err)
	}
}

func (r *Relay) saveOnce(ctx context.Context) error {
	r.saving.Lock() // a later state must not be overtaken by an earlier one
	defer r.saving.Unlock()
	for {
		list := r.grants.changes(pageOf)
		if len(list) == 0 {
			return nil
		}
		err := r.cache.store.Update(ctx, func(tx store.Tx) error {
			for _, one := range list {
				var body any
				if len(one.accepted) > 0 {
					body = grantRecord{one.accepted}
				}
				if err := put(ctx, tx, kindGrant, hex.EncodeToString(one.of[:]), body); err != nil {
					return err
				}
			}
			return nil
		})
		r.grants.settle(list, err == nil)
		if err != nil {
			return err
		}
	}
}

// tellRetry is how long to wait after a failure to tell of hand-outs.
const tellRetry = 5 * time.Second

// tellAll tells the centre of hand-outs whenever there are some, until ctx ends.
func (r *Relay) tellAll(ctx context.Context) {
	t := &teller{Relay: r, most: maxBatch, skip: map[same]time.Time{}}
	for wait := time.Duration(0); ctx.Err() == nil; {
		_ = sleep(ctx, wait)
		down, refused, changed := r.link.state()
		if down || refused {
			select {
			case <-ctx.Done():
			case <-changed:
			}
			wait = time.Duration(r.random() * float64(time.Second))
			continue
		}
		wait = time.Second
		var again <-chan time.Time
		if err := t.tell(ctx); err != nil && ctx.Err() == nil {
			if judge(err) == isAway {
				wait = tellRetry
				r.link.failed()
				continue
			}
			r.config.Logger.WarnContext(ctx, "the centre does not take what was handed out without it; it is kept", "retry_in", skipFor, "error", err)
		}
		if untold, _, _ := r.notes.untold(); untold > 0 {
			again = time.After(skipFor)
		}
		select {
		case <-ctx.Done():
		case <-r.notes.fresh:
		case <-again:
		}
	}
}

// Stats says how the relay fares.
func (r *Relay) Stats() Stats {
	down, refused, _ := r.link.state()
	s := Stats{Up: !down, Refused: refused, LastWord: r.link.last(), Grants: r.grants.number()}
	s.Keys, s.OnlyRelayed = r.keys.numbers()
	s.Untold, s.HandedOut, s.Full = r.notes.untold()
	for i := range r.keys.parties {
		_, held := r.keys.answers(i, r.owed)
		s.Held += held
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.Own = r.ownPolls
	for one := range r.sessions {
		switch {
		case one.own.Load():
			s.Own++
		case one.relayed.Load():
			s.Relayed++
		}
	}
	return s
}

// caller is who sends a request.
type caller struct {
	token   string // the Authorization header
	of      subject
	id      string // of the token
	address netip.Addr
}

func (r *Relay) caller(ctx context.Context) caller {
	info, ok := connect.CallInfoForHandlerContext(ctx)
	if !ok {
		return caller{}
	}
	c := caller{token: info.RequestHeader().Get("Authorization")}
	c.of = subjectOf(r.hashKey, c.token)
	c.id = idOf(c.token)
	if at, err := netip.ParseAddrPort(info.Peer().Addr); err == nil {
		c.address = at.Addr().Unmap().WithZone("")
	}
	return c
}

// idOf is what lists and audit entries call a token, which reads kt_ID_SECRET; empty if it
// does not. Of another text no part may be shown.
func idOf(authorization string) string {
	rest, ok := strings.CutPrefix(authorization, "Bearer kt_")
	id, _, found := strings.Cut(rest, "_")
	if !ok || !found || len(id) > maxTokenID || strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
		return ""
	}
	return id
}

const maxTokenID = 32

// addressText is the address for the audit log, which needs one.
func (c *caller) addressText() string {
	if !c.address.IsValid() {
		return netip.IPv6Unspecified().String()
	}
	return c.address.String()
}

// asClient returns a context for a call to the centre in the name of a client.
func (r *Relay) asClient(ctx context.Context, c *caller) (context.Context, error) {
	ctx, info := connect.NewClientContext(ctx)
	if c.token != "" {
		info.RequestHeader().Set("Authorization", c.token)
	}
	if c.address.IsValid() {
		token, err := r.config.Token.Token(ctx)
		if err != nil {
			return ctx, err
		}
		forwarded.Set(info.RequestHeader(), token.RevealString(), c.address)
	}
	return ctx, nil
}

// asGateway returns a context for a call to the centre in the relay's own name.
func (r *Relay) asGateway(ctx context.Context) (context.Context, error) {
	ctx, info := connect.NewClientContext(ctx)
	token, err := r.config.Token.Token(ctx)
	if err != nil {
		return ctx, err
	}
	info.RequestHeader().Set("Authorization", "Bearer "+token.RevealString())
	return ctx, nil
}

func asConnect(err error) (*connect.Error, bool) {
	var wire *connect.Error
	ok := errors.As(err, &wire)
	return wire, ok
}

// pass is an error of the centre as the client gets it: its code, its message, its
// details, and when to come back; nothing else of the answer.
func pass(err error) error {
	wire, ok := asConnect(err)
	if !ok {
		return connect.NewError(connect.CodeUnavailable, fmt.Errorf("the centre does not answer: %w", err))
	}
	again := connect.NewError(wire.Code(), errors.New(wire.Message()))
	for _, detail := range wire.Details() {
		again.AddDetail(detail)
	}
	if after := wire.Meta().Get("Retry-After"); after != "" {
		again.Meta().Set("Retry-After", after)
	}
	return again
}

// denied takes note of an answer of the centre that refuses a client.
func (r *Relay) denied(ctx context.Context, c *caller, names []key.Name, err error) {
	switch connect.CodeOf(err) {
	case connect.CodeUnauthenticated:
		names = nil
	case connect.CodePermissionDenied:
	default:
		return
	}
	if !r.grants.deny(c.of, names) {
		return
	}
	saving, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
	defer cancel()
	if err := r.saveOnce(saving); err != nil {
		r.config.Logger.ErrorContext(ctx, "a refusal of the centre is not in the cache yet; trying again", "error", err)
	}
}

// random returns a number in [0, 1).
func (*Relay) random() float64 { return rand.Float64() } //nolint:gosec // it spreads tries and guards no secret

// around returns a random duration between half and one and a half times mean.
func (r *Relay) around(mean time.Duration) time.Duration {
	return mean/2 + time.Duration(float64(mean)*r.random())
}

// backoff returns the pause after so many failures in a row, with full jitter.
func (r *Relay) backoff(failures int) time.Duration {
	ceiling := min(retryLeast<<min(max(failures-1, 0), 10), retryMost)
	return retryLeast/4 + time.Duration(r.random()*float64(ceiling-retryLeast/4))
}

// drawID draws the name of a batch.
func (r *Relay) drawID() string {
	var id [16]byte
	_, _ = io.ReadFull(r.config.Random, id[:]) // crypto/rand never fails
	return hex.EncodeToString(id[:])
}

func awayError(err error, why string) error {
	if err == nil {
		return connect.NewError(connect.CodeUnavailable, errors.New("the centre does not answer, and "+why))
	}
	return connect.NewError(connect.CodeUnavailable, fmt.Errorf("the centre does not answer, and %s: %w", why, err))
}

// agentOf is the party's name unless it is a client.
func agentOf(p *keyturnv1.Party) string {
	if p.GetKind() == keyturnv1.PartyKind_PARTY_KIND_CLIENT {
		return ""
	}
	return p.GetId()
}
