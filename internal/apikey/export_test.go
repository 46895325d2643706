package apikey

import (
	"context"

	"github.com/keyturn/keyturn/internal/store"
)

// Sweep deletes what has expired, as the service does from time to time.
func (s *Service) Sweep(ctx context.Context) error {
	return store.Sweep(ctx, s.config.Store, kindEntry, s.config.Now, func(tx store.Tx, doc store.Doc) error { return s.sweepDoc(ctx, tx, doc) })
}
