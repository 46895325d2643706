package relay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/sealed"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// The kinds of documents of the cache.
const (
	kindKey     = "relay-key"     // by key: what the relay presents of it
	kindGrant   = "relay-grant"   // by the hash of a token
	kindHandout = "relay-handout" // by number
	kindBatch   = "relay-batch"   // the batch that is being told to the centre
	kindState   = "relay-state"
	kindSecret  = "relay-secret" // what tokens are hashed with

	docState = "1"
	// pageOf is how many documents are read or written at a time.
	pageOf = 500
	// secretSize is in bytes.
	secretSize = 32
)

// cache is what is durable. It has no rules.
type cache struct {
	store  store.Store
	keeper keeper.Keeper
	// belongs to a centre and a gateway.
	belongs string
}

// place binds what is sealed to the centre, the gateway and the key.
func (c *cache) place(name key.Name, v key.Version) keeper.Place {
	sum := sha256.Sum256([]byte(c.belongs + "\x00" + string(name)))
	return keeper.Place{Key: key.Name("relay/" + hex.EncodeToString(sum[:16])), Version: v}
}

// hashKey returns the secret that tokens are hashed with.
func (c *cache) hashKey(ctx context.Context, config *Config) ([]byte, error) {
	box := sealed.Box{Store: c.store, Keeper: c.keeper, Random: config.Random}
	return box.Draw(ctx, sealed.Secret{Purpose: "relay/tokens", Kind: kindSecret, Size: secretSize, Called: "the key that the relay hashes tokens with"})
}

// list calls each with every document of a kind.
func (c *cache) list(ctx context.Context, kind string, each func(*store.Doc) error) error {
	for after := ""; ; {
		var page []store.Doc
		err := c.store.View(ctx, func(tx store.Tx) (err error) {
			page, err = tx.Index.List(ctx, kind, "", after, pageOf)
			return err
		})
		if err != nil {
			return err
		}
		for i := range page {
			if err := each(&page[i]); err != nil {
				return err
			}
		}
		if len(page) < pageOf {
			return nil
		}
		after = page[len(page)-1].Name
	}
}

// put writes a document, whatever there was, or removes it when body is nil. The cache
// has one writer.
func put(ctx context.Context, tx store.Tx, kind, name string, body any) error {
	now, err := store.Revision(ctx, tx.Docs, kind, name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if body == nil {
		if now.Rev == 0 {
			return nil
		}
		return tx.Docs.Delete(ctx, kind, name, now.Rev)
	}
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	_, err = tx.Docs.Put(ctx, store.Doc{Kind: kind, Name: name, Rev: now.Rev, Body: data})
	return err
}

// stateRecord is what the cache remembers of the relay as a whole.
type stateRecord struct {
	// Seen is the latest time that the relay has seen.
	Seen time.Time `json:"seen,omitzero"`
	// Own: the relay may have served somebody by itself who is not done with.
	Own bool `json:"own,omitempty"`
}

func (c *cache) state(ctx context.Context) (stateRecord, error) {
	var state stateRecord
	err := c.store.View(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindState, docState)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := json.Unmarshal(doc.Body, &state); err != nil {
			return fmt.Errorf("the relay's state in the cache is damaged: %w; remove the cache", err)
		}
		return nil
	})
	return state, err
}

func (c *cache) putState(ctx context.Context, state stateRecord) error {
	return c.store.Update(ctx, func(tx store.Tx) error { return put(ctx, tx, kindState, docState, state) })
}

// keyRecord is a document of kindKey.
type keyRecord struct {
	// Party is the number of the party that presents the key.
	Party int         `json:"party"`
	Asked time.Time   `json:"asked"`
	Of    key.Version `json:"version"`
	// Sealed is a sealedKey.
	Sealed []byte `json:"sealed"`
}

// sealedKey is what is sealed of a key: all of it, so that nothing of it can be altered.
type sealedKey struct {
	Key        key.Name          `json:"key"`
	Version    key.Version       `json:"version"`
	Epoch      uint64            `json:"epoch"`
	Rotation   string            `json:"rotation,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Secrets    map[string][]byte `json:"secrets,omitempty"`
	Published  time.Time         `json:"published,omitzero"`
}

func (c *cache) sealKey(ctx context.Context, m *material, party int, asked time.Time) (keyRecord, error) {
	plain := sealedKey{Key: m.name, Version: m.version, Epoch: m.epoch, Rotation: m.rotation, Attributes: m.attributes, Published: m.published, Secrets: m.reveal()}
	data, err := json.Marshal(plain)
	if err != nil {
		return keyRecord{}, err
	}
	defer clear(data)
	envelope, err := keeper.Seal(ctx, c.keeper, c.place(m.name, m.version), data)
	return keyRecord{Party: party, Asked: asked, Of: m.version, Sealed: envelope}, err
}

// errForeign: a document of the cache is damaged or belongs to another gateway or centre.
var errForeign = errors.New("it is damaged, or belongs to another gateway or centre")

// decodeKey reads a document of kindKey without opening it.
func decodeKey(body []byte, parties int) (keyRecord, error) {
	var record keyRecord
	if err := json.Unmarshal(body, &record); err != nil || record.Party < 1 || record.Party > parties || record.Of == 0 {
		return keyRecord{}, errForeign
	}
	return record, nil
}

// openKey fails with errForeign, or when the keeper cannot be asked.
func (c *cache) openKey(ctx context.Context, name key.Name, record *keyRecord) (*material, error) {
	data, err := keeper.Open(ctx, c.keeper, c.place(name, record.Of), record.Sealed)
	if errors.Is(err, keeper.ErrCorrupt) || errors.Is(err, keeper.ErrUnknownKEK) {
		return nil, fmt.Errorf("%w: %w", errForeign, err)
	}
	if err != nil {
		return nil, err
	}
	defer clear(data)
	var plain sealedKey
	if err := json.Unmarshal(data, &plain); err != nil || plain.Key != name || plain.Version != record.Of || plain.Epoch == 0 {
		return nil, errForeign
	}
	m := &material{name: name, version: plain.Version, epoch: plain.Epoch, rotation: plain.Rotation, attributes: plain.Attributes, published: plain.Published}
	m.take(plain.Secrets)
	return m, nil
}

func belongs(name, centre string) string { return centre + "\x00" + name }

// grantRecord is a document of kindGrant.
type grantRecord struct {
	// Accepted is when the centre accepted the token for each key, by key, with the party
	// behind a NUL for agents.
	Accepted map[string]time.Time `json:"accepted"`
}
