package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/key"
)

// maxPendingAcks bounds the outcomes that wait for the server.
const maxPendingAcks = 4 * MaxKeys

// ErrAckQueueFull: outcomes of too many keys wait for the server.
var ErrAckQueueFull = errors.New("too many outcomes wait for the server")

// acks holds outcomes until the server has made them durable. Of several
// outcomes of one key only the latest is kept.
type acks struct {
	send func(ctx context.Context, outcomes []Outcome) error
	log  *slog.Logger
	// sending has room for one token: whoever puts it in sends.
	sending chan struct{}
	// wake has room for one token and holds one when something was added.
	wake chan struct{}

	mu      sync.Mutex
	next    uint64
	notYet  time.Time
	pending map[key.Name]pendingAck
}

type pendingAck struct {
	Outcome
	// ticket tells a later outcome of the same key from this one.
	ticket uint64
	// rejected is where Ack learns that the server does not want the outcome.
	rejected chan<- error
}

func newAcks(send func(context.Context, []Outcome) error, log *slog.Logger) *acks {
	return &acks{
		send: send, log: log,
		sending: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		pending: make(map[key.Name]pendingAck),
	}
}

// add queues outcomes. rejected may be nil; otherwise it must have room for one
// error of each outcome.
func (q *acks) add(outcomes []Outcome, rejected chan<- error) (tickets map[key.Name]uint64, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	tickets = make(map[key.Name]uint64, len(outcomes))
	for _, o := range outcomes {
		old, found := q.pending[o.Key]
		if !found && len(q.pending) >= maxPendingAcks {
			return tickets, fmt.Errorf("%w: %d", ErrAckQueueFull, len(q.pending))
		}
		if found && old.Epoch > o.Epoch {
			continue
		}
		q.next++
		q.pending[o.Key] = pendingAck{Outcome: o, ticket: q.next, rejected: rejected}
		tickets[o.Key] = q.next
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return tickets, nil
}

// spread makes good outcomes of what arrives now wait for between a half of d and
// all of it, by a share in [0, 1).
func (q *acks) spread(d time.Duration, share float64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.notYet = time.Now().Add(d/2 + time.Duration(share*float64(d/2)))
}

// hold is how long what is queued is to wait still.
func (q *acks) hold() time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range q.pending {
		if p.Code != Applied {
			return 0 // bad news does not wait
		}
	}
	return time.Until(q.notYet)
}

// waiting reports whether one of the tickets is still queued.
func (q *acks) waiting(tickets map[key.Name]uint64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for name, ticket := range tickets {
		if q.pending[name].ticket == ticket {
			return true
		}
	}
	return false
}

func (q *acks) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.pending) == 0
}

// flush sends what is queued, once. What the server made durable, or will never
// take, leaves the queue; the rest stays, and the error says why.
func (q *acks) flush(ctx context.Context) error {
	select {
	case q.sending <- struct{}{}:
		defer func() { <-q.sending }()
	case <-ctx.Done():
		return ctx.Err()
	}
	batch := q.snapshot()
	for chunk := range slices.Chunk(batch, MaxKeys) {
		if err := q.sendChunk(ctx, chunk); err != nil {
			return err
		}
	}
	return nil
}

// sendChunk sends outcomes together, and one by one when the server rejects
// one of them: it must not hold up the others.
func (q *acks) sendChunk(ctx context.Context, chunk []pendingAck) error {
	outcomes := make([]Outcome, len(chunk))
	for i, p := range chunk {
		outcomes[i] = p.Outcome
	}
	err := q.send(ctx, outcomes)
	switch {
	case err == nil:
		q.remove(chunk)
		return nil
	case !errors.Is(err, ErrRequest):
		return err
	case len(chunk) == 1:
		q.reject(chunk[0], err)
		return nil
	}
	for i := range chunk {
		if err := q.sendChunk(ctx, chunk[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}

func (q *acks) reject(p pendingAck, err error) {
	q.remove([]pendingAck{p})
	if p.rejected != nil {
		p.rejected <- fmt.Errorf("outcome of %s %s: %w", p.Key, p.Version, err)
		return
	}
	q.log.Warn("the server does not take an outcome; it is dropped",
		"key", p.Key.String(), "version", uint64(p.Version), "epoch", p.Epoch, "code", p.Code.String(), "error", err)
}

func (q *acks) snapshot() []pendingAck {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch := make([]pendingAck, 0, len(q.pending))
	for _, p := range q.pending {
		batch = append(batch, p)
	}
	slices.SortFunc(batch, func(a, b pendingAck) int { return int(a.ticket) - int(b.ticket) })
	return batch
}

func (q *acks) remove(sent []pendingAck) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range sent {
		if q.pending[p.Key].ticket == p.ticket {
			delete(q.pending, p.Key)
		}
	}
}
