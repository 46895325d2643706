// Package keeper wraps and unwraps data keys under a key-encryption key (KEK),
// and seals the material of key versions in envelopes.
//
// Every version is sealed with a data key (DEK) of its own; the DEK is wrapped
// by the keeper's KEK. The sealed form is bound to its key name and version, so
// that it opens in no other place.
package keeper

import (
	"context"
	"errors"
)

var (
	// ErrUnknownKEK: the envelope names a KEK that the keeper does not have.
	ErrUnknownKEK = errors.New("unknown key-encryption key")
	// ErrCorrupt: the envelope or the wrapped key was altered, or belongs elsewhere.
	ErrCorrupt = errors.New("sealed data does not authenticate")
)

// Keeper holds the KEK. Both methods may be called concurrently.
type Keeper interface {
	// Wrap encrypts dek under the current KEK and returns that KEK's ID.
	// aad must be given again to Unwrap.
	Wrap(ctx context.Context, dek, aad []byte) (kek string, wrapped []byte, err error)

	// Unwrap fails with ErrUnknownKEK or ErrCorrupt, which repeating does not mend;
	// any other error is an outage.
	Unwrap(ctx context.Context, kek string, wrapped, aad []byte) (dek []byte, err error)
}
