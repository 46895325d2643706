package sealed

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// Secret is one of a purpose.
type Secret struct {
	// Purpose is what its envelope is bound to. It is no name that a user gives a key.
	Purpose key.Name
	// Kind is that of its document, which is the only one.
	Kind string
	// Size is how long it is, in bytes.
	Size int
	// Called is what errors call it.
	Called string
}

// Box is where secrets are; all fields are required.
type Box struct {
	Store  store.Store
	Keeper keeper.Keeper
	// Random is cryptographically secure.
	Random io.Reader
}

// docName is the name of the document of each kind.
const docName = "1"

func (s *Secret) place() keeper.Place { return keeper.Place{Key: s.Purpose, Version: 1} }

// Open returns the secret. It fails with store.ErrNotFound when none was drawn yet, and
// else as keeper.Open does. The caller clears it.
func (b *Box) Open(ctx context.Context, s Secret) ([]byte, error) {
	envelope, err := read(ctx, b.Store, &s)
	if err == nil {
		return b.open(ctx, &s, envelope)
	}
	return nil, fmt.Errorf("%s: %w", s.Called, err)
}

// Draw returns the secret, and draws it if there is none. The caller clears it.
func (b *Box) Draw(ctx context.Context, s Secret) ([]byte, error) {
	envelope, err := read(ctx, b.Store, &s)
	if errors.Is(err, store.ErrNotFound) {
		envelope, err = b.make(ctx, &s)
	}
	if err == nil {
		return b.open(ctx, &s, envelope)
	}
	return nil, fmt.Errorf("%s: %w", s.Called, err)
}

func (b *Box) open(ctx context.Context, s *Secret, envelope []byte) ([]byte, error) {
	plaintext, err := keeper.Open(ctx, b.Keeper, s.place(), envelope)
	if err == nil && len(plaintext) != s.Size {
		clear(plaintext)
		err = keeper.ErrCorrupt
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Called, err)
	}
	return plaintext, nil
}

func read(ctx context.Context, from store.Store, s *Secret) (envelope []byte, err error) {
	err = from.View(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, s.Kind, docName)
		envelope = doc.Body
		return err
	})
	return envelope, err
}

// make stores a new secret, and returns that of another server if one was faster.
func (b *Box) make(ctx context.Context, s *Secret) ([]byte, error) {
	plaintext := make([]byte, s.Size)
	defer clear(plaintext)
	if _, err := io.ReadFull(b.Random, plaintext); err != nil {
		return nil, err
	}
	envelope, err := keeper.Seal(ctx, b.Keeper, s.place(), plaintext)
	if err != nil {
		return nil, err
	}
	err = b.Store.Update(ctx, func(tx store.Tx) error {
		_, err := tx.Docs.Put(ctx, store.Doc{Kind: s.Kind, Name: docName, Body: envelope})
		return err
	})
	if errors.Is(err, store.ErrConflict) {
		return read(ctx, b.Store, s)
	}
	return envelope, err
}

// Rewrap gives the secret's envelope, if there is one, to again, and stores what that
// returns instead.
func Rewrap(ctx context.Context, in store.Store, s Secret, again keeper.Again) error {
	var doc store.Doc
	err := in.View(ctx, func(tx store.Tx) (err error) {
		doc, err = tx.Docs.Get(ctx, s.Kind, docName)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err == nil {
		doc.Body, err = again(ctx, s.place(), doc.Body)
	}
	if err == nil && doc.Body != nil {
		err = in.Update(ctx, func(tx store.Tx) error {
			_, err := tx.Docs.Put(ctx, doc)
			return err
		})
	}
	if err != nil && !errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("%s: %w", s.Called, err)
	}
	return nil // a conflict: another server was faster
}
