package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/sim/memstore"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// world is one simulated fleet and its scheduler. Everything that could happen
// waits as a request; the scheduler lets one at a time go on, and between two
// requests everything else is at rest.
type world struct {
	seed  uint64
	rng   *rand.Rand // drawn from by the scheduler, or by the one request that goes on
	ctx   context.Context
	began time.Time
	plan  profile

	// store is what all nodes share; mem is the same if it is in memory.
	store  store.Store
	mem    *memstore.Store
	signer *audit.Signer
	nodes  []*node
	agents []*agent
	// gateway stands between some of them and the nodes; nil in most fleets.
	gateway *gateway
	keys    []*keyTruth
	ops     *operators
	labels  labels

	// mu guards what follows against the goroutines that run between two steps.
	mu      sync.Mutex
	waiting []*request
	arrived chan struct{}
	step    int
	plans   []planned
	cuts    map[[2]string]bool
	// calm: faults have stopped.
	calm bool
	// over: the run has ended; nothing waits any more.
	over bool
	// dirty: something happened that the invariants depend on.
	dirty bool

	faults    [faultKinds]int
	rotations int
	tale      []line
	violation *violation
	// backup is the last one that was made.
	backup *backup
	// lively counts the steps that were not dull.
	lively int
	// restores is how often the store was put back.
	restores int
	// fences were given out; fenceThen is the largest before the last restore.
	fences    map[uint64]bool
	fenceThen uint64
	// unsettledYet: something changed since it was last asked whether all is settled.
	unsettledYet bool
}

// planned is something that the scheduler does at a time of its own.
type planned struct {
	at   time.Time
	what string
	do   func()
}

// violation is a broken invariant.
type violation struct{ rule, message string }

func (v *violation) String() string { return "violated: " + v.rule + ": " + v.message }

// violate records the first violation.
func (w *world) violate(rule, format string, args ...any) {
	if w.violation == nil {
		w.violation = &violation{rule, fmt.Sprintf(format, args...)}
	}
}

// later plans something.
func (w *world) later(after time.Duration, what string, do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.plans = append(w.plans, planned{time.Now().Add(after), what, do})
}

// errGone is what callers of a crashed server hear.
var errGone = errors.New("the server has crashed")

// request is something that waits for the scheduler.
type request struct {
	kind  kind
	label string
	// of is the server that asks; nil for agents and operators.
	of *life
	// from and to are the regions between which it passes, where that matters.
	from, to string
	// faults are those that it may meet.
	faults []fault

	step   int
	after  time.Time
	wake   chan struct{}
	let    bool
	fault  fault
	repeat bool
	// dull: it happens all the time and mostly does nothing.
	dull bool
	// effect is what a call that began then changes, for one that may outlive its
	// caller; nil otherwise.
	effect func() error
	began  time.Time
}

func byLabel(a, b *request) int {
	return cmp.Or(cmp.Compare(a.label, b.label), cmp.Compare(a.step, b.step))
}

// kind is what a request is about.
type kind uint8

const (
	kindUpdate kind = iota + 1
	kindCall
	kindMessage
	kindApply
	kindCommand
	kindInner
)

// wait blocks until the scheduler lets the request go on, and returns the fault
// that it meets. It fails when ctx ends first, or the server is gone.
func (w *world) wait(ctx context.Context, r *request) (fault, error) {
	r.wake = make(chan struct{})
	w.mu.Lock()
	if w.over || r.of != nil && r.of.dead.Load() {
		w.mu.Unlock()
		return 0, errGone
	}
	r.step = w.step
	w.waiting = append(w.waiting, r)
	w.mu.Unlock()
	select {
	case w.arrived <- struct{}{}:
	default:
	}
	select {
	case <-r.wake:
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !r.let {
		w.waiting = slices.DeleteFunc(w.waiting, func(other *request) bool { return other == r })
		return 0, ctx.Err()
	}
	if r.of != nil && r.of.dead.Load() || w.over {
		return 0, errGone
	}
	return r.fault, nil
}

// release lets a request go on; the caller holds the lock.
func (w *world) release(r *request) {
	w.waiting = slices.DeleteFunc(w.waiting, func(other *request) bool { return other == r })
	r.let = true
	close(r.wake)
}

// line is one line of the timeline; it is put into words only when somebody
// wants to read it.
type line struct {
	at    time.Duration
	step  int
	what  string
	fault fault
	// idle: nothing came of it.
	idle  bool
	moves []rotation.Transition
	seq   uint64
}

func (l line) String() string {
	s := fmt.Sprintf("%5d %10.3fs  %s", l.step, l.at.Seconds(), l.what)
	if l.fault != 0 {
		s += "  !! " + l.fault.String()
	}
	for _, m := range l.moves {
		s += "\n" + fmt.Sprintf("%18s  | event %d: %s", "", l.seq, m.Kind)
		for _, part := range []string{m.Subject, m.From + " -> " + m.To, m.Reason, m.Message} {
			if part != "" {
				s += " " + part
			}
		}
		if m.Version != 0 {
			s += " (" + m.Version.String() + ")"
		}
	}
	return s
}

func (w *world) note(f fault, what string) {
	w.tale = append(w.tale, line{at: time.Since(w.began), step: w.step, what: what, fault: f})
}

// met counts a fault.
func (w *world) met(f fault) { w.faults[f]++ }

// outcome is how the run of one seed ended.
type outcome struct {
	seed      uint64
	steps     int
	rotations int
	faults    [faultKinds]int
	violation *violation
	tale      []line
	simulated time.Duration
	// gateway: the fleet has one; handed and held are what it did.
	gateway      bool
	handed, held int
}

// options say how seeds are run.
type options struct {
	signer *audit.Signer
	// open opens the store; nil takes one in memory.
	open func(ctx context.Context) (store.Store, func() error, error)
}

// runSeed runs the fleet that the seed stands for, in simulated time.
func runSeed(t *testing.T, seed uint64, o options) (result outcome) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w := newWorld(ctx, seed, o.signer)
		if o.open != nil {
			s, stop, err := o.open(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := stop(); err != nil {
					t.Error(err)
				}
			}()
			w.store, w.mem = s, nil
		}
		w.build()
		w.run()
		w.end()
		cancel()
		time.Sleep(time.Minute) // what waits for a time ends by itself
		result = outcome{
			seed: seed, steps: w.step, rotations: w.rotations, faults: w.faults, violation: w.violation, tale: w.tale,
			simulated: time.Since(w.began),
		}
		if g := w.gateway; g != nil {
			result.gateway, result.handed, result.held = true, g.handed, g.held
		}
	})
	return result
}

func newWorld(ctx context.Context, seed uint64, signer *audit.Signer) *world {
	w := &world{
		seed: seed, rng: rand.New(rand.NewPCG(seed, 0x6b657974)), ctx: ctx, began: time.Now(), signer: signer,
		mem: memstore.New(), arrived: make(chan struct{}, 1), cuts: map[[2]string]bool{}, fences: map[uint64]bool{},
		labels: labels{},
	}
	w.store = w.mem
	w.plan = drawProfile(w.rng)
	if seed%gatewayEvery == gatewayFirst {
		w.plan.behindGateway(w.rng)
	}
	return w
}

// build draws the fleet and starts it.
func (w *world) build() {
	w.buildKeys()
	regions := []string{"west", "east"}
	for i := range w.plan.nodes {
		w.nodes = append(w.nodes, newNode(w, fmt.Sprint("n", i+1), regions[i%2]))
	}
	for _, n := range w.nodes {
		n.start()
	}
	w.ops = newOperators(w)
	w.ops.apply("alice", w.nodes[0], "first documents", w.ops.documents()...)
	for i := range w.plan.agents {
		w.agents = append(w.agents, newAgent(w, fmt.Sprint("a", i+1), regions[i%2]))
	}
	for i, a := range w.agents {
		w.later(time.Second+time.Duration(i)*300*time.Millisecond, a.id+" starts", a.start)
	}
	if w.plan.gateway {
		w.buildGateway()
	}
	for _, k := range w.keys {
		w.later(2*time.Second, "first rotation of "+string(k.name), func() { w.ops.rotate("alice", w.anyNode(), k, false, 0) })
	}
}

func (w *world) anyNode() *node { return w.nodes[w.rng.IntN(len(w.nodes))] }

func (w *world) key(name key.Name) *keyTruth {
	for _, k := range w.keys {
		if k.name == name {
			return k
		}
	}
	return nil
}

// cut reports whether two regions are cut off from one another.
func (w *world) cut(a, b string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.isCut(a, b)
}

func (w *world) isCut(a, b string) bool { return w.cuts[[2]string{min(a, b), max(a, b)}] }
