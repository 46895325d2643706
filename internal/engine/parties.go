package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

const (
	// KindParty is the kind of the documents of registered parties, by ID.
	KindParty = "party"
	// KindRemoved are notes of parties that were removed, by ID, by which other
	// nodes on the same store hear that a session of theirs has ended.
	KindRemoved = "party-removed"
)

// removedKept is how long such a note is kept.
const removedKept = time.Hour

// Limits on parties.
const (
	// MaxPartyKeys is how many keys one party may present.
	MaxPartyKeys = 1000
	// MaxPartyID is the longest ID of a party, in bytes.
	MaxPartyID = 128
)

// PartyRecord is a party as it described itself.
type PartyRecord struct {
	ID string `json:"id"`
	// Kind is "agent" or "client"; a client is forgotten when it stays away.
	Kind   string            `json:"kind"`
	Region string            `json:"region,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Keys it presents, sorted.
	Keys   []key.Name `json:"keys,omitempty"`
	Joined time.Time  `json:"joined"`
	// Address is the IP address that it connected from last, InProcess for one that is a
	// part of a server; empty when it is not known.
	Address string `json:"address,omitempty"`
	// Gateway is the gateway through which it connected last, which vouches for the
	// address; empty if it came by itself.
	Gateway string `json:"gateway,omitempty"`
}

// InProcess is the address of a party that is a part of a server.
const InProcess = "in-process"

// cameFrom says where a party comes from, as details of an entry.
func (p *PartyRecord) cameFrom() map[string]string {
	return map[string]string{audit.DetailAddress: p.Address, audit.DetailGateway: p.Gateway}
}

// movedFrom reports whether a party comes from elsewhere than it did before.
func (p *PartyRecord) movedFrom(before *PartyRecord) bool {
	return p.Address != before.Address || p.Gateway != before.Gateway
}

func (p *PartyRecord) info() policy.Party {
	return policy.Party{ID: p.ID, Name: p.ID, Kind: p.Kind, Region: p.Region, Labels: p.Labels}
}

func readParty(ctx context.Context, tx store.Tx, id string) (PartyRecord, store.Doc, error) {
	var party PartyRecord
	doc, err := tx.Docs.Get(ctx, KindParty, id)
	if errors.Is(err, store.ErrNotFound) {
		return party, doc, fmt.Errorf("%w: party %q", ErrNotFound, id)
	}
	if err == nil {
		err = decodeInto(doc.Body, &party)
	}
	return party, doc, err
}

// storedParty is a party as it is stored.
type storedParty struct {
	PartyRecord
	doc store.Doc
}

// readParties reads the records of those who arrive, by name. Those who are not
// registered are absent.
func readParties(ctx context.Context, tx store.Tx, list []*arrival) (map[string]storedParty, error) {
	ids := make([]string, len(list))
	for i, a := range list {
		ids[i] = a.party.ID
	}
	docs, err := store.GetAll(ctx, tx.Docs, KindParty, ids)
	if err != nil {
		return nil, err
	}
	all := make(map[string]storedParty, len(docs))
	for id, doc := range docs {
		party := storedParty{doc: doc}
		if err := decodeInto(doc.Body, &party.PartyRecord); err != nil {
			return nil, err
		}
		all[id] = party
	}
	return all, nil
}

// Holding is what a party says it holds of one key.
type Holding struct {
	Key     key.Name
	Version key.Version
	Epoch   uint64
}

func sameParty(a, b *PartyRecord) bool {
	if a.Kind != b.Kind || a.Region != b.Region || len(a.Labels) != len(b.Labels) {
		return false
	}
	for name, value := range a.Labels {
		if b.Labels[name] != value {
			return false
		}
	}
	return true
}

func tellOf(state *rotation.State, p *rotation.Presenter) Tell {
	tell := Tell{Presenter: p.ID, Version: p.Told, Epoch: p.Epoch, Unanswered: !p.Acked || p.Failed}
	if cut, open := state.CutOver(); open {
		tell.Rotation = cut.ID
	}
	return tell
}

func nonEmpty(m map[string]string) map[string]string {
	for name, value := range m {
		if value == "" {
			delete(m, name)
		}
	}
	return m
}

func (c *change) detachKey(name key.Name, id string) error {
	_, err := c.step(name, key.RotationID{}, rotation.Left{ID: id})
	if errors.Is(err, rotation.ErrStale) {
		return nil
	}
	return err
}

// Detach tells that a party presents nothing any more, and forgets it. If unless
// is not nil and returns true in the same transaction, it fails with ErrState and
// changes nothing.
func (e *Engine) Detach(ctx context.Context, actor audit.Actor, id, reason string, unless func(context.Context, store.Tx) (bool, error)) error {
	return e.update(ctx, actor, func(c *change) error {
		if unless != nil {
			if is, err := unless(ctx, c.tx); err != nil || is {
				return errors.Join(err, ErrState)
			}
		}
		party, doc, err := readParty(ctx, c.tx, id)
		if err != nil {
			return err
		}
		for _, name := range party.Keys {
			if err := c.detachKey(name, id); err != nil {
				return err
			}
		}
		c.audit(audit.Entry{Action: audit.ActionLeave, Target: id, Reason: reason, Detail: nonEmpty(party.cameFrom())})
		if err := c.noteRemoval(id); err != nil {
			return err
		}
		return c.tx.Docs.Delete(ctx, KindParty, id, doc.Rev)
	})
}

// noteRemoval leaves a note of a party that is removed.
func (c *change) noteRemoval(id string) error {
	doc, err := c.tx.Docs.Get(c.ctx, KindRemoved, id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	_, err = c.tx.Docs.Put(c.ctx, store.Doc{Kind: KindRemoved, Name: id, Rev: doc.Rev, Due: c.now.Add(removedKept)})
	return err
}

// Refused says which of several acknowledgements were not taken, and why, by
// presenter. All others are durable.
type Refused map[string]error

// Error names how many were refused and one of them.
func (r Refused) Error() string {
	for id, err := range r {
		return fmt.Sprintf("%d acknowledgements were refused, for example that of %s: %v", len(r), id, err)
	}
	return "no acknowledgement was refused"
}

// Acknowledge records what became of tellings of one key; it returns when that
// is durable. Answers that nobody waits for are ignored. It fails with
// ErrNotFound when there is no such key, and with a Refused when some of the
// answers are malformed: the others are recorded all the same.
func (e *Engine) Acknowledge(ctx context.Context, actor audit.Actor, name key.Name, acks []rotation.Ack) error {
	var refused Refused
	err := e.update(ctx, actor, func(c *change) error {
		refused = Refused{}
		state, _, err := c.state(name)
		if err != nil {
			return err
		}
		if state.Next == 0 {
			return fmt.Errorf("%w: key %s; apply it first", ErrNotFound, name)
		}
		id := key.RotationID{}
		if cut, open := state.CutOver(); open {
			id = cut.ID
		}
		taken := make([]rotation.Ack, 0, len(acks))
		for _, ack := range acks {
			if ack.Using >= state.Next {
				refused[ack.ID] = fmt.Errorf("%w: key %s has no version %d", ErrInvalid, name, uint64(ack.Using))
				continue
			}
			taken = append(taken, ack)
		}
		_, err = c.step(name, id, rotation.Acked{Acks: taken})
		if errors.Is(err, rotation.ErrStale) {
			return nil
		}
		if !errors.Is(err, rotation.ErrInvalid) {
			return err
		}
		// One of them is malformed: the others must not suffer from it.
		for _, ack := range taken {
			_, err := c.step(name, id, rotation.Acked{Acks: []rotation.Ack{ack}})
			switch {
			case errors.Is(err, rotation.ErrInvalid):
				refused[ack.ID] = err
			case err != nil && !errors.Is(err, rotation.ErrStale):
				return err
			}
		}
		return nil
	})
	if err == nil && len(refused) > 0 {
		return refused
	}
	return err
}

// Assigned returns what a presenter of the key is told to present and whether
// it said that it does not fare well; ok is false when it does not present the key.
func (e *Engine) Assigned(ctx context.Context, name key.Name, id string) (tell Tell, unwell, ok bool, err error) {
	err = e.store.View(ctx, func(tx store.Tx) error {
		state, err := e.readState(ctx, tx, name)
		if err != nil {
			return err
		}
		var p *rotation.Presenter
		if p, ok = state.Presenter(id); ok {
			tell, unwell = tellOf(&state, p), p.Failed
		}
		return nil
	})
	return tell, unwell, ok, err
}

// Party returns a registered party; it fails with ErrNotFound when there is none.
func (e *Engine) Party(ctx context.Context, id string) (PartyRecord, error) {
	var party PartyRecord
	err := e.store.View(ctx, func(tx store.Tx) error {
		var err error
		party, _, err = readParty(ctx, tx, id)
		return err
	})
	return party, err
}

// Material returns what a version consists of, for presenters that were told to
// use it. It is not audited by itself: the telling is.
func (e *Engine) Material(ctx context.Context, name key.Name, v key.Version) (provider.Material, error) {
	return e.material(ctx, name, v)
}

// Parties lists registered parties by ID, after the given one, at most limit.
func (e *Engine) Parties(ctx context.Context, after string, limit int) ([]PartyRecord, error) {
	var list []PartyRecord
	err := e.store.View(ctx, func(tx store.Tx) error {
		list = nil
		docs, err := tx.Index.List(ctx, KindParty, "", after, limit)
		if err != nil {
			return err
		}
		for _, doc := range docs {
			var party PartyRecord
			if err := decodeInto(doc.Body, &party); err != nil {
				return err
			}
			list = append(list, party)
		}
		return nil
	})
	return list, err
}
