package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/provider"
)

// Probe implements provider.Verifier: it logs in to the endpoint, in the
// applications' database, and asks who it is. A replica is asked once it has
// replayed what the primary has: until then it would answer for an older state.
func (s *system) Probe(ctx context.Context, _ provider.Call, endpoint string, version provider.Version) (provider.Verdict, error) {
	n, err := s.settings.node(endpoint)
	if err != nil {
		return 0, err
	}
	user, err := username(version)
	if err != nil {
		return 0, err
	}
	if n.name != primaryName {
		p, err := s.position(ctx, user)
		if err == nil {
			err = s.await(ctx, n, p)
		}
		if err != nil {
			return 0, err
		}
	}
	return s.probe(ctx, n, user, version)
}

func (s *system) probe(ctx context.Context, n node, user string, version provider.Version) (provider.Verdict, error) {
	_, err := s.login(ctx, n, user, version)
	switch {
	case err == nil:
		return provider.Accepted, nil
	case refusesLogin(err):
		return provider.Refused, nil
	}
	return 0, fmt.Errorf("postgres: try %v: %w", version.Number, err)
}

// login opens and ends a session of the version, and returns the server's time
// in it.
func (s *system) login(ctx context.Context, n node, user string, version provider.Version) (time.Time, error) {
	release, err := s.take(ctx, n, probeApplication)
	if err != nil {
		return time.Time{}, err
	}
	defer release()
	conn, err := dial(ctx, n, s.settings.database, credential{user: user, password: version.Material.Secrets["password"]}, probeApplication)
	if err != nil {
		return time.Time{}, err
	}
	defer hangUp(ctx, conn)
	var self string
	var now time.Time
	if err := conn.QueryRow(ctx, "SELECT session_user::text, clock_timestamp()").Scan(&self, &now); err != nil {
		return time.Time{}, fmt.Errorf("query %s as %q: %w", n.describe(), user, err)
	}
	if self != user {
		return time.Time{}, fmt.Errorf("%s let %q in as %q; something between maps the names", n.describe(), user, self)
	}
	return now, nil
}
