package apikey

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

const (
	// maxUses bounds how many versions one transaction writes the uses of.
	maxUses = 500
	// maxNamed bounds for how many versions it is remembered between two writings who
	// used them, maxHolders for each of them. Of others the number is known only.
	maxNamed   = 20_000
	maxHolders = 16
	// maxText bounds what a caller may be called.
	maxText = 128
	// span is the resolution of counts: a use is taken for present for one span at
	// least and two at most.
	span = time.Second
	// useKept is how long the last use of a version is remembered.
	useKept = 400 * 24 * time.Hour
)

// holders are those who used versions since the last writing.
type holders struct {
	mu   sync.Mutex
	uses map[uint32][]holder
}

// holder is who used a version at a node, and how often lately.
type holder struct {
	Address     string `json:"address,omitempty"`
	Application string `json:"application,omitempty"`
	// Span numbers the present span; Now are the uses in it, Before those in the one
	// before, All those ever.
	Span   int64     `json:"span"`
	Now    uint64    `json:"now"`
	Before uint64    `json:"before,omitempty"`
	All    uint64    `json:"all"`
	Last   time.Time `json:"last"`
}

func (h *holder) is(o *holder) bool { return h.Address == o.Address && h.Application == o.Application }

// count adds n uses at a time.
func (h *holder) count(n uint64, at time.Time) {
	switch now := at.UnixNano() / int64(span); {
	case now == h.Span+1:
		h.Span, h.Before, h.Now = now, h.Now, 0
	case now > h.Span:
		h.Span, h.Before, h.Now = now, 0, 0
	}
	h.Now += n
	h.All += n
	if at.After(h.Last) {
		h.Last = at.UTC()
	}
}

// present are the uses in the present span and the one before.
func (h *holder) present(at time.Time) uint64 {
	switch now := at.UnixNano() / int64(span); {
	case now <= h.Span:
		return h.Now + h.Before
	case now == h.Span+1:
		return h.Now
	}
	return 0
}

func clip(s string) string { return s[:min(len(s), maxText)] }

// add notes one use.
func (h *holders) add(id uint32, caller Caller, at time.Time) {
	h.addN(id, caller, 1, at)
}

func (h *holders) addN(id uint32, caller Caller, n uint64, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := h.uses[id]
	for i := range list {
		if list[i].Address == caller.Address && list[i].Application == caller.Application {
			list[i].count(n, at)
			return
		}
	}
	if len(list) >= maxHolders || list == nil && len(h.uses) >= maxNamed {
		return // it is counted in the table
	}
	if h.uses == nil {
		h.uses = map[uint32][]holder{}
	}
	one := holder{Address: clip(caller.Address), Application: clip(caller.Application)}
	one.count(n, at)
	h.uses[id] = append(list, one)
}

func (h *holders) take(id uint32) []holder {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := h.uses[id]
	delete(h.uses, id)
	return list
}

// usesOf is how a version was used at one node.
type usesOf struct {
	Key     key.Name    `json:"key"`
	Version key.Version `json:"version"`
	Node    string      `json:"node"`
	Last    time.Time   `json:"last"`
	All     uint64      `json:"all"`
	Holders []holder    `json:"holders"`
	// Proven is when Config.Proven was last told of the version.
	Proven time.Time `json:"proven,omitzero"`
	// Refused are tries while the version was refused.
	Refused     uint64    `json:"refused,omitempty"`
	RefusedLast time.Time `json:"refusedLast,omitzero"`
	RefusedBy   []holder  `json:"refusedBy,omitempty"`
}

// usesHere reads how a version was used at this node.
func (s *Service) usesHere(ctx context.Context, tx store.Tx, name key.Name, v key.Version) (doc store.Doc, stored usesOf, err error) {
	at := docName(name, v) + "/" + s.config.Node
	doc, err = tx.Docs.Get(ctx, kindUse, at)
	switch {
	case errors.Is(err, store.ErrNotFound):
		doc, err = store.Doc{Kind: kindUse, Name: at}, nil
	case err == nil:
		if err = json.Unmarshal(doc.Body, &stored); err != nil {
			err = fmt.Errorf("stored uses %s are damaged: %w", at, err)
		}
	}
	stored.Key, stored.Version, stored.Node = name, v, s.config.Node
	return doc, stored, err
}

func putUses(ctx context.Context, tx store.Tx, doc store.Doc, stored *usesOf, now time.Time) (err error) {
	if doc.Body, err = json.Marshal(stored); err != nil {
		return fmt.Errorf("encode uses: %w", err)
	}
	doc.Due = now.Add(useKept)
	_, err = tx.Docs.Put(ctx, doc)
	return err
}

// provenAgain is after how long Config.Proven is told again.
const provenAgain = time.Hour

// writeUses writes what was used since the last time.
func (s *Service) writeUses(ctx context.Context, now time.Time) error {
	for {
		uses, more := s.table.Drain(maxUses)
		if len(uses) == 0 {
			return nil
		}
		named := make([][]holder, len(uses))
		for i := range uses {
			named[i] = s.holders.take(uses[i].ID)
		}
		var proven []keytable.Use
		err := s.config.Store.Update(ctx, func(tx store.Tx) error {
			proven = proven[:0]
			for i := range uses {
				news, err := s.addUses(ctx, tx, &uses[i], named[i], now)
				if err != nil {
					return err
				}
				if news {
					proven = append(proven, uses[i])
				}
			}
			return nil
		})
		if err != nil {
			// Nothing is lost: it is counted as used again.
			for i := range uses {
				for _, h := range named[i] {
					s.holders.addN(uses[i].ID, Caller{Address: h.Address, Application: h.Application}, h.All, h.Last)
				}
				s.table.Used(uses[i].ID, uses[i].Count, uses[i].Last)
			}
			return err
		}
		for i := range uses {
			s.tellUsed(&uses[i], named[i])
		}
		for i := range proven {
			if err := s.config.Proven(ctx, proven[i].Key, proven[i].Version); err != nil {
				s.config.Logger.DebugContext(ctx, "the use of an API key was not noted", "key", proven[i].Key, "version", proven[i].Version, "error", err)
			}
		}
		if !more {
			return nil
		}
	}
}

// addUses adds to the uses of one version, and reports whether Proven is to be told.
func (s *Service) addUses(ctx context.Context, tx store.Tx, use *keytable.Use, named []holder, now time.Time) (proven bool, err error) {
	doc, stored, err := s.usesHere(ctx, tx, use.Key, use.Version)
	if err != nil {
		return false, err
	}
	stored.All += uint64(use.Count)
	if use.Last.After(stored.Last) {
		stored.Last = use.Last.UTC()
	}
	unnamed := uint64(use.Count)
	for i := range named {
		unnamed -= min(unnamed, named[i].All)
		stored.Holders = merge(stored.Holders, &named[i])
	}
	if unnamed > 0 {
		rest := holder{Application: "(not named)"}
		rest.count(unnamed, use.Last)
		stored.Holders = merge(stored.Holders, &rest)
	}
	if proven = now.Sub(stored.Proven) >= provenAgain; proven {
		stored.Proven = now
	}
	return proven, putUses(ctx, tx, doc, &stored, now)
}

// merge adds what one holder did; the one that was there longest ago makes room.
func merge(list []holder, more *holder) []holder {
	for i := range list {
		h := &list[i]
		if !h.is(more) {
			continue
		}
		switch {
		case more.Span == h.Span:
			h.Now, h.Before = h.Now+more.Now, h.Before+more.Before
		case more.Span == h.Span+1:
			h.Span, h.Before, h.Now = more.Span, h.Now+more.Before, more.Now
		case more.Span > h.Span:
			h.Span, h.Before, h.Now = more.Span, more.Before, more.Now
		}
		h.All += more.All
		if more.Last.After(h.Last) {
			h.Last = more.Last
		}
		return list
	}
	list = append(list, *more)
	slices.SortFunc(list, func(a, b holder) int { return b.Last.Compare(a.Last) })
	return list[:min(len(list), maxHolders)]
}

// asked is the last count of a version's uses.
type asked struct {
	At  time.Time `json:"at"`
	All uint64    `json:"all"`
}

// Uses returns the uses of a version since it was asked for the last time, by all
// nodes, and who made them. What was used before the call began is counted. It
// fails with provider.ErrNoData when a node that may let the version in does not
// tell of its uses until ctx ends, at most askTime.
func (s *Service) Uses(ctx context.Context, name key.Name, v key.Version) (provider.Usage, error) {
	if err := s.allTold(ctx, false); err != nil {
		return provider.Usage{}, err
	}
	now := s.config.Now()
	var usage provider.Usage
	err := s.config.Store.Update(ctx, func(tx store.Tx) error {
		usage = provider.Usage{}
		list, err := listUses(ctx, tx, name, v)
		if err != nil {
			return err
		}
		var all uint64
		for i := range list {
			all += list[i].All
		}
		last, err := s.ask(ctx, tx, docName(name, v), asked{At: now.UTC(), All: all})
		if err != nil {
			return err
		}
		usage.Sessions = int(all - min(all, last.All))
		s.name(&usage, list, now, last.At)
		return nil
	})
	if err != nil {
		return provider.Usage{}, fmt.Errorf("%w: %w", provider.ErrNoData, err)
	}
	return usage, nil
}

// ask stores a count and returns the one before; if that is missing, one of the
// same number a moment ago.
func (s *Service) ask(ctx context.Context, tx store.Tx, name string, next asked) (asked, error) {
	last := asked{At: next.At.Add(-span), All: next.All}
	doc, err := tx.Docs.Get(ctx, kindAsked, name)
	if errors.Is(err, store.ErrNotFound) {
		doc, err = store.Doc{Kind: kindAsked, Name: name}, nil
	} else if err == nil {
		err = json.Unmarshal(doc.Body, &last)
	}
	if err != nil {
		return last, err
	}
	if doc.Body, err = json.Marshal(next); err != nil {
		return last, fmt.Errorf("encode a count: %w", err)
	}
	doc.Due = next.At.Add(goneKept)
	_, err = tx.Docs.Put(ctx, doc)
	return last, err
}

// name adds those who used a version since the last count, or in this moment: a
// count whose answer was lost is repeated at once.
func (*Service) name(usage *provider.Usage, list []usesOf, now, since time.Time) {
	present := 0
	for i := range list {
		for j := range list[i].Holders {
			h := &list[i].Holders[j]
			n := int(h.present(now))
			present += n
			if n == 0 && h.Last.After(since) {
				n = 1
			}
			if n > 0 {
				usage.Holders = append(usage.Holders, provider.Holder{Endpoint: Endpoint, Address: h.Address, Application: h.Application, Sessions: n})
			}
		}
	}
	usage.Sessions = max(usage.Sessions, present)
	slices.SortStableFunc(usage.Holders, func(a, b provider.Holder) int { return cmp.Compare(b.Sessions, a.Sessions) })
	usage.Holders = usage.Holders[:min(len(usage.Holders), provider.MaxHolders)]
}

// askTime bounds how long a count waits for the nodes.
const askTime = 6 * time.Second

// allTold returns once every node and every verifier outside that may let a key in
// has written what was used before the call; with alive only the nodes that are.
func (s *Service) allTold(ctx context.Context, alive bool) error {
	began := s.config.Now()
	if err := errors.Join(s.flush(ctx, true), s.demand(ctx)); err != nil {
		return fmt.Errorf("%w: %w", provider.ErrNoData, err)
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	woken := s.config.Store.Watch(ctx, store.TopicDocs)
	for {
		heard := s.verifiers.heard()
		var nodes []peer
		var outside map[string]verifier
		err := s.config.Store.View(ctx, func(tx store.Tx) error {
			var err error
			if nodes, err = s.peers(ctx, tx); err == nil {
				outside, err = s.listVerifiers(ctx, tx)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("%w: %w", provider.ErrNoData, err)
		}
		var late []string
		longest := deadAfter
		if !alive {
			late, longest = untold(outside, s.config.Now(), began), s.config.Stale+staleMargin
		}
		for i := range nodes {
			if p := &nodes[i]; p.Flushed.Before(began) && began.Sub(p.At) <= longest {
				late = append(late, "server node "+p.name)
			}
		}
		if len(late) == 0 {
			return s.flush(ctx, false) // what verifiers reported here meanwhile
		}
		select {
		case <-woken:
		case <-heard:
		case <-ctx.Done():
			return fmt.Errorf("%w: not told of by %s", provider.ErrNoData, someNames(late))
		}
	}
}

// Endpoint is what the verifier of API keys is called.
const Endpoint = "keyturn"

func listUses(ctx context.Context, tx store.Tx, name key.Name, v key.Version) ([]usesOf, error) {
	docs, err := tx.Index.List(ctx, kindUse, docName(name, v)+"/", "", maxNodes)
	if err != nil {
		return nil, err
	}
	list := make([]usesOf, len(docs))
	for i, doc := range docs {
		if err := json.Unmarshal(doc.Body, &list[i]); err != nil {
			return nil, fmt.Errorf("stored uses %s are damaged: %w", doc.Name, err)
		}
	}
	return list, nil
}
