package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// errFull: so many hand-outs wait to be told that no more can be noted.
var errFull = errors.New("hand-outs wait to be told to the centre, and there is no room to note more")

// handout is one version that one party got from the relay, a document of kindHandout.
type handout struct {
	Token   string      `json:"token,omitempty"`
	Party   string      `json:"party"`
	Address string      `json:"address,omitempty"`
	Key     key.Name    `json:"key"`
	Version key.Version `json:"version"`
	Epoch   uint64      `json:"epoch"`
	// Agent: rotations wait for the party, however long it is away.
	Agent bool      `json:"agent,omitempty"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	Count uint32    `json:"count"`
	// Told is how many of them the centre has entered; what is told and may still be in
	// use by an agent is kept.
	Told uint32 `json:"told,omitempty"`
}

// same names the hand-outs that are told as one.
type same struct {
	token, party string
	key          key.Name
	version      key.Version
}

func (h *handout) same() same { return same{h.Token, h.Party, h.Key, h.Version} }

// batchRecord is a document of kindBatch: what is being told, unchanged until it is done.
type batchRecord struct {
	ID       string             `json:"id"`
	Handouts map[string]handout `json:"handouts"` // by the name of their documents
}

// notes are the hand-outs that the centre does not know of.
type notes struct {
	cache *cache
	most  int

	mu   sync.Mutex
	by   map[same]*noted
	next uint64
	// of counts those of each token: none may take all the room.
	of   map[string]int
	full bool
	// queue waits for the writer; writing: there is one.
	queue   []*noting
	writing bool
	handed  uint64
	// fresh has room for one token.
	fresh chan struct{}
}

type noted struct {
	handout
	name string
}

// noting is a group of hand-outs of one answer.
type noting struct {
	list []handout
	done chan error
	// turn is closed to make somebody else the writer, who has no list.
	turn chan struct{}
}

func newNotes(c *cache, most int) *notes {
	return &notes{cache: c, most: most, by: map[same]*noted{}, of: map[string]int{}, fresh: make(chan struct{}, 1)}
}

// add makes hand-outs durable before it returns nil. Those that come together share a
// transaction. It fails with errFull, or when the cache cannot be written; then nothing
// may be handed out.
func (n *notes) add(ctx context.Context, list []handout) error {
	one := &noting{list: list, done: make(chan error, 1)}
	n.mu.Lock()
	n.queue = append(n.queue, one)
	lead := !n.writing
	n.writing = true
	n.mu.Unlock()
	if lead {
		go n.write(context.WithoutCancel(ctx))
	}
	// A note that is under way is waited for: it is not known yet whether it counts.
	return <-one.done
}

// write takes what waits, until nothing does.
func (n *notes) write(ctx context.Context) {
	for {
		n.mu.Lock()
		if len(n.queue) > 0 && n.queue[0].turn != nil {
			next := n.queue[0]
			n.queue = n.queue[1:]
			n.mu.Unlock()
			close(next.turn)
			return
		}
		most := min(len(n.queue), pageOf)
		if other := slices.IndexFunc(n.queue[:most], func(one *noting) bool { return one.turn != nil }); other > 0 {
			most = other
		}
		batch := n.queue[:most]
		n.queue = n.queue[most:]
		if len(batch) == 0 {
			n.writing, n.queue = false, nil
			n.mu.Unlock()
			return
		}
		changed, failed := n.merge(batch)
		n.mu.Unlock()
		err := n.store(ctx, changed)
		n.mu.Lock()
		if err == nil {
			for _, one := range changed {
				n.keep(one)
			}
		}
		n.mu.Unlock()
		for i, one := range batch {
			switch {
			case failed[i] != nil:
				one.done <- failed[i]
			case err != nil:
				one.done <- fmt.Errorf("note hand-outs: %w", err)
			default:
				n.mu.Lock()
				n.handed += uint64(len(one.list))
				n.mu.Unlock()
				one.done <- nil
			}
		}
		select {
		case n.fresh <- struct{}{}:
		default:
		}
	}
}

// writeTime bounds the writes that an answer waits for.
const writeTime = 10 * time.Second

// merge adds up what is to be stored; the caller holds the lock.
func (n *notes) merge(batch []*noting) (changed []*noted, failed []error) {
	fresh, more := map[same]*noted{}, map[string]int{}
	failed = make([]error, len(batch))
	for i, one := range batch {
		missing := 0
		for j := range one.list {
			of := one.list[j].same()
			if n.by[of] == nil && fresh[of] == nil {
				missing++
			}
		}
		if missing > 0 && len(n.by)+len(fresh)+missing > n.most {
			n.full = true
			failed[i] = fmt.Errorf("%w: %d do; they are told when the centre answers again", errFull, len(n.by))
			continue
		}
		// More than half of the room is for nobody alone: a client that gives itself ever
		// new names keeps the others from nothing.
		token := one.list[0].Token
		if more[token] += missing; missing > 0 && n.of[token]+more[token] > max(n.most/2, 1) {
			more[token] -= missing
			failed[i] = fmt.Errorf("%w of this token: %d do; they are told when the centre answers again", errFull, n.of[token])
			continue
		}
		for j := range one.list {
			h := one.list[j]
			of := h.same()
			is := fresh[of]
			if is == nil {
				if old := n.by[of]; old != nil {
					again := *old
					is = &again
				} else {
					n.next++
					is = &noted{handout: handout{First: h.First}, name: fmt.Sprintf("%020d", n.next)}
				}
				fresh[of] = is
			}
			count, first, told := is.Count, is.First, is.Told
			if count == told {
				first = h.First
			}
			is.handout = h
			is.Count, is.First, is.Told = count+1, first, told
			if is.Count == 0 { // four thousand million times
				is.Count = count
			}
		}
	}
	for _, one := range fresh {
		changed = append(changed, one)
	}
	return changed, failed
}

// keep and forget take one in and out; the caller holds the lock.
func (n *notes) keep(one *noted) {
	if n.by[one.same()] == nil {
		n.of[one.Token]++
	}
	n.by[one.same()] = one
}

func (n *notes) forget(one *noted) {
	if n.by[one.same()] == nil {
		return
	}
	delete(n.by, one.same())
	if n.of[one.Token]--; n.of[one.Token] == 0 {
		delete(n.of, one.Token)
	}
}

func (n *notes) store(ctx context.Context, changed []*noted) error {
	if len(changed) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	return n.cache.store.Update(ctx, func(tx store.Tx) error {
		for _, one := range changed {
			if err := put(ctx, tx, kindHandout, one.name, one.handout); err != nil {
				return err
			}
		}
		return nil
	})
}

// load reads what the cache holds, and calls each with it.
func (n *notes) load(ctx context.Context, each func(*handout)) error {
	return n.cache.list(ctx, kindHandout, func(doc *store.Doc) error {
		number, err := strconv.ParseUint(doc.Name, 10, 64)
		one := &noted{name: doc.Name}
		if err != nil || json.Unmarshal(doc.Body, &one.handout) != nil || one.Count == 0 {
			return fmt.Errorf("hand-out %s in the cache is damaged; what it says is lost if you remove the cache", doc.Name)
		}
		n.next = max(n.next, number)
		n.keep(one)
		each(&one.handout)
		return nil
	})
}

const maxBatch = 500

// batch returns what is to be told next, durably under one name until it is done; nil
// when nothing is. Those of skip are left out.
func (n *notes) batch(ctx context.Context, id func() string, most int, skip map[same]time.Time) (*batchRecord, error) {
	batch, err := n.begun(ctx)
	if err != nil || batch != nil {
		return batch, err
	}
	batch = &batchRecord{ID: id(), Handouts: map[string]handout{}}
	n.mu.Lock()
	for of, one := range n.by {
		if len(batch.Handouts) == most {
			break
		}
		if _, skipped := skip[of]; one.Count > one.Told && !skipped {
			batch.Handouts[one.name] = one.handout
		}
	}
	n.mu.Unlock()
	if len(batch.Handouts) == 0 {
		return nil, nil
	}
	return batch, n.cache.store.Update(ctx, func(tx store.Tx) error { return put(ctx, tx, kindBatch, docState, batch) })
}

// begun returns the batch that was begun and is not done.
func (n *notes) begun(ctx context.Context) (batch *batchRecord, err error) {
	err = n.cache.store.View(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindBatch, docState)
		if errors.Is(err, store.ErrNotFound) {
			batch = nil
			return nil
		}
		if err != nil {
			return err
		}
		batch = &batchRecord{}
		return json.Unmarshal(doc.Body, batch)
	})
	return batch, err
}

// undo ends a batch of which the centre has entered nothing, and will not.
func (n *notes) undo(ctx context.Context) error {
	return n.cache.store.Update(ctx, func(tx store.Tx) error { return put(ctx, tx, kindBatch, docState, nil) })
}

// done notes that the centre has entered a batch. owes says which of them have to be
// kept all the same.
func (n *notes) done(ctx context.Context, batch *batchRecord, owes func(*handout) bool) error {
	n.lockWriter()
	defer n.unlockWriter(ctx)
	n.mu.Lock()
	var changed []*noted
	for _, one := range batch.Handouts {
		if is := n.by[one.same()]; is != nil {
			again := *is
			again.Told = one.Count
			changed = append(changed, &again)
		}
	}
	n.mu.Unlock()
	return n.replace(ctx, changed, owes, true)
}

// sweep removes what is told and kept for no reason any more.
func (n *notes) sweep(ctx context.Context, owes func(*handout) bool) error {
	n.lockWriter()
	defer n.unlockWriter(ctx)
	n.mu.Lock()
	var changed []*noted
	for _, one := range n.by {
		if one.Told == one.Count && !owes(&one.handout) {
			changed = append(changed, one)
		}
	}
	n.mu.Unlock()
	for part := range slices.Chunk(changed, pageOf) {
		if err := n.replace(ctx, part, owes, false); err != nil {
			return err
		}
	}
	return nil
}

// replace stores what changed, without what has nothing to say any more.
func (n *notes) replace(ctx context.Context, changed []*noted, owes func(*handout) bool, endBatch bool) error {
	drop := func(one *noted) bool { return one.Told >= one.Count && !(one.Agent && owes(&one.handout)) }
	err := n.cache.store.Update(ctx, func(tx store.Tx) error {
		for _, one := range changed {
			var body any = one.handout
			if drop(one) {
				body = nil
			}
			if err := put(ctx, tx, kindHandout, one.name, body); err != nil {
				return err
			}
		}
		if endBatch {
			return put(ctx, tx, kindBatch, docState, nil)
		}
		return nil
	})
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, one := range changed {
		if drop(one) {
			n.forget(one)
		} else {
			n.keep(one)
		}
	}
	n.full = n.full && len(n.by) >= n.most
	return nil
}

// lockWriter waits until nobody writes, and then is the writer.
func (n *notes) lockWriter() {
	n.mu.Lock()
	if !n.writing {
		n.writing = true
		n.mu.Unlock()
		return
	}
	one := &noting{turn: make(chan struct{})}
	n.queue = append(n.queue, one)
	n.mu.Unlock()
	<-one.turn
}

// unlockWriter writes what has come meanwhile.
func (n *notes) unlockWriter(ctx context.Context) { go n.write(context.WithoutCancel(ctx)) }

// untold returns how many wait, how many were handed out, and whether there is no room.
func (n *notes) untold() (untold int, handed uint64, full bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, one := range n.by {
		if one.Count > one.Told {
			untold++
		}
	}
	return untold, n.handed, n.full
}

// wire is the batch as the centre takes it.
func (b *batchRecord) wire(party string) *keyturnv1.HandoutsRequest {
	req := &keyturnv1.HandoutsRequest{PartyId: party, BatchId: b.ID}
	names := make([]string, 0, len(b.Handouts))
	for name := range b.Handouts {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		h := b.Handouts[name]
		req.Handouts = append(req.Handouts, &keyturnv1.Handout{
			PartyId: h.Party, Key: string(h.Key), Version: uint64(h.Version), Epoch: h.Epoch, TokenId: h.Token, ClientAddress: h.Address,
			Count: h.Count - h.Told, First: timestamppb.New(h.First), Last: timestamppb.New(h.Last),
		})
	}
	return req
}

// teller tells the centre of hand-outs. It is used by one goroutine.
type teller struct {
	*Relay
	// most is how many are told together: fewer when the centre does not take them all.
	most int
	// skip are those that the centre does not take, until when.
	skip map[same]time.Time
}

// tell tells until nothing is left, or it fails.
func (r *teller) tell(ctx context.Context) error {
	var problems error
	for ctx.Err() == nil {
		now := r.config.Monotonic()
		maps.DeleteFunc(r.skip, func(_ same, until time.Time) bool { return !now.Before(until) })
		batch, err := r.notes.batch(ctx, r.drawID, r.most, r.skip)
		if err != nil || batch == nil {
			return errors.Join(problems, err)
		}
		err = r.send(ctx, batch)
		switch {
		case err == nil:
			if err := r.notes.done(ctx, batch, r.owesHandout); err != nil {
				return err
			}
			r.most = min(2*r.most, maxBatch)
			continue
		case judge(err) != isAnswer || !willStay(err):
			return err
		}
		// Nothing of it is entered. One that is not taken must not hold up the others.
		if undoErr := r.notes.undo(ctx); undoErr != nil {
			return undoErr
		}
		if len(batch.Handouts) > 1 {
			r.most = len(batch.Handouts) / 2
			continue
		}
		for _, one := range batch.Handouts {
			r.skip[one.same()] = now.Add(skipFor)
			problems = fmt.Errorf("%s of %s, handed out to %s: %w", one.Version, one.Key, one.Party, err)
		}
	}
	return ctx.Err()
}

// skipFor is after how long a hand-out is told again that the centre did not take.
const skipFor = 5 * time.Minute

// willStay reports whether an answer of the centre will be the same another time.
func willStay(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodePermissionDenied, connect.CodeInvalidArgument:
		return true
	}
	return false
}

func (r *Relay) send(ctx context.Context, batch *batchRecord) error {
	ctx, cancel := context.WithTimeout(ctx, 3*requestTime)
	defer cancel()
	ctx, err := r.asGateway(ctx)
	if err == nil {
		_, err = r.gateway.Handouts(ctx, batch.wire(r.config.Name))
	}
	if err != nil {
		return fmt.Errorf("tell the centre of %d hand-outs: %w", len(batch.Handouts), err)
	}
	return nil
}

func (r *Relay) owesHandout(h *handout) bool {
	return h.Agent && r.owed.owes(h.Party, h.Key, h.Version)
}
