package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/store"
)

const (
	// rewrapBatch is how many versions are read, rewrapBytes about how many bytes are
	// written, between two pauses.
	rewrapBatch = 64
	rewrapBytes = 1 << 20
)

// RewrapMaterials gives the envelope of every version's material to again, and stores
// what that returns instead; pause passes between batches. What it cannot rewrap it
// leaves, goes on, and fails with the first reason at the end. Several servers may
// do it at once, and the store be used meanwhile.
func RewrapMaterials(ctx context.Context, in store.Store, again keeper.Again, pause time.Duration) error {
	var problem error
	for after := ""; ; {
		var versions []store.Doc
		err := in.View(ctx, func(tx store.Tx) (err error) {
			versions, err = tx.Index.List(ctx, kindVersion, "", after, rewrapBatch)
			return err
		})
		if err != nil {
			return err
		}
		var batch []rewrapped
		size := 0
		for i := range versions {
			after = versions[i].Name
			one, err := rewrapVersion(ctx, in, &versions[i], again)
			if err != nil && problem == nil {
				problem = err
			}
			if one.again != nil {
				batch, size = append(batch, one), size+len(one.again)
			}
			if last := i == len(versions)-1; size >= rewrapBytes || last {
				if err := replaceMaterials(ctx, in, batch); err != nil {
					return err
				}
				batch, size = nil, 0
			}
		}
		if len(versions) < rewrapBatch {
			return problem
		}
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return ctx.Err()
		}
	}
}

// rewrapped is one envelope and what is to replace it.
type rewrapped struct {
	place         keeper.Place
	before, again []byte
}

func rewrapVersion(ctx context.Context, in store.Store, doc *store.Doc, again keeper.Again) (rewrapped, error) {
	var record VersionRecord
	if err := decodeInto(doc.Body, &record); err != nil {
		return rewrapped{}, err
	}
	name, ok := keyOfVersion(doc.Name)
	if !ok {
		return rewrapped{}, fmt.Errorf("stored version %q is damaged", doc.Name)
	}
	one := rewrapped{place: keeper.Place{Key: name, Version: record.Number}}
	err := in.View(ctx, func(tx store.Tx) (err error) {
		one.before, err = tx.Materials.Get(ctx, name, record.Number)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return rewrapped{}, nil // it is destroyed, or was never here
	}
	if err == nil {
		one.again, err = again(ctx, one.place, one.before)
	}
	return one, err
}

// replaceMaterials stores envelopes, but those whose material was destroyed or
// replaced meanwhile.
func replaceMaterials(ctx context.Context, in store.Store, batch []rewrapped) error {
	if len(batch) == 0 {
		return nil
	}
	return in.Update(ctx, func(tx store.Tx) error {
		for _, one := range batch {
			name, v := one.place.Key, one.place.Version
			present, err := tx.Materials.Get(ctx, name, v)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if !bytes.Equal(present, one.before) {
				continue
			}
			if err := tx.Materials.Delete(ctx, name, v); err != nil {
				return err
			}
			if err := tx.Materials.Put(ctx, name, v, one.again); err != nil {
				return err
			}
		}
		return nil
	})
}
