package hub

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// maxAckBatch bounds how many acknowledgements share a transaction.
const maxAckBatch = 4096

const (
	// crowdPause is how much longer acknowledgements wait for each connected party:
	// every transaction encodes the state of the key, with all its presenters.
	crowdPause = 10 * time.Microsecond
	// maxAckPause bounds that.
	maxAckPause = 250 * time.Millisecond
)

// pause is how long acknowledgements wait for company.
func (h *Hub) pause() time.Duration {
	return h.config.AckPause + min(time.Duration(h.Connected())*crowdPause, maxAckPause)
}

// acks gathers acknowledgements of a key that arrive together, or while those that
// came before are recorded: of each key one batch is under way at a time. When the
// store is slow batches grow, rather than wait for each other by the hundred until
// parties repeat what they said.
type acks struct {
	hub     *Hub
	mu      sync.Mutex
	open    map[key.Name]*ackBatch
	last    map[key.Name]*ackBatch // the one that was opened last, until it is done
	stopped bool
}

type ackBatch struct {
	acks []rotation.Ack
	// before is closed when the batch before it is done; nil if there is none.
	before <-chan struct{}
	done   chan struct{}
	err    error
}

func (a *acks) init(h *Hub) {
	a.hub, a.open, a.last = h, map[key.Name]*ackBatch{}, map[key.Name]*ackBatch{}
}

// Outcome is a party's answer to a tell.
type Outcome struct {
	Key   key.Name
	Epoch uint64
	// Order is that of rotation.Ack.
	Order  uint64
	OK     bool
	Using  key.Version
	Detail string
}

// Acknowledge records a party's answers and returns when they are durable. When
// several fail it returns an error that may pass, if there is one, rather than
// one that will not, such as engine.ErrInvalid: a party that repeats all of them
// loses none. What others answer at the same time has no influence.
func (h *Hub) Acknowledge(ctx context.Context, party string, outcomes []Outcome) error {
	batches := make([]*ackBatch, 0, len(outcomes))
	for _, o := range outcomes {
		ack := rotation.Ack{ID: party, Epoch: o.Epoch, Order: o.Order, OK: o.OK, Using: o.Using, Detail: o.Detail}
		batch, err := h.acks.add(ctx, o.Key, ack)
		if err != nil {
			return err
		}
		batches = append(batches, batch)
	}
	var worst error
	for _, batch := range batches {
		select {
		case <-batch.done:
			if err := batch.errorOf(party); worst == nil || err != nil && forGood(worst) {
				worst = err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return worst
}

// errorOf is how the batch ended for one party.
func (b *ackBatch) errorOf(party string) error {
	var refused engine.Refused
	if errors.As(b.err, &refused) {
		return refused[party]
	}
	return b.err
}

// forGood reports whether repeating what failed with err cannot help.
func forGood(err error) bool {
	return errors.Is(err, engine.ErrInvalid) || errors.Is(err, engine.ErrNotFound) || errors.Is(err, rotation.ErrInvalid)
}

// add puts an acknowledgement into the open batch of its key, or opens one.
func (a *acks) add(ctx context.Context, name key.Name, ack rotation.Ack) (*ackBatch, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopped {
		return nil, ErrStopped
	}
	batch := a.open[name]
	if batch == nil {
		batch = &ackBatch{done: make(chan struct{})}
		if before := a.last[name]; before != nil {
			batch.before = before.done
		}
		a.open[name], a.last[name] = batch, batch
		// The batch outlives the request that opened it: others rely on it.
		a.hub.running.Go(func() { a.send(context.WithoutCancel(ctx), name, batch) })
	}
	batch.acks = append(batch.acks, ack)
	if len(batch.acks) >= maxAckBatch {
		delete(a.open, name)
	}
	return batch, nil
}

// stop makes add fail, so that what is under way can be waited for.
func (a *acks) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopped = true
}

// ackTime bounds how long a batch may take to become durable.
const ackTime = 30 * time.Second

func (a *acks) send(ctx context.Context, name key.Name, batch *ackBatch) {
	timer := time.NewTimer(a.hub.pause())
	defer timer.Stop()
	<-timer.C
	if batch.before != nil {
		<-batch.before
	}
	a.mu.Lock()
	if a.open[name] == batch {
		delete(a.open, name)
	}
	list := batch.acks
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, ackTime)
	defer cancel()
	batch.err = a.hub.core.Acknowledge(ctx, engine.Server(), name, list)
	a.mu.Lock()
	if a.last[name] == batch {
		delete(a.last, name)
	}
	a.mu.Unlock()
	close(batch.done)
}
