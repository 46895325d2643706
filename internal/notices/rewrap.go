package notices

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// rewrapBatch is how many keys are read at once.
const rewrapBatch = 256

// RewrapSecrets gives the envelopes of all signing secrets to again, and stores what
// that returns instead. What it cannot rewrap it leaves, goes on, and fails with the
// first reason at the end; so it does when a secret was replaced meanwhile.
func RewrapSecrets(ctx context.Context, in store.Store, again keeper.Again) error {
	var problem error
	for after := ""; ; {
		var docs []store.Doc
		err := in.View(ctx, func(tx store.Tx) (err error) {
			docs, err = tx.Index.List(ctx, kindSecret, "", after, rewrapBatch)
			return err
		})
		if err != nil {
			return err
		}
		for i := range docs {
			after = docs[i].Name
			if err := rewrapSecrets(ctx, in, &docs[i], again); err != nil && problem == nil {
				problem = fmt.Errorf("the signing secrets of %s: %w", after, err)
			}
		}
		if len(docs) < rewrapBatch {
			return problem
		}
	}
}

func rewrapSecrets(ctx context.Context, in store.Store, doc *store.Doc, again keeper.Again) error {
	var list []storedSecret
	if err := json.Unmarshal(doc.Body, &list); err != nil {
		return errors.New("they are damaged")
	}
	changed := false
	for i := range list {
		envelope, err := again(ctx, placeOf(key.Name(doc.Name), list[i].Number), list[i].Sealed)
		if err != nil {
			return err
		}
		if envelope != nil {
			list[i].Sealed, changed = envelope, true
		}
	}
	if !changed {
		return nil
	}
	next := *doc
	var err error
	if next.Body, err = json.Marshal(list); err != nil {
		return err
	}
	return in.Update(ctx, func(tx store.Tx) error {
		_, err := tx.Docs.Put(ctx, next)
		return err
	})
}

// Envelopes returns the sealed secrets of a document of signing secrets; none of any
// other document.
func Envelopes(doc *store.Doc) ([][]byte, error) {
	if doc.Kind != kindSecret {
		return nil, nil
	}
	var list []storedSecret
	if err := json.Unmarshal(doc.Body, &list); err != nil {
		return nil, fmt.Errorf("the signing secrets of %s are damaged", doc.Name)
	}
	envelopes := make([][]byte, len(list))
	for i := range list {
		envelopes[i] = list[i].Sealed
	}
	return envelopes, nil
}
