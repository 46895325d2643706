package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/provider"
)

// Refuse implements provider.Verifier. Where the role holds the version, it
// loses LOGIN and the password; then the version's sessions are ended. Where the
// role holds another version or a password that is not this version's, the role
// is left alone. On a replica it waits, at most for replicaWait, until the
// primary's change has arrived, and ends the sessions there.
func (s *system) Refuse(ctx context.Context, call provider.Call, endpoint string, version provider.Version) error {
	n, err := s.settings.node(endpoint)
	if err != nil {
		return err
	}
	user, err := username(version)
	if err != nil {
		return err
	}
	if n.name != primaryName {
		return s.refuseReplica(ctx, call, n, user, version)
	}
	return s.refusePrimary(ctx, call, user, version)
}

func (s *system) refusePrimary(ctx context.Context, call provider.Call, user string, version provider.Version) error {
	return s.onPrimary(ctx, func(conn *pgx.Conn) error {
		r, err := readRole(ctx, conn, user, s.settings.group)
		if err != nil {
			return err
		}
		held, err := s.held(ctx, call, user, version, r)
		if err != nil {
			return err
		}
		if held {
			if r, err = s.lock(ctx, conn, call, user, version, r); err != nil {
				return err
			}
		}
		return s.endSessions(ctx, conn, user, s.settings.windowAfter(r, s.settings.primary))
	})
}

// lock takes LOGIN and the password from a role that is still as it was read.
func (s *system) lock(ctx context.Context, conn *pgx.Conn, call provider.Call, user string, version provider.Version, before role) (after role, err error) {
	err = s.change(ctx, conn, func(ctx context.Context, tx pgx.Tx) error {
		var err error
		if after, err = readRole(ctx, tx, user, s.settings.group); err != nil || !after.exists {
			return err
		}
		if after.marker.Version != before.marker.Version || after.marker.Key != before.marker.Key {
			return fmt.Errorf("role %q was given another version meanwhile", user)
		}
		if err := checkFence(call, user, after.marker); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "ALTER ROLE "+quoteName(user)+" NOLOGIN PASSWORD NULL"); err != nil {
			return fmt.Errorf("take LOGIN and the password from role %q: %w", user, err)
		}
		after.canLogin = false
		m := marker{Key: call.Key, Version: version.Number, Fence: call.Fence, Refused: true}
		return writeMarker(ctx, tx, user, after.words, m)
	})
	return after, err
}

// readPrimary returns the role as the primary has it, and a position at which a
// replica has it so too.
func (s *system) readPrimary(ctx context.Context, conn *pgx.Conn, user string) (r role, p position, err error) {
	if r, err = readRole(ctx, conn, user, s.settings.group); err == nil {
		p, err = readPosition(ctx, conn, user)
	}
	return r, p, err
}

// held reports whether the version is what the role would let in: by the marker,
// and where that says otherwise or is gone, by trying.
func (s *system) held(ctx context.Context, call provider.Call, user string, version provider.Version, r role) (bool, error) {
	switch {
	case !r.exists:
		return false, nil
	case r.marker.holds(call.Key, version.Number):
		// Even without LOGIN: whoever gives that back must not revive the password.
		return true, nil
	case !r.canLogin:
		return false, nil
	}
	verdict, err := s.probe(ctx, s.settings.primary, user, version)
	return verdict == provider.Accepted, err
}

// window says which sessions of a role are meant. The zero value means none.
type window struct {
	all bool
	// before and from bound the start of a session; zero means no bound. Without
	// all, one of them is set.
	before, from time.Time
}

// windowAfter says which sessions must end once a version is refused: all of a
// role that lets nobody in; of a single user those that began before its present
// version was let in at n; of an alternating user that holds another version none.
func (s settings) windowAfter(r role, n node) window {
	switch {
	case !r.canLogin:
		return window{all: true}
	case s.strategy == singleUser:
		return s.windowOf(r.marker, n, false)
	}
	return window{}
}

// windowOf returns the sessions at n of the version that a single user holds, or
// those of all versions before it. Where it was not noted when that version came,
// nothing is told apart.
func (s settings) windowOf(m marker, n node, present bool) window {
	since, noted := m.Since[n.name]
	switch {
	case !noted:
		return window{all: true}
	case present:
		return window{from: since}
	}
	return window{before: since}
}

func (s *system) refuseReplica(ctx context.Context, call provider.Call, n node, user string, version provider.Version) error {
	primary, p, err := s.awaitPrimary(ctx, call, user, version)
	if err != nil {
		return err
	}
	if primary.canLogin && primary.marker.holds(call.Key, version.Number) {
		return provider.Hint(fmt.Errorf("postgres: %s follows the primary, where role %q still holds %v", n.describe(), user, version.Number), "it is refused there first; this is repeated by itself")
	}
	what := fmt.Sprintf("the refusal of %v of role %q", version.Number, user)
	return s.waitReplica(ctx, n, what, func(ctx context.Context, conn *pgx.Conn) (bool, error) {
		if reached, err := p.reached(ctx, conn); !reached {
			return false, err
		}
		r, err := readRole(ctx, conn, user, s.settings.group)
		if err != nil {
			return false, err
		}
		if r.exists && r.canLogin {
			if r.marker.holds(call.Key, version.Number) {
				return false, nil
			}
			if _, err := s.login(ctx, n, user, version); !refusesLogin(err) {
				return false, err
			}
		}
		return true, s.endSessions(ctx, conn, user, s.settings.windowAfter(primary, n))
	})
}

// How long a replica's refusal waits for the primary's, which is usually under
// way at the same time.
const (
	followWait = 2 * time.Second
	followPoll = 25 * time.Millisecond
)

// awaitPrimary returns the role as the primary has it, once it refuses the version
// there or followWait is over. It asks on one connection: each log-in costs both ends
// as much as a refusal.
func (s *system) awaitPrimary(ctx context.Context, call provider.Call, user string, version provider.Version) (r role, p position, err error) {
	err = s.onPrimary(ctx, func(conn *pgx.Conn) error {
		over := time.NewTimer(followWait)
		defer over.Stop()
		for {
			var err error
			if r, p, err = s.readPrimary(ctx, conn, user); err != nil || !r.canLogin || !r.marker.holds(call.Key, version.Number) {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-over.C:
				return nil
			case <-time.After(followPoll):
			}
		}
	})
	return r, p, err
}

const (
	terminateSQL = `SELECT pg_terminate_backend(pid) ` + sessionsSQL
	countSQL     = `SELECT true ` + sessionsSQL

	// sessionsSQL selects the sessions of role $1 that began from $2 and before $3,
	// parallel workers apart, which end with their leader.
	sessionsSQL = `FROM pg_stat_activity WHERE usename = $1 AND pid <> pg_backend_pid() AND leader_pid IS NULL
		AND ($2::timestamptz IS NULL OR backend_start >= $2) AND ($3::timestamptz IS NULL OR backend_start < $3)`

	// quietPasses is how many looks in a row must find no session: one that passed
	// the check of LOGIN just before may show up a moment later.
	quietPasses  = 2
	quietBetween = 50 * time.Millisecond
)

// endSessions ends the sessions in w of the server that conn leads to and returns
// when they are gone.
func (s *system) endSessions(ctx context.Context, conn *pgx.Conn, user string, w window) error {
	if w == (window{}) {
		return nil
	}
	sql := terminateSQL
	if !s.settings.terminate {
		sql = countSQL
	}
	for quiet := 0; ; {
		found, err := countRows(ctx, conn, sql, user, bound(w.from), bound(w.before))
		switch {
		case err != nil:
			return fmt.Errorf("end the sessions of role %q: %w", user, err)
		case found > 0 && !s.settings.terminate:
			return provider.Hint(fmt.Errorf("role %q: %w: %d", user, errSessionsOpen, found), "terminate: false leaves it to the applications to close them")
		case found > 0:
			quiet = 0
		default:
			quiet++
		}
		if quiet == quietPasses {
			return nil
		}
		if err := pause(ctx, quietBetween); err != nil {
			return fmt.Errorf("wait for the sessions of role %q to end, %d are left: %w", user, found, err)
		}
	}
}

func countRows(ctx context.Context, conn *pgx.Conn, sql string, args ...any) (int, error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		n++
	}
	return n, rows.Err()
}

func bound(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// errSessionsOpen: sessions are left and this key's config says not to end them.
var errSessionsOpen = errors.New("sessions are still open")

// errNoRights: the administrator may not see other roles' sessions in full.
var errNoRights = errors.New("the administrator cannot see the sessions of other roles")
