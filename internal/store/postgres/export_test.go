package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Die stops showing life, as a process that was killed does.
func (s *Store) Die() {
	s.stop()
	s.background.Wait()
}

// ConnectAsStore returns a connection with the settings of those that write.
func ConnectAsStore(ctx context.Context, url string) (*pgx.Conn, error) {
	settings, err := newSettings(Config{URL: url}, "test")
	if err != nil {
		return nil, err
	}
	return settings.connect(ctx, settings.writing())
}
