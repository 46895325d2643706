package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/provider"
)

// position is how far the primary had come when it was asked. What a replica says
// counts once it has come as far: until then it tells of an older state.
type position struct {
	lsn string
	// started tells one run of a server from every other.
	started time.Time
	// roles is what the primary knew of the roles with these names.
	names []string
	roles string
}

const (
	// positionSQL asks for the write position: what Keyturn changed is on disk when
	// the change is confirmed (see lockSQL), and so is not beyond it.
	positionSQL = `SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_lsn()::text END, pg_postmaster_start_time(), ` + rolesSQL

	// rolesSQL is what everybody may read of roles. Their markers change with whatever
	// Keyturn does to them.
	rolesSQL = `coalesce((SELECT string_agg(concat_ws(' ', rolname, rolcanlogin, shobj_description(oid, 'pg_authid')), E'\n' ORDER BY rolname)
		FROM pg_roles WHERE rolname = ANY($1)), '')`
)

// position asks the primary; it matters to what is asked about these roles.
func (s *system) position(ctx context.Context, names ...string) (p position, err error) {
	err = s.onPrimary(ctx, func(conn *pgx.Conn) error {
		p, err = readPosition(ctx, conn, names...)
		return err
	})
	return p, err
}

func readPosition(ctx context.Context, conn *pgx.Conn, names ...string) (position, error) {
	p := position{names: names}
	var lsn *string
	if err := conn.QueryRow(ctx, positionSQL, names).Scan(&lsn, &p.started, &p.roles); err != nil {
		return position{}, fmt.Errorf("read the position of its log: %w", err)
	}
	if lsn == nil {
		return position{}, provider.Hint(errors.New("it is a standby"), "point admin at the primary, or at a name that follows it")
	}
	p.lsn = *lsn
	return p, nil
}

// reached reports whether the replica that conn leads to has replayed the log up to
// p. One that cannot tell, because it shares the primary's storage, must know the
// same of the roles. A server that is no standby has reached p only if it is the
// primary itself.
func (p position) reached(ctx context.Context, conn *pgx.Conn) (bool, error) {
	var recovering bool
	var started time.Time
	var roles string
	err := conn.QueryRow(ctx, `SELECT pg_is_in_recovery(), pg_postmaster_start_time(), `+rolesSQL, p.names).Scan(&recovering, &started, &roles)
	if err != nil {
		return false, fmt.Errorf("read the state of replay: %w", err)
	}
	if !recovering {
		if !started.Equal(p.started) {
			return false, errors.New("it is not a standby, so changes of roles will not arrive there")
		}
		return true, nil
	}
	var reached *bool
	err = conn.QueryRow(ctx, "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", p.lsn).Scan(&reached)
	switch code := sqlState(err); {
	case code == codeUnsupported || code == codeInsufficient || err == nil && reached == nil:
		return roles == p.roles, nil
	case err != nil:
		return false, fmt.Errorf("read the state of replay: %w", err)
	}
	return *reached, nil
}

// await waits, at most for replicaWait, until a replica has reached p.
func (s *system) await(ctx context.Context, n node, p position) error {
	return s.waitReplica(ctx, n, "what the primary had when it was asked", p.reached)
}
