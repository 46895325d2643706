package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

// Clock returns the time of the database. Nodes that go by it agree on the time,
// however far their own clocks are apart.
func (s *Store) Clock(ctx context.Context) (now time.Time, err error) {
	if err := s.enter(); err != nil {
		return now, err
	}
	defer s.leave()
	if err := s.pool.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&now); err != nil {
		return now, fmt.Errorf("postgres: read the clock: %w", err)
	}
	return now.UTC(), nil
}

var _ store.Clock = (*Store)(nil)
