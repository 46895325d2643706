package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// Client calls the delivery API as one party. It is safe for concurrent use and
// holds no goroutine of its own.
type Client struct {
	cfg  Config
	wire transport
	acks *acks
	// random returns numbers in [0, 1).
	random func() float64

	// boxes are those of the watches that run.
	mu    sync.Mutex
	boxes map[*inbox]struct{}
	// order is that of the latest outcome.
	order uint64
}

// New returns a client; it does not connect yet. The error wraps ErrConfig.
func New(cfg Config) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if cfg.Token == nil {
		return nil, fmt.Errorf("%w: Token is missing; use for example client.TokenFile", ErrConfig)
	}
	w, err := newWire(cfg)
	if err != nil {
		return nil, err
	}
	return newClient(cfg, w), nil
}

func newClient(cfg Config, w transport) *Client {
	c := &Client{cfg: cfg, wire: w, random: rand.Float64, boxes: map[*inbox]struct{}{}}
	c.acks = newAcks(c.sendAcks, cfg.Logger)
	return c
}

// Party returns who the client speaks for, with its defaults filled in.
func (c *Client) Party() Party { return c.cfg.Party }

// Report sends samples, once: it is not repeated, the caller adds what was not
// sent to its next samples. At most 1,000 samples fit.
func (c *Client) Report(ctx context.Context, samples []Sample) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.RequestTimeout)
	defer cancel()
	if err := c.wire.report(ctx, &keyturnv1.ReportRequest{PartyId: c.cfg.Party.ID, Samples: samplesToWire(samples)}); err != nil {
		return fmt.Errorf("report %d samples: %w", len(samples), err)
	}
	return nil
}

// Leave removes the party from its keys: it presents nothing any more, and
// rotations do not wait for it. It is tried once.
func (c *Client) Leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.RequestTimeout)
	defer cancel()
	if err := c.wire.leave(ctx, &keyturnv1.LeaveRequest{PartyId: c.cfg.Party.ID}); err != nil {
		return fmt.Errorf("leave as party %s: %w", c.cfg.Party.ID, err)
	}
	return nil
}

// Ack sends outcomes and returns when they are durable. It repeats them until
// then, or until ctx ends, and shares its queue with Watch: an outcome of an
// older epoch than one that is queued is left out, a later one takes its place.
//
// Use it for outcomes that a handler could not know when it returned. The error
// wraps ErrRequest when the server does not take one of the outcomes (the others
// were sent), ErrAckQueueFull, or the error of ctx joined with the server's last one.
func (c *Client) Ack(ctx context.Context, outcomes []Outcome) error {
	outcomes = slices.Clone(outcomes)
	for i := range outcomes {
		if err := checkOutcome(outcomes[i]); err != nil {
			return err
		}
		outcomes[i].order = c.number()
	}
	c.amend(outcomes)
	rejected := make(chan error, len(outcomes))
	tickets, err := c.acks.add(outcomes, rejected)
	if err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		err := c.acks.flush(ctx)
		select {
		case refused := <-rejected:
			return refused
		default:
		}
		if !c.acks.waiting(tickets) {
			return nil
		}
		if err == nil {
			continue // another sender took the batch before ours was in it
		}
		if sleep(ctx, c.retryIn(err, attempt)) != nil {
			return fmt.Errorf("acknowledge %d outcomes: %w", len(outcomes), errors.Join(ctx.Err(), err))
		}
	}
}

// number returns the order of a new outcome: the time in microseconds, or more. It is
// larger than any that this process has used, and than those of an earlier process of
// the party unless the clock went back since. Then an outcome may be taken for an
// older one until that time has passed, or the version is assigned anew.
func (c *Client) number() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.order = max(c.order+1, uint64(max(0, time.Now().UnixMicro())))
	return c.order
}

// amend makes the running watches answer with the outcomes when an assignment is
// sent again, and tell the version in use when they connect again.
func (c *Client) amend(outcomes []Outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for box := range c.boxes {
		for _, o := range outcomes {
			box.amend(o)
		}
	}
}

// open adds the box of a watch; what it returns removes it.
func (c *Client) open(box *inbox) (closeBox func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.boxes[box] = struct{}{}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.boxes, box)
	}
}

// Join exchanges a one-time join token for the party's own token. cfg.Token and
// cfg.Party are ignored. It is tried once, because the join token is void
// afterwards, also when the answer is lost: then a new one is needed.
// The party's ID may differ from the one asked for; the returned one counts.
func Join(ctx context.Context, cfg Config, joinToken secret.Value, party Party) (partyID string, token secret.Value, err error) {
	cfg.Token, cfg.Party = nil, party
	if cfg, err = cfg.withDefaults(); err != nil {
		return "", secret.Value{}, err
	}
	if joinToken, err = checkToken(joinToken.Reveal(), "the join token"); err != nil {
		return "", secret.Value{}, err
	}
	w, err := newWire(cfg)
	if err != nil {
		return "", secret.Value{}, err
	}
	defer w.renew()
	ctx, cancel := context.WithTimeout(ctx, cfg.RequestTimeout)
	defer cancel()
	resp, err := w.join(ctx, &keyturnv1.JoinRequest{JoinToken: joinToken.RevealString(), Party: partyToWire(cfg.Party)})
	if err != nil {
		return "", secret.Value{}, fmt.Errorf("join as party %s: %w", cfg.Party.ID, err)
	}
	if token, err = checkToken([]byte(resp.GetToken()), "the server's answer"); err != nil {
		return "", secret.Value{}, err
	}
	return resp.GetPartyId(), token, nil
}

// ackPatience is how many times as long as others a request may take that waits until
// outcomes are durable. Many wait together, and one that is repeated adds to the work
// that it waits for.
const ackPatience = 3

func (c *Client) sendAcks(ctx context.Context, outcomes []Outcome) error {
	ctx, cancel := context.WithTimeout(ctx, ackPatience*c.cfg.RequestTimeout)
	defer cancel()
	return c.wire.ack(ctx, &keyturnv1.AckRequest{PartyId: c.cfg.Party.ID, Outcomes: outcomesToWire(outcomes)})
}

// retryIn returns the pause after the given number of failures in a row.
func (c *Client) retryIn(err error, attempt int) time.Duration {
	b, factor := backoff{c.cfg.BackoffMin, c.cfg.BackoffMax}, 2.0
	if permanent(err) {
		// A few quick tries, in case the token has just been replaced; then slowly.
		b.most, factor = max(c.cfg.PermanentRetry, c.cfg.BackoffMin), 4
		if attempt > 4 {
			return around(b.most, c.random())
		}
	}
	wait := b.wait(attempt, factor, c.random())
	if after := retryAfter(err, c.cfg.Now()); after > 0 {
		// Everybody was told the same: come back later than asked, not together.
		wait = max(wait, after+time.Duration(float64(after)*c.random()/2))
	}
	return wait
}

func checkOutcome(o Outcome) error {
	if o.Code != Applied && o.Code != Failed {
		return fmt.Errorf("outcome of %s %s: code %d is neither Applied nor Failed", o.Key, o.Version, o.Code)
	}
	if !o.Key.Valid() || o.Version == 0 || o.Epoch == 0 {
		return fmt.Errorf("outcome of %q: %w, or its version or epoch is 0", o.Key, key.ErrName)
	}
	return nil
}

// sleep waits for d, or until ctx ends and then returns its error.
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
