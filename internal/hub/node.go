package hub

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/store"
)

// The kinds of documents by which nodes meet. Every one belongs to one node,
// which alone writes it; what a dead node left behind the others delete.
const (
	// kindNode: one for each node; it changes with every beat.
	kindNode = "node"
	// kindPresence: who is connected to a node, in pieces.
	kindPresence = "node-presence"
)

const (
	// beatEvery is how often a node says that it lives; deadAfter is after how long
	// without a beat its sessions count as away, measured by each other node with its
	// own clock: clocks are not compared.
	beatEvery = 3 * time.Second
	deadAfter = 4 * beatEvery
	// buriedAfter is when the documents of a dead node are deleted.
	buriedAfter = time.Minute
	// lookPause is the least time between two looks at the others, tellPause that
	// between two writes of what has changed here.
	lookPause = 250 * time.Millisecond
	tellPause = 500 * time.Millisecond
	// lingers is how long a party that polls counts as connected after a poll.
	lingers = 30 * time.Second
	// pieces is into how many documents the parties of a node are divided, so that
	// one that comes or goes costs a small one.
	pieces = 64
	// maxChecked bounds the clients that one write checks to be registered still.
	maxChecked = 1024
	nodeBatch  = 256
)

// node is this hub among the others on the same store.
type node struct {
	hub *Hub

	// The hub's lock guards what follows.
	here   [pieces]piece
	serial uint64
	peers  map[string]*peer
	looked time.Time
	// changed asks for a write soon; early: it was asked for since the last one began.
	changed chan struct{}
	early   atomic.Bool
	id      string

	// The goroutine of run alone uses what follows.
	revs map[string]uint64
	rev  uint64
	// removed is the revision up to which removals of parties were followed.
	removed uint64
	told    time.Time
	beaten  time.Time
	swept   time.Time
}

// piece is a part of the parties that are connected here.
type piece struct {
	parties map[string]present
	dirty   bool
}

// present is a party that is connected here.
type present struct {
	// serial is that of its stream, 0 for one that polls.
	serial uint64
	// rev is the revision under which others could first read of the stream.
	rev uint64
	// client: it may be forgotten when it seems to be away.
	client bool
	polled time.Time
}

func (n *node) now() time.Time { return n.hub.config.Monotonic() }

func (n *node) since(at time.Time) time.Duration { return n.now().Sub(at) }

// nodeRecord is what a node says of itself.
type nodeRecord struct {
	// Left: it was stopped in order.
	Left bool `json:"left,omitempty"`
}

func newNode(h *Hub) *node {
	n := &node{hub: h, peers: map[string]*peer{}, changed: make(chan struct{}, 1)}
	for i := range n.here {
		n.here[i].parties = map[string]present{}
	}
	n.renew()
	return n
}

// renew gives the node a new name, under which it says everything anew.
func (n *node) renew() {
	var id [8]byte
	_, _ = io.ReadFull(n.hub.config.Random, id[:]) // crypto/rand never fails
	n.id, n.revs = hex.EncodeToString(id[:]), map[string]uint64{}
	for i := range n.here {
		n.here[i].dirty = len(n.here[i].parties) > 0
		for party, p := range n.here[i].parties {
			p.rev = 0
			n.here[i].parties[party] = p
		}
	}
}

func pieceOf(party string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(party)) // never fails
	return int(h.Sum32() % pieces)
}

func pieceName(node string, i int) string { return fmt.Sprintf("%s/%02x", node, i) }

// came notes an attached session; the caller holds the hub's lock.
func (n *node) came(s *Session) {
	if n.hub.config.Store == nil {
		return
	}
	at := &n.here[pieceOf(s.party.ID)]
	p, known := at.parties[s.party.ID]
	p.client = s.party.Kind == KindClient
	if s.poll {
		p.polled = n.now()
	} else {
		n.serial++
		s.serial = n.serial
		p.serial, p.rev = n.serial, 0
	}
	at.parties[s.party.ID] = p
	if !known || !s.poll {
		at.dirty = true
		n.wake()
	}
}

// went notes the end of a session; the caller holds the hub's lock.
func (n *node) went(s *Session) {
	if n.hub.config.Store == nil {
		return
	}
	at := &n.here[pieceOf(s.party.ID)]
	p, known := at.parties[s.party.ID]
	switch {
	case !known:
		return
	case s.poll:
		p.polled = n.now()
		at.parties[s.party.ID] = p
		return
	case p.serial != s.serial:
		return
	}
	p.serial, p.rev = 0, 0
	at.parties[s.party.ID] = p
	at.dirty = true
	n.prune(at, s.party.ID)
	n.wake()
}

// prune drops a party without a stream that has not polled lately.
func (n *node) prune(at *piece, party string) {
	p := at.parties[party]
	if p.serial != 0 || len(n.hub.sessionsOf(party)) > 0 {
		return
	}
	if p.polled.IsZero() || n.since(p.polled) > min(lingers, n.hub.config.ForgetClients/2) {
		delete(at.parties, party)
		at.dirty = true
	}
}

func (n *node) wake() {
	n.early.Store(true)
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// holds returns a check, for the transaction that would forget a party, whether
// it is connected somewhere after all. A node that publishes a client checks in
// its transaction that the client is still registered: one of the two sees the other.
func (n *node) holds(party string) func(context.Context, store.Tx) (bool, error) {
	return func(ctx context.Context, tx store.Tx) (bool, error) {
		n.hub.mu.Lock()
		held, self := len(n.hub.sessionsOf(party)) > 0, n.id
		dead := map[string]bool{}
		for id, p := range n.peers {
			dead[id] = !n.lives(p)
		}
		n.hub.mu.Unlock()
		if held || n.hub.config.Store == nil {
			return held, nil
		}
		nodes, err := tx.Index.List(ctx, kindNode, "", "", nodeBatch)
		if err != nil {
			return false, err
		}
		for _, doc := range nodes {
			if doc.Name == self || dead[doc.Name] {
				continue
			}
			parties, err := readPiece(ctx, tx, doc.Name, pieceOf(party))
			if err != nil {
				return false, err
			}
			if _, is := parties[party]; is {
				return true, nil
			}
		}
		return false, nil
	}
}

func readPiece(ctx context.Context, tx store.Tx, node string, i int) (map[string]uint64, error) {
	doc, err := tx.Docs.Get(ctx, kindPresence, pieceName(node, i))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodePiece(&doc)
}

func decodePiece(doc *store.Doc) (map[string]uint64, error) {
	var parties map[string]uint64
	if err := json.Unmarshal(doc.Body, &parties); err != nil {
		return nil, fmt.Errorf("stored presence %s is damaged: %w", doc.Name, err)
	}
	return parties, nil
}

// run tells the others what changes here and looks what changes there, until ctx
// ends; then it says that the node has left.
func (n *node) run(ctx context.Context) {
	follower := store.Follower{
		Store: n.hub.config.Store, Topic: store.TopicDocs, Pause: lookPause, Poll: beatEvery, Wake: n.changed,
		Soon: func() time.Duration {
			if n.early.Load() {
				return tellPause
			}
			return 0
		},
		Failed: func(ctx context.Context, err error) {
			n.hub.config.Logger.ErrorContext(ctx, "who is connected could not be exchanged with other server nodes; trying again", "error", err)
		},
	}
	follower.Run(ctx, n.meet)
	n.leave(ctx)
}

// meet is one exchange with the other nodes.
func (n *node) meet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, deadAfter)
	defer cancel()
	if err := n.ask(ctx); err != nil {
		return err
	}
	if n.since(n.told) >= tellPause {
		n.early.Store(false)
		err := n.tell(ctx)
		if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound) {
			// Others took the node for dead and deleted what it had said.
			n.hub.mu.Lock()
			n.renew()
			n.hub.mu.Unlock()
			n.hub.reports.shareAgain()
			err = n.tell(ctx)
		}
		if err != nil {
			return err
		}
	}
	return n.look(ctx)
}

// leave says that the node was stopped: its parties are away.
func (n *node) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	err := n.hub.config.Store.Update(ctx, func(tx store.Tx) error {
		_, err := n.put(ctx, tx, kindNode, n.id, nodeRecord{Left: true})
		return err
	})
	if err != nil {
		n.hub.config.Logger.InfoContext(ctx, "other server nodes were not told of the stop; they notice it", "error", err)
	}
}

// put writes a document of this node and returns its revision.
func (n *node) put(ctx context.Context, tx store.Tx, kind, name string, body any) (uint64, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return 0, err
	}
	return tx.Docs.Put(ctx, store.Doc{Kind: kind, Name: name, Rev: n.revs[kind+name], Body: data})
}

// said is what one write told: the pieces with the serials in them.
type said struct {
	piece   int
	parties map[string]uint64
	rev     uint64
}

// tell writes what has changed here since the last time.
func (n *node) tell(ctx context.Context) error {
	n.told = n.now()
	list, check := n.changes()
	reports := n.hub.reports.changes(n.accompanied())
	if len(list) == 0 && reports.empty() && n.since(n.beaten) < beatEvery {
		return nil
	}
	var gone []string
	var revs map[string]uint64
	err := n.hub.config.Store.Update(ctx, func(tx store.Tx) error {
		gone, revs = nil, map[string]uint64{}
		rev, err := n.put(ctx, tx, kindNode, n.id, nodeRecord{})
		if err != nil {
			return err
		}
		revs[kindNode+n.id] = rev
		for i := range list {
			name := pieceName(n.id, list[i].piece)
			if list[i].rev, err = n.put(ctx, tx, kindPresence, name, list[i].parties); err != nil {
				return err
			}
			revs[kindPresence+name] = list[i].rev
		}
		for _, party := range check {
			_, err := tx.Docs.Get(ctx, engine.KindParty, party)
			if errors.Is(err, store.ErrNotFound) {
				gone = append(gone, party)
			} else if err != nil {
				return err
			}
		}
		return n.share(ctx, tx, reports, revs)
	})
	n.hub.mu.Lock()
	for i := range list {
		n.settle(&list[i], err == nil)
	}
	n.hub.mu.Unlock()
	if err != nil {
		n.hub.reports.unchanged(reports)
		return err
	}
	n.beaten = n.told
	for name, rev := range revs {
		n.revs[name] = rev
	}
	for _, name := range reports.drop {
		delete(n.revs, kindReport+name)
	}
	for _, party := range gone {
		n.hub.endSessionsOf(party) // it was forgotten in between, and connects again
	}
	return nil
}

// changes takes the pieces that must be written, and the clients among them that
// must be checked.
func (n *node) changes() (list []said, check []string) {
	n.hub.mu.Lock()
	defer n.hub.mu.Unlock()
	for i := range n.here {
		at := &n.here[i]
		for _, party := range slices.Sorted(maps.Keys(at.parties)) {
			if at.parties[party].serial == 0 {
				n.prune(at, party)
			}
		}
		if !at.dirty || len(check) >= maxChecked {
			continue
		}
		at.dirty = false
		one := said{piece: i, parties: make(map[string]uint64, len(at.parties))}
		for party, p := range at.parties {
			one.parties[party] = p.serial
			if p.client && p.rev == 0 {
				check = append(check, party)
			}
		}
		list = append(list, one)
	}
	slices.Sort(check)
	return list, check
}

// settle notes what was written, or that it was not; the caller holds the hub's lock.
func (n *node) settle(one *said, written bool) {
	at := &n.here[one.piece]
	if !written {
		at.dirty = true
		return
	}
	for party, serial := range one.parties {
		if p, is := at.parties[party]; is && p.serial == serial && p.rev == 0 {
			p.rev = one.rev
			at.parties[party] = p
		}
	}
}
