package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

const kindParty = "party"

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
}

func (p *PartyRecord) info() policy.Party {
	return policy.Party{ID: p.ID, Name: p.ID, Kind: p.Kind, Region: p.Region, Labels: p.Labels}
}

func readParty(ctx context.Context, tx store.Tx, id string) (PartyRecord, store.Doc, error) {
	var party PartyRecord
	doc, err := tx.Docs.Get(ctx, kindParty, id)
	if errors.Is(err, store.ErrNotFound) {
		return party, doc, fmt.Errorf("%w: party %q", ErrNotFound, id)
	}
	if err == nil {
		err = decodeInto(doc.Body, &party)
	}
	return party, doc, err
}

// Holding is what a party says it holds of one key.
type Holding struct {
	Key     key.Name
	Version key.Version
	Epoch   uint64
}

// Attach registers a party with the keys it presents and returns what it is to
// present of each; a key without a version for it yet is absent from the answer.
// Attaching what is attached already, unchanged, writes nothing. It fails with
// ErrNotFound, and attaches nothing, when one of the keys does not exist.
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
	tells, same, err := e.attached(ctx, &party, holdings)
	if err != nil || same {
		return tells, err
	}
	err = e.update(ctx, actor, func(c *change) error {
		tells = map[key.Name]Tell{}
		return c.attach(party, holdings, tells)
	})
	return tells, err
}

// attached reports whether the party is registered just so already, and what it
// is to present.
func (e *Engine) attached(ctx context.Context, party *PartyRecord, holdings []Holding) (tells map[key.Name]Tell, same bool, err error) {
	err = e.store.View(ctx, func(tx store.Tx) error {
		tells, same = map[key.Name]Tell{}, true
		known, _, err := readParty(ctx, tx, party.ID)
		if errors.Is(err, ErrNotFound) {
			same = false
			return nil
		}
		if err != nil {
			return err
		}
		same = sameParty(&known, party) && len(known.Keys) == len(holdings)
		for i, h := range holdings {
			if !same || known.Keys[i] != h.Key {
				same = false
				return nil
			}
			state, _, err := e.loadState(ctx, tx, h.Key)
			if err != nil {
				return err
			}
			p, ok := state.Presenter(party.ID)
			// A party that holds what it was told, or did not hear of it yet, needs no event.
			if !ok || h.Epoch > p.Epoch || h.Version != 0 && !p.MayUse(h.Version) || h.Version == 0 && p.Acked && p.Told != 0 {
				same = false
				return nil
			}
			if p.Told != 0 {
				tells[h.Key] = tellOf(&state, p)
			}
		}
		return nil
	})
	return tells, same, err
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
	tell := Tell{Presenter: p.ID, Version: p.Told, Epoch: p.Epoch, Unanswered: !p.Acked}
	if cut, open := state.CutOver(); open {
		tell.Rotation = cut.ID
	}
	return tell
}

func (c *change) attach(party PartyRecord, holdings []Holding, tells map[key.Name]Tell) error {
	known, doc, err := readParty(c.ctx, c.tx, party.ID)
	isNew := errors.Is(err, ErrNotFound)
	if err != nil && !isNew {
		return err
	}
	party.Joined, party.Keys = known.Joined, nil
	if isNew {
		party.Joined = c.now
		c.audit(audit.Entry{Action: audit.ActionJoin, Target: party.ID, Detail: nonEmpty(map[string]string{"kind": party.Kind, "region": party.Region})})
	}
	for _, h := range holdings {
		tell, err := c.attachKey(&party, h)
		if err != nil {
			return err
		}
		if tell.Version != 0 {
			tells[h.Key] = tell
		}
		party.Keys = append(party.Keys, h.Key)
	}
	for _, name := range known.Keys {
		if !slices.Contains(party.Keys, name) {
			if err := c.detachKey(name, party.ID); err != nil {
				return err
			}
		}
	}
	body, err := encode(party)
	if err != nil {
		return err
	}
	_, err = c.tx.Docs.Put(c.ctx, store.Doc{Kind: kindParty, Name: party.ID, Rev: doc.Rev, Body: body})
	return err
}

func nonEmpty(m map[string]string) map[string]string {
	for name, value := range m {
		if value == "" {
			delete(m, name)
		}
	}
	return m
}

// maxEpochAhead is how far the epoch that a party has seen may be ahead of those
// that are stored: after a restore it is by what the backup lacks, and no party
// may use up the epochs of a key.
const maxEpochAhead = 1 << 32

func (c *change) attachKey(party *PartyRecord, h Holding) (Tell, error) {
	_, k, _, err := c.e.readKey(c.ctx, c.tx, h.Key)
	if err != nil {
		return Tell{}, err
	}
	compiled, err := c.e.policyOf(c.ctx, c.tx, &k)
	if err != nil {
		return Tell{}, err
	}
	stage, err := stageFor(compiled, &k, party)
	if err != nil {
		return Tell{}, err
	}
	body := rotation.Joined{ID: party.ID, Region: party.Region, Stage: stage, Holding: h.Version, Epoch: h.Epoch}
	state, _, err := c.state(h.Key)
	if err != nil {
		return Tell{}, err
	}
	if h.Epoch > state.Epoch+maxEpochAhead {
		return Tell{}, fmt.Errorf("%w: key %s: epoch %d was never told to anybody; connect with epoch 0", ErrInvalid, h.Key, h.Epoch)
	}
	if _, ok := state.Version(h.Version); !ok {
		body.Holding = 0 // never minted here, or destroyed: nothing that could be relied on
	}
	after, err := c.step(h.Key, key.RotationID{}, body)
	if err != nil {
		return Tell{}, err
	}
	p, ok := after.Presenter(party.ID)
	if !ok || p.Told == 0 {
		return Tell{}, nil
	}
	return tellOf(&after, p), nil
}

func (c *change) detachKey(name key.Name, id string) error {
	_, err := c.step(name, key.RotationID{}, rotation.Left{ID: id})
	if errors.Is(err, rotation.ErrStale) {
		return nil
	}
	return err
}

// Detach tells that a party presents nothing any more, and forgets it.
func (e *Engine) Detach(ctx context.Context, actor audit.Actor, id, reason string) error {
	return e.update(ctx, actor, func(c *change) error {
		party, doc, err := readParty(ctx, c.tx, id)
		if err != nil {
			return err
		}
		for _, name := range party.Keys {
			if err := c.detachKey(name, id); err != nil {
				return err
			}
		}
		c.audit(audit.Entry{Action: "party.leave", Target: id, Reason: reason})
		return c.tx.Docs.Delete(ctx, kindParty, id, doc.Rev)
	})
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
		state, _, err := e.loadState(ctx, tx, name)
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
		docs, err := tx.Index.List(ctx, kindParty, "", after, limit)
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
