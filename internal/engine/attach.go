package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// Attach registers a party with the keys it presents and returns what it is to
// present of each; a key without a version for it yet is absent from the answer.
// Attaching what is attached already, unchanged, writes nothing. It fails with
// ErrNotFound, and attaches nothing, when one of the keys does not exist.
//
// Parties that attach at the same time share a transaction and, for each key, an
// event: a fleet that comes back costs a few encodings of a key's state, not one
// for each party.
func (e *Engine) Attach(ctx context.Context, actor audit.Actor, party PartyRecord, holdings []Holding) (map[key.Name]Tell, error) {
	if len(holdings) > MaxPartyKeys {
		return nil, fmt.Errorf("%w: a party may present %d keys at most, not %d", ErrInvalid, MaxPartyKeys, len(holdings))
	}
	slices.SortFunc(holdings, func(a, b Holding) int {
		if a.Key < b.Key {
			return -1
		}
		return 1
	})
	if err := e.news.wait(ctx); err != nil {
		return nil, err
	}
	a := &arrival{actor: actor, party: party, holdings: holdings, done: make(chan struct{}), lead: make(chan struct{}, 1)}
	if err := e.arrivals.pass(ctx, a, e.attachAll); err != nil {
		return nil, err
	}
	return a.tells, a.err
}

const (
	// maxArrivals bounds how many parties share a transaction.
	maxArrivals = 1024
	// attachTime bounds a transaction that several parties wait for.
	attachTime = 30 * time.Second
)

// arrival is a party that attaches.
type arrival struct {
	actor    audit.Actor
	party    PartyRecord
	holdings []Holding

	// done is closed when tells or err is the answer; lead receives when this one is
	// to take the next batch.
	done, lead chan struct{}
	tells      map[key.Name]Tell
	err        error
}

// arrivals gathers parties that attach while others are being attached. Nobody
// waits for company: a party that finds nobody goes at once.
type arrivals struct {
	mu      sync.Mutex
	waiting []*arrival
	// led: somebody takes batches.
	led bool
}

// pass waits until a was in a batch, and takes batches while it is its turn.
func (g *arrivals) pass(ctx context.Context, a *arrival, take func(context.Context, []*arrival)) error {
	g.mu.Lock()
	g.waiting = append(g.waiting, a)
	leads := !g.led
	g.led = true
	g.mu.Unlock()
	if !leads {
		select {
		case <-a.done:
			return nil
		case <-a.lead:
		case <-ctx.Done():
			if g.leave(a) {
				return ctx.Err()
			}
			// Its turn came at the same moment: others wait for it.
			<-a.lead
		}
	}
	defer g.next()
	batch := g.batch()
	defer func() {
		for _, one := range batch {
			close(one.done)
		}
	}()
	working, cancel := context.WithTimeout(context.WithoutCancel(ctx), attachTime)
	defer cancel()
	take(working, batch)
	return nil
}

// batch takes those that wait longest, each party once. The leader is the first.
func (g *arrivals) batch() []*arrival {
	g.mu.Lock()
	defer g.mu.Unlock()
	parties := map[string]bool{}
	var batch, rest []*arrival
	for _, a := range g.waiting {
		if len(batch) == maxArrivals || parties[a.party.ID] {
			rest = append(rest, a)
			continue
		}
		parties[a.party.ID] = true
		batch = append(batch, a)
	}
	g.waiting = rest
	return batch
}

// next makes the one that waits longest take the next batch.
func (g *arrivals) next() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) == 0 {
		g.led = false
		return
	}
	g.waiting[0].lead <- struct{}{}
}

// leave gives up waiting. It returns false when a is to take the next batch. One
// that is being attached may be attached all the same, like one whose answer is lost.
func (g *arrivals) leave(a *arrival) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(a.lead) > 0 {
		return false
	}
	g.waiting = slices.DeleteFunc(g.waiting, func(other *arrival) bool { return other == a })
	return true
}

// attachAll answers a batch of arrivals.
func (e *Engine) attachAll(ctx context.Context, batch []*arrival) {
	changed, moved, err := e.attached(ctx, batch)
	if err != nil {
		failAll(batch, err)
		return
	}
	if len(moved) > 0 {
		if err := e.noteMoves(ctx, moved); err != nil {
			failAll(moved, err)
		}
	}
	if len(changed) > 0 {
		e.attachParts(ctx, changed)
	}
}

// attachParts attaches parties in one transaction, or in two when one of them makes
// it fail, until that one is alone.
func (e *Engine) attachParts(ctx context.Context, list []*arrival) {
	err := e.attachChanged(ctx, list)
	switch {
	case err == nil:
	case len(list) > 1 && isMalformed(err):
		e.attachParts(ctx, list[:len(list)/2])
		e.attachParts(ctx, list[len(list)/2:])
	default:
		failAll(list, err)
	}
}

func failAll(list []*arrival, err error) {
	for _, a := range list {
		a.tells, a.err = nil, err
	}
}

// isMalformed reports whether something was refused that one of the parties said:
// the others must not suffer from it.
func isMalformed(err error) bool {
	return errors.Is(err, audit.ErrEntry) || errors.Is(err, rotation.ErrInvalid)
}

// attachChanged attaches parties in one transaction.
func (e *Engine) attachChanged(ctx context.Context, list []*arrival) error {
	actor := list[0].actor
	if slices.ContainsFunc(list, func(a *arrival) bool { return a.actor != actor }) {
		actor = Server() // of what concerns all of them; each joins in its own name
	}
	return e.update(ctx, actor, func(c *change) error {
		for _, a := range list {
			a.tells, a.err = map[key.Name]Tell{}, nil
		}
		return c.attach(list)
	})
}

// attached answers those that are registered just so already, and returns the
// others; moved are those of the former that come from elsewhere than before.
func (e *Engine) attached(ctx context.Context, batch []*arrival) (changed, moved []*arrival, err error) {
	err = e.store.View(ctx, func(tx store.Tx) error {
		changed, moved = nil, nil
		states := map[key.Name]rotation.State{}
		parties, err := readParties(ctx, tx, batch)
		if err != nil {
			return err
		}
		for _, a := range batch {
			known, registered := parties[a.party.ID]
			if !registered {
				changed = append(changed, a)
				continue
			}
			same, err := e.isAttached(ctx, tx, a, &known.PartyRecord, states)
			if err != nil {
				return err
			}
			switch {
			case !same:
				changed = append(changed, a)
			case a.party.Address != "" && a.party.movedFrom(&known.PartyRecord):
				moved = append(moved, a)
			}
		}
		return nil
	})
	return changed, moved, err
}

// noteMoves notes the new addresses of parties that are registered just so otherwise:
// no key hears of it.
func (e *Engine) noteMoves(ctx context.Context, list []*arrival) error {
	return e.update(ctx, Server(), func(c *change) error {
		parties, err := readParties(ctx, c.tx, list)
		if err != nil {
			return err
		}
		for _, a := range list {
			known, registered := parties[a.party.ID]
			if !registered {
				continue // it was removed meanwhile, which its session will hear of
			}
			party := known.PartyRecord
			party.Address, party.Gateway = a.party.Address, a.party.Gateway
			if err := c.putParty(a, &known, &party); err != nil {
				return err
			}
		}
		return nil
	})
}

// putParty writes a party's record, and its new address into the log.
func (c *change) putParty(a *arrival, known *storedParty, party *PartyRecord) error {
	if known.doc.Rev != 0 && party.movedFrom(&known.PartyRecord) {
		detail := party.cameFrom()
		detail[audit.DetailBefore], detail[audit.DetailGatewayBefore] = known.Address, known.Gateway
		c.audit(audit.Entry{Action: audit.ActionMove, Actor: a.actor, Target: party.ID, Detail: nonEmpty(detail)})
	}
	body, err := encode(party)
	if err != nil {
		return err
	}
	_, err = c.tx.Docs.Put(c.ctx, store.Doc{Kind: KindParty, Name: party.ID, Rev: known.doc.Rev, Body: body})
	return err
}

// isAttached reports whether a party is registered just so, and then sets what it
// is to present. states are those that were read so far.
func (e *Engine) isAttached(ctx context.Context, tx store.Tx, a *arrival, known *PartyRecord, states map[key.Name]rotation.State) (bool, error) {
	a.tells = map[key.Name]Tell{}
	if !sameParty(known, &a.party) || len(known.Keys) != len(a.holdings) {
		return false, nil
	}
	for i, h := range a.holdings {
		if known.Keys[i] != h.Key {
			return false, nil
		}
		state, read := states[h.Key]
		if !read {
			var err error
			if state, err = e.readState(ctx, tx, h.Key); err != nil {
				return false, err
			}
			states[h.Key] = state
		}
		p, ok := state.Presenter(a.party.ID)
		// A party that holds what it was told, or did not hear of it yet, needs no event.
		if !ok || p.Silent || h.Epoch > p.Epoch || h.Version != 0 && !p.MayUse(h.Version) || h.Version == 0 && p.Acked && p.Told != 0 {
			return false, nil
		}
		if p.Told != 0 {
			a.tells[h.Key] = tellOf(&state, p)
		}
	}
	return true, nil
}

// attach registers parties. One that cannot be attached is left out, with its
// error; it changes nothing for the others.
func (c *change) attach(list []*arrival) error {
	keys := map[key.Name]*meeting{}
	var good []*arrival
	for _, a := range list {
		joins, err := c.joins(a, keys)
		if isOwnFault(err) {
			a.err = err
			continue
		}
		if err != nil {
			return err
		}
		good = append(good, a)
		for i, h := range a.holdings {
			m := keys[h.Key]
			m.joins, m.parties = append(m.joins, joins[i]), append(m.parties, a)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		if err := c.meet(name, keys[name]); err != nil {
			return err
		}
	}
	parties, err := readParties(c.ctx, c.tx, good)
	if err != nil {
		return err
	}
	for _, a := range good {
		known, registered := parties[a.party.ID]
		if err := c.register(a, &known, !registered); err != nil {
			return err
		}
	}
	return nil
}

// meeting is a key at which parties arrive.
type meeting struct {
	resource policy.Key
	compiled *policy.Compiled
	state    rotation.State

	joins   []rotation.Joined
	parties []*arrival
}

// meet tells a key of its arrivals, and them what to present of it.
func (c *change) meet(name key.Name, m *meeting) error {
	var body rotation.Body = rotation.Arrived{Joins: m.joins}
	switch len(m.joins) {
	case 0:
		return nil
	case 1:
		body = m.joins[0]
	}
	after, err := c.step(name, key.RotationID{}, body)
	if err != nil {
		return err
	}
	for _, a := range m.parties {
		if p, ok := after.Presenter(a.party.ID); ok && p.Told != 0 {
			a.tells[name] = tellOf(&after, p)
		}
	}
	return nil
}

// isOwnFault reports whether an error is about one party only.
func isOwnFault(err error) bool { return errors.Is(err, ErrNotFound) || errors.Is(err, ErrInvalid) }

// register writes a party's record, and takes it from the keys that it presents no more.
func (c *change) register(a *arrival, known *storedParty, isNew bool) error {
	party := a.party
	party.Joined, party.Keys = known.Joined, nil
	if isNew {
		party.Joined = c.now
		detail := party.cameFrom()
		detail["kind"], detail["region"] = party.Kind, party.Region
		c.audit(audit.Entry{Action: audit.ActionJoin, Actor: a.actor, Target: party.ID, Detail: nonEmpty(detail)})
	}
	if party.Address == "" {
		party.Address, party.Gateway = known.Address, known.Gateway
	}
	for _, h := range a.holdings {
		party.Keys = append(party.Keys, h.Key)
	}
	for _, name := range known.Keys {
		if !slices.Contains(party.Keys, name) {
			if err := c.detachKey(name, party.ID); err != nil {
				return err
			}
		}
	}
	return c.putParty(a, known, &party)
}

// maxEpochAhead is how far the epoch that a party has seen may be ahead of those
// that are stored: after a restore it is by what the backup lacks, and no party
// may use up the epochs of a key.
const maxEpochAhead = 1 << 32

// joins returns what each of a party's keys is told of it, in their order. keys
// are those that were read so far.
func (c *change) joins(a *arrival, keys map[key.Name]*meeting) ([]rotation.Joined, error) {
	var list []rotation.Joined
	for _, h := range a.holdings {
		m, err := c.meeting(h.Key, keys)
		if err != nil {
			return nil, err
		}
		stage, err := stageFor(m.compiled, &m.resource, &a.party)
		if err != nil {
			return nil, err
		}
		if h.Epoch > m.state.Epoch+maxEpochAhead {
			return nil, fmt.Errorf("%w: key %s: epoch %d was never told to anybody; connect with epoch 0", ErrInvalid, h.Key, h.Epoch)
		}
		body := rotation.Joined{ID: a.party.ID, Region: a.party.Region, Stage: stage, Holding: h.Version, Epoch: h.Epoch}
		if _, ok := m.state.Version(h.Version); !ok && !m.state.Standing() {
			body.Holding = 0 // never minted here, or destroyed: nothing that could be relied on
		}
		list = append(list, body)
	}
	return list, nil
}

func (c *change) meeting(name key.Name, keys map[key.Name]*meeting) (*meeting, error) {
	if m, read := keys[name]; read {
		return m, nil
	}
	m := &meeting{}
	var err error
	if _, m.resource, _, err = c.e.readKey(c.ctx, c.tx, name); err != nil {
		return nil, err
	}
	if m.compiled, err = c.e.policyOf(c.ctx, c.tx, &m.resource); err != nil {
		return nil, err
	}
	if m.state, _, err = c.state(name); err != nil {
		return nil, err
	}
	keys[name] = m
	return m, nil
}
