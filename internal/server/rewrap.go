package server

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/broker"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/keeper/file"
	"github.com/keyturn/keyturn/internal/notices"
	"github.com/keyturn/keyturn/internal/sealed"
	"github.com/keyturn/keyturn/internal/store"
)

const (
	// rewrapLook is how often it is looked whether another KEK wraps now.
	rewrapLook = 2 * time.Second
	// rewrapAgain is how often all is looked through again while the file holds several:
	// another server may have wrapped by the old one until it had the new file.
	rewrapAgain = time.Hour
	// rewrapRetry passes after a failure.
	rewrapRetry = time.Minute
	// rewrapPause passes between batches, so that others are served first.
	rewrapPause = 50 * time.Millisecond
)

// sealedSecrets are those that all servers on a store share.
func sealedSecrets() []sealed.Secret {
	return []sealed.Secret{engine.LeakPepper(), apikey.Pepper(), broker.Nonces()}
}

// rewrapStore gives every envelope in a store to again, and stores what that returns.
func rewrapStore(ctx context.Context, in store.Store, again keeper.Again, pause time.Duration) error {
	var errs []error
	for _, s := range sealedSecrets() {
		errs = append(errs, sealed.Rewrap(ctx, in, s, again))
	}
	return errors.Join(append(errs, notices.RewrapSecrets(ctx, in, again), engine.RewrapMaterials(ctx, in, again, pause))...)
}

// rewrap brings what is sealed under the primary KEK whenever that has changed, until
// ctx ends.
func (s *Server) rewrap(ctx context.Context, keys *file.Keeper) {
	ticker := time.NewTicker(rewrapLook)
	defer ticker.Stop()
	var done string    // the KEK that all is under
	var next time.Time // when all is looked through again
	for failing := false; ; {
		primary, several, now := keys.Primary(), len(keys.KEKs()) > 1, s.clock.Now()
		switch {
		case !several:
			done = primary
		case !now.Before(next), primary != done && !failing:
			kek, err := s.rewrapAll(ctx, keys)
			if err == nil {
				done, next = kek, now.Add(rewrapAgain)
			} else {
				next = now.Add(rewrapRetry)
			}
			if err != nil && ctx.Err() == nil && !failing {
				s.log.ErrorContext(ctx, "not everything could be brought under the primary key-encryption key; trying again", "kek", primary, "error", err)
			}
			failing = err != nil
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// rewrapAll returns the KEK that everything in the store is under now.
func (s *Server) rewrapAll(ctx context.Context, keys *file.Keeper) (kek string, err error) {
	again, err := keeper.NewRewrapper(ctx, keys)
	if err != nil {
		return "", err
	}
	err = rewrapStore(ctx, s.store, again.Again, rewrapPause)
	if err == nil {
		err = s.claimKeys(ctx, keys)
	}
	if again.Count() == 0 {
		return again.KEK(), err
	}
	if err == nil {
		s.log.InfoContext(ctx, "everything is under the primary key-encryption key", "kek", again.KEK(), "rewrapped", again.Count())
	}
	return again.KEK(), errors.Join(err, s.engine.Record(ctx, engine.Server(), audit.Entry{
		Action: "kek.rewrap", Target: again.KEK(), Outcome: audit.OutcomeOK, Detail: map[string]string{"envelopes": strconv.Itoa(again.Count())},
	}))
}
