package postgres

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/keyturn/keyturn/provider"
)

// usageSQL counts sessions by client. Our own probes are left out by their name,
// for the minute that they live at most: an application that takes the name is
// counted after that.
const usageSQL = `SELECT coalesce(host(client_addr), 'local'), coalesce(application_name, ''), backend_type IS NULL, count(*)::int ` + sessionsSQL + `
	AND NOT coalesce(application_name = $4 AND backend_start > clock_timestamp() - interval '1 minute', false)
	GROUP BY 1, 2, 3`

// Usage implements provider.Meter: it counts the sessions of the version's role
// on the primary and every replica, by pg_stat_activity. Sessions of one user
// that hold different versions are told apart by when they began.
func (s *system) Usage(ctx context.Context, call provider.Call, version provider.Version) (provider.Usage, error) {
	user, err := username(version)
	if err != nil {
		return provider.Usage{}, err
	}
	w := func(node) window { return window{all: true} }
	if s.settings.strategy == singleUser {
		var r role
		err := s.onPrimary(ctx, func(conn *pgx.Conn) (err error) {
			r, err = readRole(ctx, conn, user, s.settings.group)
			return err
		})
		if err != nil {
			return provider.Usage{}, fmt.Errorf("%w: %w", provider.ErrNoData, err)
		}
		w = func(n node) window { return s.settings.windowOf(r.marker, n, r.marker.holds(call.Key, version.Number)) }
	}
	nodes := s.settings.nodes()
	found := make([][]provider.Holder, len(nodes))
	group, ctx := errgroup.WithContext(ctx)
	for i, n := range nodes {
		group.Go(func() error {
			return s.admin(ctx, n, func(conn *pgx.Conn) (err error) {
				if found[i], err = holders(ctx, conn, n, user, w(n)); err != nil {
					err = fmt.Errorf("postgres: %s: %w", n.describe(), err)
				}
				return err
			})
		})
	}
	if err := group.Wait(); err != nil {
		return provider.Usage{}, fmt.Errorf("%w: %w", provider.ErrNoData, err)
	}
	return summarise(slices.Concat(found...)), nil
}

func holders(ctx context.Context, conn *pgx.Conn, n node, user string, w window) ([]provider.Holder, error) {
	rows, err := conn.Query(ctx, usageSQL, user, bound(w.from), bound(w.before), probeApplication)
	if err != nil {
		return nil, fmt.Errorf("read pg_stat_activity: %w", err)
	}
	defer rows.Close()
	var found []provider.Holder
	for rows.Next() {
		h := provider.Holder{Endpoint: n.name}
		var hidden bool
		if err := rows.Scan(&h.Address, &h.Application, &hidden, &h.Sessions); err != nil {
			return nil, fmt.Errorf("read pg_stat_activity: %w", err)
		}
		if hidden {
			return nil, provider.Hint(errNoRights, "run GRANT pg_read_all_stats TO the administrator")
		}
		found = append(found, h)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read pg_stat_activity: %w", err)
	}
	return found, nil
}

func summarise(holders []provider.Holder) provider.Usage {
	var u provider.Usage
	for _, h := range holders {
		u.Sessions += h.Sessions
	}
	slices.SortFunc(holders, func(a, b provider.Holder) int {
		return cmp.Or(cmp.Compare(b.Sessions, a.Sessions), cmp.Compare(a.Endpoint, b.Endpoint),
			cmp.Compare(a.Address, b.Address), cmp.Compare(a.Application, b.Application))
	})
	u.Holders = holders[:min(len(holders), provider.MaxHolders)]
	return u
}
