package storetest

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/keyturn/keyturn/internal/store"
)

// ErrCut: a Line is cut.
var ErrCut = errors.New("the store cannot be reached")

// Line is a node's way to a store. While Cut is set everything but waking fails.
type Line struct {
	store.Store

	Cut atomic.Bool
}

// Update implements store.Store.
func (l *Line) Update(ctx context.Context, fn func(store.Tx) error) error {
	if l.Cut.Load() {
		return ErrCut
	}
	return l.Store.Update(ctx, fn)
}

// View implements store.Store.
func (l *Line) View(ctx context.Context, fn func(store.Tx) error) error {
	if l.Cut.Load() {
		return ErrCut
	}
	return l.Store.View(ctx, fn)
}
