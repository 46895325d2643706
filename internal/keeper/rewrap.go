package keeper

import (
	"context"
	"fmt"
	"sync/atomic"
)

// Again returns the envelope that is to stand in the place of another one, or nil if
// that one is to stay. It may be called concurrently.
type Again func(ctx context.Context, place Place, sealed []byte) ([]byte, error)

// Rewrapper wraps the data keys again that another KEK than the keeper's current one
// has wrapped.
type Rewrapper struct {
	keeper Keeper
	kek    string
	count  atomic.Int64
}

// NewRewrapper asks the keeper which KEK it wraps with now.
func NewRewrapper(ctx context.Context, k Keeper) (*Rewrapper, error) {
	kek, _, err := k.Wrap(ctx, make([]byte, dekSize), []byte("keyturn which kek"))
	if err != nil {
		return nil, fmt.Errorf("which key-encryption key wraps: %w", err)
	}
	return &Rewrapper{keeper: k, kek: kek}, nil
}

// KEK returns the ID of the KEK that wrapped when the Rewrapper was made.
func (r *Rewrapper) KEK() string { return r.kek }

// Count returns how many envelopes were made anew.
func (r *Rewrapper) Count() int { return int(r.count.Load()) }

// Again returns the envelope under the current KEK, or nil if it is under that one. It
// fails as Rewrap does.
func (r *Rewrapper) Again(ctx context.Context, place Place, sealed []byte) ([]byte, error) {
	kek, err := KEK(sealed)
	if err != nil {
		return nil, fmt.Errorf("rewrap %s %s: %w", place.Key, place.Version, err)
	}
	if kek == r.kek {
		return nil, nil
	}
	again, err := Rewrap(ctx, r.keeper, place, sealed)
	if err == nil {
		r.count.Add(1)
	}
	return again, err
}
