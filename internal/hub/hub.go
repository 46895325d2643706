package hub

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

var (
	// ErrFull: the server has as many sessions as it may have.
	ErrFull = errors.New("too many connected parties")
	// ErrReplaced: the party has connected again; only its latest session counts.
	ErrReplaced = errors.New("the party has connected again")
	// ErrStopped: the hub is stopping.
	ErrStopped = errors.New("the server is stopping")
)

// Core is what the hub needs of the engine.
type Core interface {
	Attach(ctx context.Context, actor audit.Actor, party engine.PartyRecord, holdings []engine.Holding) (map[key.Name]engine.Tell, error)
	Detach(ctx context.Context, actor audit.Actor, id, reason string, unless func(context.Context, store.Tx) (bool, error)) error
	Acknowledge(ctx context.Context, actor audit.Actor, name key.Name, acks []rotation.Ack) error
	Assigned(ctx context.Context, name key.Name, id string) (tell engine.Tell, unwell, ok bool, err error)
	Material(ctx context.Context, name key.Name, v key.Version) (provider.Material, error)
	Parties(ctx context.Context, after string, limit int) ([]engine.PartyRecord, error)
	Bake(ctx context.Context, name key.Name) (version key.Version, since time.Time, err error)
}

// Config is what a Hub needs. Logger and Now are required.
type Config struct {
	Logger *slog.Logger
	Now    func() time.Time
	// Monotonic is a clock that never jumps, for what is measured within this
	// process. Default: time.Now.
	Monotonic func() time.Time
	// Store is where the nodes on one store meet: each tells there who is connected
	// to it and what they report. Nil: the hub is alone.
	Store store.Store
	// Random names the node among the others. Default: crypto/rand.
	Random io.Reader
	// MaxSessions bounds the sessions. Default: 20,000.
	MaxSessions int
	// ForgetClients is after how long without a session a party of kind client is
	// forgotten, provided that its region, if it names one, is heard of. Default: 2
	// minutes. With less than a minute a region that is cut off may be mistaken for
	// single clients that ended, since dead connections are found one by one.
	ForgetClients time.Duration
	// Sampled hears of every report, with the party's label "cohort"; it must not
	// block. May be nil.
	Sampled func(name key.Name, version key.Version, cohort string, sample engine.Sample)
	// AckPause is how long acknowledgements wait for company. Default: 5 ms.
	AckPause time.Duration
}

// Hub implements engine.Fleet. Its methods may be called concurrently.
type Hub struct {
	config    Config
	core      Core
	materials materials
	reports   reports
	acks      acks
	node      *node

	mu       sync.Mutex
	sessions map[sessionOf]*Session
	// keys counts the sessions of each key.
	keys map[key.Name]int
	// seen is when a registered party that is away was last there.
	seen map[string]time.Time
	// crowd spreads the acknowledgements of those who are told.
	crowd   crowd
	stopped bool
	// comeBack is over which time those who were connected come back.
	comeBack time.Duration

	cancel  context.CancelFunc
	running sync.WaitGroup
}

// sessionOf names a session: a party may poll beside its stream, to learn
// whether the stream still gets through, without losing it.
type sessionOf struct {
	party string
	poll  bool
}

// New returns a hub; Use gives it its engine before Start.
func New(config Config) *Hub {
	if config.MaxSessions == 0 {
		config.MaxSessions = 20_000
	}
	if config.ForgetClients == 0 {
		config.ForgetClients = 2 * time.Minute
	}
	if config.Monotonic == nil {
		config.Monotonic = time.Now
	}
	if config.AckPause == 0 {
		config.AckPause = 5 * time.Millisecond
	}
	if config.Random == nil {
		config.Random = rand.Reader
	}
	h := &Hub{config: config, sessions: map[sessionOf]*Session{}, seen: map[string]time.Time{}, keys: map[key.Name]int{}}
	h.acks.init(h)
	h.node = newNode(h)
	return h
}

// Use tells the hub its engine. It is called once, before anything else.
func (h *Hub) Use(core Core) { h.core = core }

// Start begins to forget clients that stay away, and to meet other nodes.
func (h *Hub) Start(ctx context.Context) {
	ctx, h.cancel = context.WithCancel(context.WithoutCancel(ctx))
	h.running.Go(func() { h.forget(ctx) })
	if h.config.Store != nil {
		h.running.Go(func() { h.node.run(ctx) })
	}
}

// Stop ends all sessions and waits for acknowledgements under way.
func (h *Hub) Stop() {
	each := comeBackEach
	if h.node.accompanied() {
		each = goElsewhereEach
	}
	h.mu.Lock()
	if h.stopped {
		h.mu.Unlock()
		return
	}
	h.stopped = true
	sessions := slices.Collect(maps.Values(h.sessions))
	h.comeBack = min(max(time.Duration(len(sessions))*each, comeBackLeast), comeBackMost)
	h.mu.Unlock()
	h.acks.stop()
	for _, s := range sessions {
		s.end(ErrStopped)
	}
	if h.cancel != nil {
		h.cancel()
	}
	h.running.Wait()
	h.materials.forgetAll()
}

const (
	// comeBackEach is what it takes to let one party in again: its handshake, its
	// registration and its share of the clients' own work.
	comeBackEach = 500 * time.Microsecond
	// goElsewhereEach is what it takes other nodes to let one in that was never there:
	// it registers anew, and they have parties of their own.
	goElsewhereEach             = 1500 * time.Microsecond
	comeBackLeast, comeBackMost = 500 * time.Millisecond, 30 * time.Second
)

// ComeBack is over which time the parties that were connected when the hub stopped
// should spread their return; zero before.
func (h *Hub) ComeBack() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.comeBack
}

// Connect registers the party with what it holds, and opens its session. An
// older session of the same party ends with ErrReplaced. What the party was told
// and has not answered it is told again, even if it holds it already.
func (h *Hub) Connect(ctx context.Context, actor audit.Actor, party engine.PartyRecord, holdings []engine.Holding) (*Session, error) {
	return h.connect(ctx, actor, party, holdings, false)
}

// Poll registers the party with what it holds and waits for assignments, as a
// session does that is closed afterwards. It leaves an open session of the party
// alone; an older Poll of it ends with ErrReplaced.
func (h *Hub) Poll(ctx context.Context, actor audit.Actor, party engine.PartyRecord, holdings []engine.Holding, wait time.Duration) ([]Delivery, error) {
	s, err := h.connect(ctx, actor, party, holdings, true)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return s.Next(ctx, wait)
}

func (h *Hub) connect(ctx context.Context, actor audit.Actor, party engine.PartyRecord, holdings []engine.Holding, poll bool) (*Session, error) {
	s := &Session{
		hub: h, party: party, poll: poll, changed: make(chan struct{}, 1), ended: make(chan struct{}),
		waiting: map[key.Name]engine.Tell{}, known: map[key.Name]engine.Holding{}, watched: map[key.Name]struct{}{},
	}
	for _, holding := range holdings {
		s.known[holding.Key] = holding
		s.watched[holding.Key] = struct{}{}
	}
	// The session is there before the party is attached, so that no tell falls
	// between the two.
	if err := h.add(s); err != nil {
		return nil, err
	}
	tells, err := h.core.Attach(ctx, actor, party, holdings)
	if err != nil {
		s.Close()
		return nil, err
	}
	h.mu.Lock()
	s.attached = true
	h.seen[party.ID] = h.config.Now()
	if h.sessions[s.of()] == s {
		h.node.came(s)
	}
	h.mu.Unlock()
	for name, tell := range tells {
		s.put(name, tell)
	}
	return s, nil
}

func (h *Hub) add(s *Session) error {
	h.mu.Lock()
	of := s.of()
	old := h.sessions[of]
	switch {
	case h.stopped:
		h.mu.Unlock()
		return ErrStopped
	case old == nil && len(h.sessions) >= h.config.MaxSessions:
		h.mu.Unlock()
		return fmt.Errorf("%w: %d are the limit of this server", ErrFull, h.config.MaxSessions)
	}
	h.sessions[of] = s
	h.count(s, 1)
	if old != nil {
		h.count(old, -1)
	}
	h.mu.Unlock()
	if old != nil {
		old.end(ErrReplaced)
	}
	return nil
}

func (h *Hub) remove(s *Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sessions[s.of()] != s {
		return
	}
	delete(h.sessions, s.of())
	h.count(s, -1)
	if s.attached {
		h.seen[s.party.ID] = h.config.Now()
		h.node.went(s)
	}
}

// count adds n to the sessions of each of the session's keys; the caller holds
// the lock.
func (h *Hub) count(s *Session, n int) {
	for name := range s.watched {
		if h.keys[name] += n; h.keys[name] == 0 {
			delete(h.keys, name)
		}
	}
}

// Present implements engine.Fleet.
func (h *Hub) Present(name key.Name) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.keys[name] > 0
}

// Tell implements engine.Fleet.
func (h *Hub) Tell(name key.Name, tells []engine.Tell) {
	h.mu.Lock()
	defer h.mu.Unlock()
	here := 0
	for i := range tells {
		here += len(h.sessionsOf(tells[i].Presenter))
	}
	spread := h.crowd.spread(h.config.Monotonic(), here)
	for _, tell := range tells {
		tell.AckSpread = spread
		for _, s := range h.sessionsOf(tell.Presenter) {
			s.put(name, tell)
		}
	}
}

// Presence says whether a party is connected to any node, and when it was last
// seen there; zero if that was before this node started. What other nodes know
// arrives within seconds; what was connected to a node that died counts as away
// after deadAfter.
func (h *Hub) Presence(id string) (connected bool, lastSeen time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.sessionsOf(id)) > 0 || h.node.elsewhere(id) {
		return true, h.config.Now()
	}
	return false, h.seen[id]
}

// Connected is the number of sessions.
func (h *Hub) Connected() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.sessions)
}

// sessionsOf returns the party's sessions; the caller holds the lock.
func (h *Hub) sessionsOf(id string) []*Session {
	var list []*Session
	for _, poll := range []bool{false, true} {
		if s, ok := h.sessions[sessionOf{party: id, poll: poll}]; ok {
			list = append(list, s)
		}
	}
	return list
}

func (h *Hub) endSessionsOf(id string) {
	h.mu.Lock()
	sessions := h.sessionsOf(id)
	h.mu.Unlock()
	for _, s := range sessions {
		s.end(ErrReplaced)
	}
}

// Leave ends the party's sessions and removes it from its keys. A party that
// connects at the same moment has to connect again.
func (h *Hub) Leave(ctx context.Context, actor audit.Actor, id, reason string) error {
	h.endSessionsOf(id)
	return h.leave(ctx, actor, id, reason, nil)
}

func (h *Hub) leave(ctx context.Context, actor audit.Actor, id, reason string, unless func(context.Context, store.Tx) (bool, error)) error {
	if err := h.core.Detach(ctx, actor, id, reason, unless); err != nil {
		return err
	}
	// A session that was opened meanwhile may have been attached before: it would
	// hear of nothing any more.
	h.endSessionsOf(id)
	h.mu.Lock()
	delete(h.seen, id)
	h.mu.Unlock()
	h.reports.drop(id)
	return nil
}

// The kinds of parties.
const (
	// KindAgent: rotations wait for it while it is away.
	KindAgent = "agent"
	// KindClient: it is forgotten when it stays away.
	KindClient = "client"
)
