package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/keyturn/keyturn/provider"
)

// Held implements provider.Lister: it reads the markers of the key's users on the
// primary and of every replica, once that has replayed what the primary has.
func (s *system) Held(ctx context.Context, call provider.Call) ([]provider.Held, error) {
	nodes := s.settings.nodes()
	p, err := s.position(ctx, s.settings.users...)
	if err != nil {
		return nil, err
	}
	found := make([][]provider.Held, len(nodes))
	group, ctx := errgroup.WithContext(ctx)
	for i, n := range nodes {
		group.Go(func() error {
			if n.name != primaryName {
				if err := s.await(ctx, n, p); err != nil {
					return err
				}
			}
			err := s.admin(ctx, n, func(conn *pgx.Conn) error {
				for _, user := range s.settings.users {
					r, err := readRole(ctx, conn, user, s.settings.group)
					if err != nil {
						return err
					}
					if r.marker.Version == 0 || r.marker.Key != call.Key {
						continue
					}
					found[i] = append(found[i], provider.Held{
						Endpoint: n.name, Version: r.marker.Version, Accepted: r.canLogin && !r.marker.Refused,
						Attributes: map[string]string{"username": user},
					})
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("postgres: %s: %w", n.describe(), explain(err))
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var all []provider.Held
	for _, list := range found {
		all = append(all, list...)
	}
	return all, nil
}
