package gateway

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/internal/store"
)

// The document that says whose cache it is.
const (
	kindOfOwner = "gateway"
	nameOfOwner = "owner"
)

// owner is whose cache it is; none of it is secret.
type owner struct {
	// Name is that of the gateway.
	Name string `json:"name"`
	// Centre names the centre for this cache: drawn when the cache is made.
	Centre string `json:"centre"`
	// Addresses are those under which the centre is known; one of them has to stay when
	// others come.
	Addresses []string `json:"addresses"`
}

// ErrForeignCache: the cache in the data folder is that of another gateway, or of another
// centre.
var ErrForeignCache = errors.New("the data folder holds the cache of another gateway")

// claim notes whose cache it is, and refuses that of another gateway or centre: what is
// kept there would be handed out in the name of this one. It returns the centre's name.
func (g *Gateway) claim(ctx context.Context) (centre string, err error) {
	mine := owner{Name: g.config.Name, Centre: rand.Text(), Addresses: g.config.Centre.addresses()}
	err = g.cache.Update(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindOfOwner, nameOfOwner)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if err == nil {
			var theirs owner
			if err := json.Unmarshal(doc.Body, &theirs); err != nil {
				return fmt.Errorf("whose cache it is: %w", err)
			}
			known := slices.ContainsFunc(mine.Addresses, func(a string) bool { return slices.Contains(theirs.Addresses, a) })
			if theirs.Name != mine.Name || !known {
				return fmt.Errorf("%w: %s of %s; give each gateway a dataDir of its own, or delete cache.db in %s", ErrForeignCache, theirs.Name, strings.Join(theirs.Addresses, ","), g.config.DataDir)
			}
			mine.Centre = theirs.Centre
			if slices.Equal(theirs.Addresses, mine.Addresses) {
				return nil
			}
		}
		body, err := json.Marshal(mine)
		if err != nil {
			return err
		}
		_, err = tx.Docs.Put(ctx, store.Doc{Kind: kindOfOwner, Name: nameOfOwner, Rev: doc.Rev, Body: body})
		return err
	})
	return mine.Centre, err
}
