// Package snapshot keeps the gateway's snapshot of API keys in its store, so that keys
// are verified after a restart while the centre is away.
//
// Guarantees:
//
//   - It keeps the contract of apikeycheck.Cache: an update is one transaction; a
//     replacement is written beside what is there, in transactions of bounded size, and
//     takes its place in one more. A process that is killed at any point leaves the one
//     or the other, and what it leaves beside that is deleted by the next replacement.
//   - The pepper that makes the stored hashes worth something is stored as an envelope
//     of the keeper only, bound to its generation.
//   - Load wraps that envelope's data key again if the keeper has another key-encryption
//     key by now: an old one can be removed once the gateway was restarted.
package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/keyturn/keyturn/client/apikeycheck"
	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// Kinds of documents: the records, named by their generation and their name, and which
// generation is in force.
const (
	kindRecord = "gateway-apikeys"
	kindHead   = "gateway-apikeys-head"
	headName   = "1"
)

const (
	// batchBytes and batchRecords bound what one transaction of a replacement writes.
	batchBytes   = 4 << 20
	batchRecords = 256
	// pageRecords is how many documents are read at once.
	pageRecords = 128
)

// purpose is what the pepper's envelope is bound to, with its generation.
const purpose key.Name = "keyturn/gateway/apikeys"

// Config is what a Cache needs; both fields are required.
type Config struct {
	// Store holds the records of one verifier.
	Store store.Store
	// Keeper seals what is secret of them.
	Keeper keeper.Keeper
}

// Cache is an apikeycheck.Cache.
type Cache struct{ config Config }

var _ apikeycheck.Cache = (*Cache)(nil)

// New returns the cache in a store.
func New(config Config) *Cache { return &Cache{config: config} }

// head says which generation is in force.
type head struct {
	Generation uint64 `json:"generation"`
}

// readHead returns the head and the revision of its document, zeros if there is none.
func readHead(ctx context.Context, tx store.Tx) (h head, rev uint64, err error) {
	doc, err := tx.Docs.Get(ctx, kindHead, headName)
	if errors.Is(err, store.ErrNotFound) {
		return head{}, 0, nil
	}
	if err != nil {
		return head{}, 0, err
	}
	if err := json.Unmarshal(doc.Body, &h); err != nil {
		return head{}, 0, fmt.Errorf("document %s is damaged: %w", kindHead, err)
	}
	return h, doc.Rev, nil
}

func (c *Cache) generation(ctx context.Context) (uint64, error) {
	var h head
	err := c.config.Store.View(ctx, func(tx store.Tx) (err error) {
		h, _, err = readHead(ctx, tx)
		return err
	})
	return h.Generation, err
}

func prefix(generation uint64) string { return fmt.Sprintf("%016x/", generation) }

func place(generation uint64) keeper.Place {
	return keeper.Place{Key: purpose, Version: key.Version(generation)}
}

// Load implements apikeycheck.Cache. It fails with keeper.ErrUnknownKEK or
// keeper.ErrCorrupt when the pepper cannot be opened.
func (c *Cache) Load(ctx context.Context, each func(apikeycheck.Record) error) error {
	generation, err := c.generation(ctx)
	if err != nil {
		return fmt.Errorf("read the snapshot of API keys: %w", err)
	}
	if generation == 0 {
		return nil
	}
	all := prefix(generation)
	for after := ""; ; {
		docs, err := c.page(ctx, all, after)
		if err != nil {
			return fmt.Errorf("read the snapshot of API keys: %w", err)
		}
		for i := range docs {
			r := apikeycheck.Record{Name: strings.TrimPrefix(docs[i].Name, all), Data: docs[i].Body}
			if r.Name == apikeycheck.SecretRecord {
				if r.Data, err = c.open(ctx, generation, &docs[i]); err != nil {
					return err
				}
			}
			err := each(r)
			if r.Name == apikeycheck.SecretRecord {
				clear(r.Data)
			}
			if err != nil {
				return err
			}
		}
		if len(docs) < pageRecords {
			return nil
		}
		after = docs[len(docs)-1].Name
	}
}

func (c *Cache) page(ctx context.Context, prefix, after string) (docs []store.Doc, err error) {
	err = c.config.Store.View(ctx, func(tx store.Tx) (err error) {
		docs, err = tx.Index.List(ctx, kindRecord, prefix, after, pageRecords)
		return err
	})
	return docs, err
}

// open returns what is secret, and has it wrapped by the present KEK from then on.
func (c *Cache) open(ctx context.Context, generation uint64, doc *store.Doc) ([]byte, error) {
	plaintext, err := keeper.Open(ctx, c.config.Keeper, place(generation), doc.Body)
	if err != nil {
		return nil, fmt.Errorf("the pepper of the snapshot of API keys: %w", err)
	}
	rewrapper, err := keeper.NewRewrapper(ctx, c.config.Keeper)
	if err == nil {
		var again []byte
		if again, err = rewrapper.Again(ctx, place(generation), doc.Body); err == nil && again != nil {
			err = c.config.Store.Update(ctx, func(tx store.Tx) error {
				_, err := tx.Docs.Put(ctx, store.Doc{Kind: doc.Kind, Name: doc.Name, Rev: doc.Rev, Body: again})
				return err
			})
		}
	}
	if err != nil {
		clear(plaintext)
		return nil, fmt.Errorf("wrap the pepper of the snapshot of API keys again: %w", err)
	}
	return plaintext, nil
}

// body is what is stored of a record.
func (c *Cache) body(ctx context.Context, generation uint64, r *apikeycheck.Record) ([]byte, error) {
	if r.Name != apikeycheck.SecretRecord {
		return r.Data, nil
	}
	sealed, err := keeper.Seal(ctx, c.config.Keeper, place(generation), r.Data)
	if err != nil {
		return nil, fmt.Errorf("the pepper of the snapshot of API keys: %w", err)
	}
	return sealed, nil
}

// docsOf returns the documents of records; those without a body are to be deleted.
func (c *Cache) docsOf(ctx context.Context, generation uint64, records []apikeycheck.Record) ([]store.Doc, error) {
	docs := make([]store.Doc, 0, len(records))
	for i := range records {
		doc := store.Doc{Kind: kindRecord, Name: prefix(generation) + records[i].Name}
		if len(records[i].Data) > 0 {
			var err error
			if doc.Body, err = c.body(ctx, generation, &records[i]); err != nil {
				return nil, err
			}
		}
		docs = append(docs, doc)
	}
	return docs, nil
}

// Update implements apikeycheck.Cache.
func (c *Cache) Update(ctx context.Context, records ...apikeycheck.Record) error {
	generation, err := c.generation(ctx)
	if err == nil && generation == 0 {
		err = errors.New("there is none yet")
	}
	var docs []store.Doc
	if err == nil {
		docs, err = c.docsOf(ctx, generation, records)
	}
	if err == nil {
		err = c.config.Store.Update(ctx, func(tx store.Tx) error {
			for i := range docs {
				if err := set(ctx, tx, docs[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("update the snapshot of API keys: %w", err)
	}
	return nil
}

// set writes a document, or deletes it, whatever is there.
func set(ctx context.Context, tx store.Tx, doc store.Doc) error {
	present, err := store.Revision(ctx, tx.Docs, doc.Kind, doc.Name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	switch doc.Rev = present.Rev; {
	case doc.Body != nil:
		_, err = tx.Docs.Put(ctx, doc)
	case err == nil:
		err = tx.Docs.Delete(ctx, doc.Kind, doc.Name, doc.Rev)
	default:
		err = nil // there is none
	}
	return err
}

// Replace implements apikeycheck.Cache.
func (c *Cache) Replace(ctx context.Context, records iter.Seq[apikeycheck.Record]) error {
	old, err := c.generation(ctx)
	if err == nil {
		err = c.clear(ctx, old)
	}
	if err == nil {
		err = c.write(ctx, old+1, records)
	}
	if err == nil {
		err = ctx.Err() // records may have ended because of it
	}
	if err == nil {
		err = c.config.Store.Update(ctx, func(tx store.Tx) error { return advance(ctx, tx, old) })
	}
	if err != nil {
		return fmt.Errorf("replace the snapshot of API keys: %w", err)
	}
	// It is in force. What is not deleted now will be before the next one.
	_ = c.clear(ctx, old+1)
	return nil
}

// advance puts the next generation in force.
func advance(ctx context.Context, tx store.Tx, old uint64) error {
	h, rev, err := readHead(ctx, tx)
	if err != nil {
		return err
	}
	if h.Generation == old+1 {
		return nil // the commit before has come through after all
	}
	body, err := json.Marshal(head{old + 1})
	if err != nil {
		return fmt.Errorf("encode %s: %w", kindHead, err)
	}
	_, err = tx.Docs.Put(ctx, store.Doc{Kind: kindHead, Name: headName, Rev: rev, Body: body})
	return err
}

// write writes records as those of a generation.
func (c *Cache) write(ctx context.Context, generation uint64, records iter.Seq[apikeycheck.Record]) error {
	var batch []apikeycheck.Record
	size := 0
	flush := func() error {
		docs, err := c.docsOf(ctx, generation, batch)
		if err != nil {
			return err
		}
		batch, size = batch[:0], 0
		return c.config.Store.Update(ctx, func(tx store.Tx) error {
			for i := range docs {
				if _, err := tx.Docs.Put(ctx, docs[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for r := range records {
		if batch, size = append(batch, r), size+len(r.Data); len(batch) == batchRecords || size >= batchBytes {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// clear deletes the records of every generation but one.
func (c *Cache) clear(ctx context.Context, keep uint64) error {
	kept := prefix(keep)
	for after := ""; ; {
		var next string
		var done bool
		err := c.config.Store.Update(ctx, func(tx store.Tx) error {
			docs, err := tx.Index.List(ctx, kindRecord, "", after, pageRecords)
			if err != nil {
				return err
			}
			next, done = after, len(docs) < pageRecords
			for i := range docs {
				if strings.HasPrefix(docs[i].Name, kept) {
					next, done = kept+"~", false // none of its names comes after that
					return nil
				}
				if err := tx.Docs.Delete(ctx, docs[i].Kind, docs[i].Name, docs[i].Rev); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil || done {
			return err
		}
		after = next
	}
}
