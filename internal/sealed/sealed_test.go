package sealed_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/sealed"
	"github.com/keyturn/keyturn/internal/sim/memstore"
	"github.com/keyturn/keyturn/internal/store"
)

var pepper = sealed.Secret{Purpose: "keyturn/test/pepper", Kind: "test-pepper", Size: 32, Called: "the pepper of tests"}

// ring is a keeper whose KEKs are names: what is wrapped says by which.
type ring struct {
	mu      sync.Mutex
	primary string
	removed string
}

func (r *ring) Wrap(_ context.Context, dek, _ []byte) (kek string, wrapped []byte, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.primary, append([]byte(r.primary), dek...), nil
}

func (r *ring) Unwrap(_ context.Context, kek string, wrapped, _ []byte) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	dek, ok := bytes.CutPrefix(wrapped, []byte(kek))
	if !ok {
		return nil, keeper.ErrCorrupt
	}
	if kek == r.removed {
		return nil, keeper.ErrUnknownKEK
	}
	return bytes.Clone(dek), nil
}

func newBox() (*sealed.Box, *ring) {
	keys := &ring{primary: "first"}
	return &sealed.Box{Store: memstore.New(), Keeper: keys, Random: rand.Reader}, keys
}

// stored returns the document of a secret.
func stored(t *testing.T, s store.Store, of sealed.Secret) store.Doc {
	t.Helper()
	var doc store.Doc
	err := s.View(t.Context(), func(tx store.Tx) (err error) {
		doc, err = tx.Docs.Get(t.Context(), of.Kind, "1")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// TestDraw: many servers that come at once get one secret, of which the store shows
// nothing, and Open none before.
func TestDraw(t *testing.T) {
	b, _ := newBox()
	if _, err := b.Open(t.Context(), pepper); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("before it was drawn: %v", err)
	}
	var drawn [16][]byte
	var running sync.WaitGroup
	for i := range drawn {
		running.Go(func() {
			var err error
			if drawn[i], err = b.Draw(t.Context(), pepper); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	for _, one := range drawn {
		if len(one) != pepper.Size || !bytes.Equal(one, drawn[0]) || bytes.Equal(one, make([]byte, pepper.Size)) {
			t.Errorf("drawn %x and %x", one, drawn[0])
		}
	}
	if opened, err := b.Open(t.Context(), pepper); err != nil || !bytes.Equal(opened, drawn[0]) {
		t.Errorf("opened %x, %v", opened, err)
	}
	if bytes.Contains(stored(t, b.Store, pepper).Body, drawn[0]) {
		t.Error("it is stored in plain text")
	}
}

// TestBound: an envelope opens for its purpose only, and one of another length, or that
// was altered, for none.
func TestBound(t *testing.T) {
	b, _ := newBox()
	if _, err := b.Draw(t.Context(), pepper); err != nil {
		t.Fatal(err)
	}
	other, shorter := pepper, pepper
	other.Purpose, shorter.Size = "keyturn/test/nonces", 16
	for what, s := range map[string]sealed.Secret{"another purpose": other, "another size": shorter} {
		opened, err := b.Open(t.Context(), s)
		drawn, drawErr := b.Draw(t.Context(), s)
		for _, err := range []error{err, drawErr} {
			if !errors.Is(err, keeper.ErrCorrupt) || opened != nil || drawn != nil || !strings.HasPrefix(err.Error(), s.Called+": ") {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	b.Random = strings.NewReader("short")
	other.Kind = "another"
	if drawn, err := b.Draw(t.Context(), other); err == nil || drawn != nil {
		t.Errorf("drawn %x from too little", drawn)
	}
}

// TestRewrap: after the KEK was rotated and the old one removed, the secret is there
// still, by its new envelope alone.
func TestRewrap(t *testing.T) {
	b, keys := newBox()
	if err := sealed.Rewrap(t.Context(), b.Store, pepper, nil); err != nil {
		t.Errorf("nothing was drawn: %v", err)
	}
	drawn, err := b.Draw(t.Context(), pepper)
	if err != nil {
		t.Fatal(err)
	}
	before := stored(t, b.Store, pepper)
	keys.primary = "second"
	for range 2 {
		again, err := keeper.NewRewrapper(t.Context(), keys)
		if err != nil {
			t.Fatal(err)
		}
		if err := sealed.Rewrap(t.Context(), b.Store, pepper, again.Again); err != nil {
			t.Fatal(err)
		}
	}
	if after := stored(t, b.Store, pepper); bytes.Equal(after.Body, before.Body) {
		t.Error("the envelope is that of before")
	}
	keys.removed = "first"
	if opened, err := b.Open(t.Context(), pepper); err != nil || !bytes.Equal(opened, drawn) {
		t.Errorf("opened %x, drawn %x, %v", opened, drawn, err)
	}
	// Another server was faster: its envelope stays.
	theirs := stored(t, b.Store, pepper)
	err = sealed.Rewrap(t.Context(), b.Store, pepper, func(ctx context.Context, _ keeper.Place, envelope []byte) ([]byte, error) {
		return []byte("mine"), b.Store.Update(ctx, func(tx store.Tx) error {
			_, err := tx.Docs.Put(ctx, theirs)
			return err
		})
	})
	if err != nil || !bytes.Equal(stored(t, b.Store, pepper).Body, theirs.Body) {
		t.Errorf("the other's envelope is gone, %v", err)
	}
	down := errors.New("the keeper is away")
	err = sealed.Rewrap(t.Context(), b.Store, pepper, func(context.Context, keeper.Place, []byte) ([]byte, error) { return nil, down })
	if !errors.Is(err, down) {
		t.Error(err)
	}
}
