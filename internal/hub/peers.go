package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

// peer is another node, as far as it is known here.
type peer struct {
	rev   uint64
	heard time.Time
	left  bool
	// dead: its parties have been noted as away.
	dead    bool
	parties [pieces]map[string]uint64
}

func (n *node) lives(p *peer) bool { return !p.left && n.since(p.heard) < deadAfter }

// elsewhere reports whether a party is connected to another node that lives; the
// caller holds the hub's lock.
func (n *node) elsewhere(party string) bool {
	i := pieceOf(party)
	for _, p := range n.peers {
		if _, is := p.parties[i][party]; is && n.lives(p) {
			return true
		}
	}
	return false
}

// accompanied reports whether another node lives.
func (n *node) accompanied() bool {
	n.hub.mu.Lock()
	defer n.hub.mu.Unlock()
	for _, p := range n.peers {
		if n.lives(p) {
			return true
		}
	}
	return false
}

// informed reports whether it is known who is connected to other nodes.
func (n *node) informed() bool {
	if n.hub.config.Store == nil {
		return true
	}
	n.hub.mu.Lock()
	defer n.hub.mu.Unlock()
	return !n.looked.IsZero() && n.since(n.looked) < deadAfter
}

// look reads what the others have said since the last look.
func (n *node) look(ctx context.Context) error {
	if err := n.endRemoved(ctx); err != nil {
		return err
	}
	var nodes, presence []store.Doc
	for {
		err := n.hub.config.Store.View(ctx, func(tx store.Tx) error {
			var err error
			if nodes, err = tx.Index.Since(ctx, kindNode, n.rev, nodeBatch); err != nil {
				return err
			}
			presence, err = tx.Index.Since(ctx, kindPresence, n.rev, nodeBatch)
			return err
		})
		if err != nil {
			return err
		}
		replaced, next, err := n.learn(nodes, presence)
		if err != nil {
			return err
		}
		for _, party := range replaced {
			n.replace(party)
		}
		n.rev = next
		if len(nodes) < nodeBatch && len(presence) < nodeBatch {
			break
		}
	}
	n.mourn()
	if n.since(n.swept) >= buriedAfter/2 {
		n.swept = n.now()
		return n.sweep(ctx)
	}
	return nil
}

// learn takes in what others said. It returns the parties whose stream here was
// replaced by one elsewhere, and the revision up to which all was read.
func (n *node) learn(nodes, presence []store.Doc) (replaced []string, next uint64, err error) {
	n.hub.mu.Lock()
	defer n.hub.mu.Unlock()
	next = n.rev
	for i := range nodes {
		doc := &nodes[i]
		next = max(next, doc.Rev)
		if doc.Name == n.id {
			continue
		}
		var record nodeRecord
		if err := json.Unmarshal(doc.Body, &record); err != nil {
			return nil, n.rev, fmt.Errorf("stored node %s is damaged: %w", doc.Name, err)
		}
		p := n.peer(doc.Name)
		p.rev, p.heard, p.left, p.dead = doc.Rev, n.now(), record.Left, false
	}
	for i := range presence {
		doc := &presence[i]
		next = max(next, doc.Rev)
		id, _, _ := strings.Cut(doc.Name, "/")
		if id == n.id {
			continue
		}
		parties, err := decodePiece(doc)
		if err != nil {
			return nil, n.rev, err
		}
		replaced = append(replaced, n.compare(id, doc, parties)...)
	}
	// Of a kind that was not read to its end, later ones are read again.
	for _, docs := range [][]store.Doc{nodes, presence} {
		if len(docs) == nodeBatch {
			next = min(next, docs[nodeBatch-1].Rev)
		}
	}
	n.looked = n.now()
	return replaced, next, nil
}

func (n *node) peer(id string) *peer {
	p := n.peers[id]
	if p == nil {
		p = &peer{heard: n.now()}
		n.peers[id] = p
	}
	return p
}

// compare takes in one piece of another node's parties.
func (n *node) compare(id string, doc *store.Doc, parties map[string]uint64) (replaced []string) {
	p := n.peer(id)
	var i int
	if _, err := fmt.Sscanf(doc.Name[len(id):], "/%02x", &i); err != nil || i < 0 || i >= pieces {
		return nil // a later version may divide them otherwise
	}
	before := p.parties[i]
	p.parties[i] = parties
	now := n.hub.config.Now()
	for party := range before {
		if _, still := parties[party]; !still {
			n.hub.seen[party] = now
		}
	}
	for party, serial := range parties {
		if serial == 0 || before[party] == serial {
			continue
		}
		if own, is := n.here[i].parties[party]; is && own.serial != 0 && own.rev != 0 && own.rev < doc.Rev {
			replaced = append(replaced, party)
		}
	}
	slices.Sort(replaced)
	return replaced
}

// replace ends the stream of a party that has connected elsewhere since.
func (n *node) replace(party string) {
	n.hub.mu.Lock()
	s := n.hub.sessions[sessionOf{party: party}]
	n.hub.mu.Unlock()
	if s != nil {
		s.end(ErrReplaced)
	}
}

// mourn notes the parties of nodes that have died or left as away.
func (n *node) mourn() {
	n.hub.mu.Lock()
	defer n.hub.mu.Unlock()
	now := n.hub.config.Now()
	for _, p := range n.peers {
		if p.dead || n.lives(p) {
			continue
		}
		p.dead = true
		at := now.Add(-n.since(p.heard))
		for i := range p.parties {
			for party := range p.parties[i] {
				if at.After(n.hub.seen[party]) {
					n.hub.seen[party] = at
				}
			}
		}
	}
}

// sweep deletes what dead nodes left behind, and reports that have expired.
func (n *node) sweep(ctx context.Context) error {
	n.hub.mu.Lock()
	var buried []string
	for id, p := range n.peers {
		if !n.lives(p) && (p.left || n.since(p.heard) > buriedAfter) {
			buried = append(buried, id)
		}
	}
	n.hub.mu.Unlock()
	slices.Sort(buried)
	for _, id := range buried {
		if err := n.hub.config.Store.Update(ctx, func(tx store.Tx) error { return bury(ctx, tx, id) }); err != nil {
			return err
		}
		n.hub.mu.Lock()
		delete(n.peers, id)
		n.hub.mu.Unlock()
	}
	return n.sweepReports(ctx)
}

func bury(ctx context.Context, tx store.Tx, id string) error {
	docs, err := tx.Index.List(ctx, kindPresence, id+"/", "", nodeBatch)
	if err != nil {
		return err
	}
	doc, err := tx.Docs.Get(ctx, kindNode, id)
	if err == nil {
		docs = append(docs, doc)
	} else if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	for _, doc := range docs {
		if err := tx.Docs.Delete(ctx, doc.Kind, doc.Name, doc.Rev); err != nil {
			return err
		}
	}
	return nil
}
