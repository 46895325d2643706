package engine

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/sealed"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// The documents by which leaked secrets are recognised.
const (
	// kindLeakPepper holds the sealed pepper.
	kindLeakPepper = "leak-pepper"
	// kindFingerprint has a document for each secret of each version whose material is
	// kept: its name is the fingerprint, then the version.
	kindFingerprint = "leak-fingerprint"
	// kindFingerprinted has a document for each such version: the names of those.
	kindFingerprinted = "leak-fingerprinted"
	// kindBackfill says how far versions from before there were fingerprints have one.
	kindBackfill = "leak-backfill"
)

// fingerprinted is one secret of a version.
type fingerprinted struct {
	Key     key.Name    `json:"key"`
	Version key.Version `json:"version"`
	Secret  string      `json:"secret"`
}

// leakPepper is opened once. Whoever opens it has the turn; the others wait for that
// as long as their contexts allow, and not for a lock: it takes as long as the store.
type leakPepper struct {
	turn chan struct{}
	made atomic.Pointer[keeper.Fingerprinter]
}

// LeakPepper is what fingerprints are keyed with.
func LeakPepper() sealed.Secret {
	return sealed.Secret{Purpose: "keyturn/leaks/pepper", Kind: kindLeakPepper, Size: 32, Called: "the pepper of fingerprints"}
}

// fingerprinter opens the pepper, and draws one if there is none.
func (e *Engine) fingerprinter(ctx context.Context) (*keeper.Fingerprinter, error) {
	if made := e.leaks.made.Load(); made != nil {
		return made, nil
	}
	select {
	case e.leaks.turn <- struct{}{}:
		defer func() { <-e.leaks.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if made := e.leaks.made.Load(); made != nil {
		return made, nil
	}
	box := sealed.Box{Store: e.store, Keeper: e.config.Keeper, Random: e.config.Random}
	pepper, err := box.Draw(ctx, LeakPepper())
	if err != nil {
		return nil, err
	}
	defer clear(pepper)
	made := keeper.NewFingerprinter(pepper)
	e.leaks.made.Store(made)
	return made, nil
}

// fingerprintsOf are the documents of a version's secrets, by which they are
// recognised. What its attributes show as well is no secret.
func (e *Engine) fingerprintsOf(ctx context.Context, name key.Name, v key.Version, material provider.Material) ([]store.Doc, error) {
	prints, err := e.fingerprinter(ctx)
	if err != nil {
		return nil, err
	}
	public := slices.Collect(maps.Values(material.Attributes))
	docs := []store.Doc{}
	for _, which := range slices.Sorted(maps.Keys(material.Secrets)) {
		value := material.Secrets[which]
		sum, ok := prints.Of(value)
		if !ok || slices.ContainsFunc(public, func(text string) bool { return secret.NewString(text).Equal(value) }) {
			continue
		}
		docName := hex.EncodeToString(sum[:]) + " " + versionName(name, v)
		if slices.ContainsFunc(docs, func(d store.Doc) bool { return d.Name == docName }) {
			continue
		}
		body, err := encode(fingerprinted{Key: name, Version: v, Secret: which})
		if err != nil {
			return nil, err
		}
		docs = append(docs, store.Doc{Kind: kindFingerprint, Name: docName, Body: body})
	}
	return docs, nil
}

// putFingerprints writes the fingerprints of a version that has none.
func putFingerprints(ctx context.Context, tx store.Tx, name key.Name, v key.Version, docs []store.Doc) error {
	names := make([]string, len(docs))
	for i, doc := range docs {
		if _, err := tx.Docs.Put(ctx, doc); err != nil {
			return err
		}
		names[i] = doc.Name
	}
	body, err := encode(names)
	if err != nil {
		return err
	}
	_, err = tx.Docs.Put(ctx, store.Doc{Kind: kindFingerprinted, Name: versionName(name, v), Body: body})
	return err
}

// deleteFingerprints removes what a version whose material is destroyed could be
// recognised by.
func deleteFingerprints(ctx context.Context, tx store.Tx, name key.Name, v key.Version) error {
	list, err := tx.Docs.Get(ctx, kindFingerprinted, versionName(name, v))
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var names []string
	if err := decodeInto(list.Body, &names); err != nil {
		return err
	}
	for _, docName := range names {
		doc, err := store.Revision(ctx, tx.Docs, kindFingerprint, docName)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err == nil {
			err = tx.Docs.Delete(ctx, kindFingerprint, docName, doc.Rev)
		}
		if err != nil {
			return err
		}
	}
	return tx.Docs.Delete(ctx, kindFingerprinted, list.Name, list.Rev)
}

// backfill is how far versions from before there were fingerprints have one.
type backfill struct {
	After string `json:"after,omitempty"`
	Done  bool   `json:"done,omitempty"`
	// Again: some could not be opened; the walk begins anew.
	Again bool `json:"again,omitempty"`
}

// backfillBatch is how many versions are read at a time.
const backfillBatch = 64

// backfillFingerprints gives fingerprints to versions that were minted before there
// were any: once in the life of a store. A version that cannot be opened now is left
// to the next time.
func (e *Engine) backfillFingerprints(ctx context.Context) error {
	for ctx.Err() == nil {
		var progress backfill
		var doc store.Doc
		var versions []store.Doc
		err := e.store.View(ctx, func(tx store.Tx) error {
			var err error
			doc, err = tx.Docs.Get(ctx, kindBackfill, "1")
			switch {
			case errors.Is(err, store.ErrNotFound):
				doc = store.Doc{Kind: kindBackfill, Name: "1"}
			case err != nil:
				return err
			default:
				if err := decodeInto(doc.Body, &progress); err != nil {
					return err
				}
			}
			if progress.Done {
				return nil
			}
			versions, err = tx.Index.List(ctx, kindVersion, "", progress.After, backfillBatch)
			return err
		})
		if err != nil || progress.Done {
			return err
		}
		var problem error
		for i := range versions {
			if err := e.backfillVersion(ctx, &versions[i]); err != nil {
				problem, progress.Again = err, true
			}
			progress.After = versions[i].Name
		}
		if ended := len(versions) < backfillBatch; ended && progress.Again {
			progress = backfill{}
			problem = cmp.Or(problem, errSomeLeft)
		} else {
			progress.Done = ended
			problem = nil
		}
		if doc.Body, err = encode(progress); err != nil {
			return err
		}
		err = e.store.Update(ctx, func(tx store.Tx) error {
			_, err := tx.Docs.Put(ctx, doc)
			return err
		})
		if errors.Is(err, store.ErrConflict) {
			return nil // another node does it
		}
		if err != nil || problem != nil {
			return cmp.Or(err, problem)
		}
	}
	return ctx.Err()
}

// errSomeLeft: versions could not be opened.
var errSomeLeft = errors.New("some versions could not be opened")

func (e *Engine) backfillVersion(ctx context.Context, doc *store.Doc) error {
	var record VersionRecord
	if err := decodeInto(doc.Body, &record); err != nil {
		return err
	}
	name, ok := keyOfVersion(doc.Name)
	if !ok || !record.Destroyed.IsZero() || !record.Forgotten.IsZero() || record.Foreign {
		return nil
	}
	err := e.store.View(ctx, func(tx store.Tx) error {
		_, err := store.Revision(ctx, tx.Docs, kindFingerprinted, doc.Name)
		return err
	})
	if !errors.Is(err, store.ErrNotFound) {
		return err // it has some
	}
	material, err := e.material(ctx, name, record.Number)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	docs, err := e.fingerprintsOf(ctx, name, record.Number, material)
	if err != nil {
		return err
	}
	return e.store.Update(ctx, func(tx store.Tx) error {
		_, err := store.Revision(ctx, tx.Docs, kindFingerprinted, doc.Name)
		if !errors.Is(err, store.ErrNotFound) {
			return err // it has some
		}
		if _, err = tx.Materials.Get(ctx, name, record.Number); errors.Is(err, store.ErrNotFound) {
			return nil // it was destroyed meanwhile
		}
		if err != nil {
			return err
		}
		return putFingerprints(ctx, tx, name, record.Number, docs)
	})
}
