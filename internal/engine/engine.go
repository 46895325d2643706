package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine/breaker"
	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// The errors that callers can tell apart; others are failures of the store.
var (
	// ErrNotFound: there is no such key, version, rotation or party.
	ErrNotFound = errors.New("not found")
	// ErrInvalid: the request is malformed; its message says where and how to mend it.
	ErrInvalid = errors.New("invalid request")
	// ErrState: the key or rotation is in a state that does not allow the request.
	ErrState = errors.New("not possible now")
)

// Config is what an Engine needs. All fields without a default are required.
type Config struct {
	Store   store.Store
	Keeper  keeper.Keeper
	Drivers map[string]provider.Driver
	// Signer signs the audit log's checkpoints.
	Signer note.Signer
	// Fleet reaches the presenters.
	Fleet Fleet
	// Observer hears of everything that happens; it must not block.
	Observer Observer
	Logger   *slog.Logger
	// Now is the clock, Random a cryptographically secure source.
	Now    func() time.Time
	Random io.Reader
	// Monotonic is a clock that never jumps, for what is measured within this
	// process. Default: time.Now.
	Monotonic func() time.Time

	// Workers is how many effects run at once, those that take longer than a second
	// not counted, PerHost how many against one host. Emergencies have PerHost places
	// of their own for each host, and Reserve workers that nothing else takes.
	// Defaults: 32, 8 and 8.
	Workers int
	PerHost int
	Reserve int
	// Lease is how long an effect whose node has died stays reserved. While an
	// effect is carried out its lease is renewed; when that fails for two thirds of
	// it, the effect is cut short. Default: 6 s.
	Lease time.Duration
	// EffectTime bounds one try of an effect. Default: 20 s.
	EffectTime time.Duration
	// Poll is how often the store is asked without having been woken. Default: 1 s.
	Poll time.Duration
	// Seen, if not nil, hears of every checkpoint of the audit log once it is stored,
	// so that the node can tell by it whether the store was put back. See Recover.
	Seen func(signed []byte)
	// CheckpointEvery is how often the audit log is signed while it grows.
	// Default: 1 s.
	CheckpointEvery time.Duration
	// Acts is how many emergencies rules declare within an hour, ActsOfKey how many of
	// one key. Defaults: DefaultActs and DefaultActsOfKey.
	Acts, ActsOfKey int
	// Jitter spreads what failed together: it returns a duration from 0 to below its
	// argument. Default: a uniformly random one.
	Jitter func(time.Duration) time.Duration
}

// Fleet is the way to the presenters. Its methods may be called concurrently
// and must not block.
type Fleet interface {
	// Tell passes on what presenters of a key were told. It may be lost: a presenter
	// that reconnects is told again.
	Tell(name key.Name, tells []Tell)
	// Samples returns what presenters reported about a version since then, at
	// whichever server node. Without an error nothing that could be read is missing.
	Samples(ctx context.Context, name key.Name, version key.Version, since time.Time) ([]Sample, error)
	// Present reports whether a presenter of the key is connected to this node.
	Present(name key.Name) bool
}

// Baker is a Fleet that wants to know from when on reports about a version count.
type Baker interface {
	// Baking tells that version is judged by what is reported from now on; since
	// names the bake. Version 0 means that nothing is judged any more. It may be
	// told again.
	Baking(name key.Name, version key.Version, since time.Time)
}

// Tell is one presenter's new assignment.
type Tell struct {
	Presenter string
	Version   key.Version
	Epoch     uint64
	Rotation  key.RotationID
	At        time.Time
	// AckSpread is over which time acknowledgements should be spread, since many are
	// told together; 0 when they need not be.
	AckSpread time.Duration
	// Unanswered: the presenter has not said yet what became of it, or that it could not
	// follow. It is told again when it comes back, although it may have taken it into
	// use meanwhile: it may have crashed before it said so.
	Unanswered bool
}

// Sample is how a version fared at one presenter.
type Sample struct {
	Presenter string
	// Address is where the presenter reports from, as the server sees it; it may be
	// empty.
	Address string
	At      time.Time
	// Reports is how many reports it sums up; 0 stands for one.
	Reports      int
	Attempts     uint64
	AuthFailures uint64
	Healthy      bool
	Detail       string
}

// Observer hears of what happened, after it was committed. Its methods are
// called from many goroutines.
type Observer interface {
	// Moved tells of one change of a key.
	Moved(Moved)
	// Attempted tells of one try of an effect.
	Attempted(Attempted)
}

// Moved is one committed change.
type Moved struct {
	Key key.Name
	At  time.Time
	rotation.Transition
	// Record is the rotation concerned as it stands now; nil if none is.
	Record *RotationRecord
	// Names are the parties a hold waits for, at most 20.
	Names []string
	// Since is when the rotation entered the phase that it leaves; zero if it leaves none.
	Since time.Time
	// Region is that of the verifier or presenter that it is about.
	Region string
	// Late are the regions a hold waits for.
	Late []LateRegion
}

// Attempted is one try of an effect.
type Attempted struct {
	Key     key.Name
	Effect  rotation.EffectRef
	Attempt int
	Started time.Time
	Took    time.Duration
	Err     error
	Outcome rotation.Outcome
	// Waits: it takes its time, for the reason in Err, and is tried again; nothing
	// failed.
	Waits    bool
	Rotation key.RotationID
}

// Engine runs rotations. Its methods may be called concurrently.
type Engine struct {
	config    Config
	store     store.Store
	watched   *watchedStore // the same
	log       *slog.Logger
	states    stateCache
	systems   systemCache
	keys      contentCache[*policy.Key]
	rules     contentCache[*policy.Compiled]
	freezes   contentCache[*policy.CompiledFreeze]
	hosts     contentCache[hostsOf]
	anomalies contentCache[*policy.CompiledRule]
	uses      observed
	retries   retries
	// arrivals are parties that attach.
	arrivals arrivals
	held     heldLeases
	passage  passage
	leaks    leakPepper
	news     follower
	// silence is which targets do not answer this node.
	silence *breaker.Set
	workers *workers
	// ticks, schedules and reviews wake the time-keepers of rotations, of keys, and
	// of looks at all keys.
	ticks, schedules, reviews chan struct{}

	mu      sync.Mutex
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// New checks config and returns an engine that is not started: it answers and
// takes commands, but carries out nothing.
func New(config Config) (*Engine, error) {
	missing := map[string]bool{
		"Store": config.Store == nil, "Keeper": config.Keeper == nil, "Signer": config.Signer == nil, "Fleet": config.Fleet == nil,
		"Observer": config.Observer == nil, "Logger": config.Logger == nil, "Now": config.Now == nil, "Random": config.Random == nil,
	}
	for field, is := range missing {
		if is {
			return nil, fmt.Errorf("engine: Config.%s is required", field)
		}
	}
	config.Workers = orDefault(config.Workers, 32)
	config.Acts, config.ActsOfKey = orDefault(config.Acts, DefaultActs), orDefault(config.ActsOfKey, DefaultActsOfKey)
	config.PerHost = orDefault(config.PerHost, 8)
	config.Reserve = orDefault(config.Reserve, 8)
	config.Lease = orDefault(config.Lease, 6*time.Second)
	config.EffectTime = orDefault(config.EffectTime, 20*time.Second)
	config.Poll = orDefault(config.Poll, time.Second)
	config.CheckpointEvery = orDefault(config.CheckpointEvery, time.Second)
	if config.Monotonic == nil {
		config.Monotonic = time.Now
	}
	if config.Jitter == nil {
		config.Jitter = rand.N[time.Duration]
	}
	silence := breaker.New(breaker.Config{
		Failures: silentAfter, First: probeFirst, Last: retryMax, Abandoned: maxAbandoned, Spread: config.Jitter,
	})
	watched := &watchedStore{Store: config.Store, now: config.Now}
	return &Engine{
		config: config, store: watched, watched: watched, log: config.Logger, silence: silence, workers: newWorkers(config.Workers),
		leaks: leakPepper{turn: make(chan struct{}, 1)},
		ticks: make(chan struct{}, 1), schedules: make(chan struct{}, 1), reviews: make(chan struct{}, 1),
	}, nil
}

func orDefault[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// Start begins to carry out effects and to keep time. It returns at once;
// calling it again before Stop does nothing.
func (e *Engine) Start(ctx context.Context) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cancel != nil {
		return
	}
	ctx, e.cancel = context.WithCancel(context.WithoutCancel(ctx))
	for _, run := range []func(context.Context){e.work, e.keepRotations, e.keepSchedules, e.keepReviews, e.signLog, e.keepClean, e.keepLeases, e.keepUses} {
		e.running.Go(func() { run(ctx) })
	}
	follows := e.news.begin()
	e.running.Go(func() { e.follow(ctx, follows) })
}

// Stop lets running effects end or be cut short, and returns when all have.
// Calling it again does nothing. Unfinished effects are taken up by the next
// Start, here or elsewhere.
func (e *Engine) Stop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cancel == nil {
		return
	}
	e.cancel()
	e.running.Wait()
	e.cancel = nil
	e.systems.close()
}

// Server is the actor of what the engine does by itself.
func Server() audit.Actor { return audit.Actor{ID: "keyturn", Kind: "server"} }
