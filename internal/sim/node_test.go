package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/key"
)

// node is one server, over all its lives.
type node struct {
	w      *world
	name   string
	region string
	// ahead is how far its clock is ahead; skew how far that of its machine is, until
	// the server sets its own by the database's again.
	ahead, skew atomic.Int64
	// keeperDown: its keeper does not answer.
	keeperDown atomic.Bool
	drawn      atomic.Int64
	life       *life
	lives      int
}

// life is one process of a server: the real engine and the real hub.
type life struct {
	*node
	engine *engine.Engine
	hub    *hub.Hub
	ctx    context.Context
	cancel context.CancelFunc
	// era is how often the store had been put back when it began.
	era int
	// dead: it has crashed, and what it does reaches nobody. stopping: it ends in peace.
	// ready: it has started.
	dead, stopping, ready atomic.Bool
}

func newNode(w *world, name, region string) *node { return &node{w: w, name: name, region: region} }

func (n *node) now() time.Time { return time.Now().Add(time.Duration(n.ahead.Load() + n.skew.Load())) }

// Read implements io.Reader: what a server draws follows from what it drew before.
func (n *node) Read(p []byte) (int, error) {
	drawn := n.drawn.Add(1)
	seed := uint64(drawn)<<8 ^ n.w.seed<<32 ^ uint64(n.name[len(n.name)-1])
	for i := range p {
		seed = seed*6364136223846793005 + 1442695040888963407
		p[i] = byte(seed >> 56)
	}
	return len(p), nil
}

// start begins a new life.
func (n *node) start() {
	w := n.w
	n.lives++
	l := &life{node: n, era: w.restores}
	l.ctx, l.cancel = context.WithCancel(w.ctx)
	logger := slog.New(slog.DiscardHandler)
	meet := hub.Config{Logger: logger, Now: n.now, Random: n}
	if len(w.nodes) > 1 {
		meet.Store = lifeStore{l}
	}
	l.hub = hub.New(meet)
	e, err := engine.New(engine.Config{
		Store: lifeStore{l}, Keeper: lifeKeeper{l}, Drivers: w.drivers(l), Signer: w.signer, Fleet: lifeFleet{l.hub, l}, Observer: nobody{}, Logger: logger,
		Now: n.now, Random: n, Poll: 5 * time.Second, CheckpointEvery: time.Minute,
		Jitter: func(d time.Duration) time.Duration { return d / 2 },
	})
	if err != nil {
		w.violate("starts", "%s: %v", n.name, err)
		return
	}
	l.engine = e
	l.hub.Use(e)
	n.life = l
	go func() {
		for e.Recover(l.ctx, nil) != nil {
			if pause(l.ctx, time.Second); l.dead.Load() || l.ctx.Err() != nil {
				return
			}
		}
		if l.dead.Load() {
			return
		}
		e.Start(l.ctx)
		l.hub.Start(l.ctx)
		l.ready.Store(true)
	}()
}

// up returns the server if it runs.
func (n *node) up() *life {
	if n.life == nil || n.life.dead.Load() || n.life.stopping.Load() || !n.life.ready.Load() {
		return nil
	}
	return n.life
}

// crash ends a life without warning. It may be called by one of its goroutines.
func (l *life) crash() {
	w := l.w
	if l.dead.Swap(true) {
		return
	}
	w.mu.Lock()
	for i := len(w.waiting) - 1; i >= 0; i-- {
		if w.waiting[i].of == l {
			w.release(w.waiting[i])
		}
	}
	w.mu.Unlock()
	l.cancel()
	// The goroutines of the dead are unwound; nothing of them reaches anybody.
	go func() {
		l.engine.Stop()
		l.hub.Stop()
	}()
}

// restartLater brings a server back after a while.
func (l *life) restartLater(after time.Duration) {
	l.w.later(after, l.name+" starts again", func() {
		if l.node.life == l {
			l.node.start()
		}
	})
}

// stop ends a life in peace and starts the next one afterwards.
func (l *life) stop() {
	l.stopping.Store(true)
	go func() {
		l.hub.Stop()
		l.engine.Stop()
		l.cancel()
		l.restartLater(time.Second)
	}()
}

func (n *node) kill() {
	if n.life != nil {
		n.life.crash()
	}
}

// lifeKeeper is the keeper as one server reaches it.
type lifeKeeper struct{ *life }

var errOutage = errors.New("the keeper does not answer")

func (k lifeKeeper) Wrap(_ context.Context, dek, aad []byte) (string, []byte, error) {
	if k.keeperDown.Load() || k.life.dead.Load() {
		return "", nil, errOutage
	}
	return "kek", append(bytes.Clone(dek), aad...), nil
}

func (k lifeKeeper) Unwrap(_ context.Context, _ string, wrapped, aad []byte) ([]byte, error) {
	if k.keeperDown.Load() || k.life.dead.Load() {
		return nil, errOutage
	}
	if !bytes.HasSuffix(wrapped, aad) {
		return nil, errors.New("the wrapped key belongs elsewhere")
	}
	return bytes.Clone(wrapped[:len(wrapped)-len(aad)]), nil
}

// lifeFleet is the hub as the engine reaches it: every telling takes its time on
// the way, and one may overtake another.
type lifeFleet struct {
	*hub.Hub
	l *life
}

func (f lifeFleet) Tell(name key.Name, tells []engine.Tell) {
	label := fmt.Sprintf("%s tells of %s:", f.l.name, name)
	for _, tell := range tells {
		label += fmt.Sprintf(" %s %v/%d", tell.Presenter, tell.Version, tell.Epoch)
	}
	go func() {
		if _, err := f.l.w.wait(f.l.ctx, &request{kind: kindInner, of: f.l, label: label}); err == nil {
			f.Hub.Tell(name, tells)
		}
	}()
}

type nobody struct{}

func (nobody) Moved(engine.Moved)         {}
func (nobody) Attempted(engine.Attempted) {}
