package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/provider"
)

// Fence implements provider.Fencer: it raises the fence in the markers of the key's
// users on the primary, which replicas follow. A change that is under way holds the
// lock until it has ended, and one that comes later reads what is noted here. A user
// without a marker of the key is left alone: nothing is known to have been done to it.
func (s *system) Fence(ctx context.Context, call provider.Call, endpoint string) error {
	n, err := s.settings.node(endpoint)
	if err != nil || n.name != primaryName {
		return err
	}
	return s.changeOnPrimary(ctx, func(ctx context.Context, tx pgx.Tx) error {
		for _, user := range s.settings.users {
			r, err := readRole(ctx, tx, user, s.settings.group)
			if err != nil {
				return err
			}
			if !r.exists || r.marker.Version == 0 || r.marker.Key != call.Key || r.marker.Fence >= call.Fence {
				continue
			}
			r.marker.Fence = call.Fence
			if err := writeMarker(ctx, tx, user, r.words, r.marker); err != nil {
				return err
			}
		}
		return nil
	})
}
