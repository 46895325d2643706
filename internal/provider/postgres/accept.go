package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/provider"
)

// Accept implements provider.Verifier. On the primary it makes the role and its
// membership where they are missing, and sets the password; on a replica it
// waits, at most for replicaWait, until the change has arrived and a login works.
func (s *system) Accept(ctx context.Context, call provider.Call, endpoint string, version provider.Version) error {
	n, err := s.settings.node(endpoint)
	if err != nil {
		return err
	}
	user, err := username(version)
	if err != nil {
		return err
	}
	if n.name != primaryName {
		return s.acceptReplica(ctx, call, n, user, version)
	}
	return s.acceptPrimary(ctx, call, user, version)
}

func (s *system) acceptPrimary(ctx context.Context, call provider.Call, user string, version provider.Version) error {
	if !slices.Contains(s.settings.users, user) {
		return provider.Permanent(fmt.Errorf("postgres: %v belongs to role %q, which is not among the users any more", version.Number, user), "put it back into users until the rotation is over")
	}
	verifier, err := newVerifier(version.Material.Secrets["password"])
	if err != nil {
		return provider.Permanent(fmt.Errorf("postgres: %v: %w", version.Number, err), "let Keyturn mint the password, or import one of printable ASCII")
	}
	err = s.changeOnPrimary(ctx, func(ctx context.Context, tx pgx.Tx) error {
		r, err := readRole(ctx, tx, user, s.settings.group)
		if err != nil {
			return err
		}
		if err := s.settings.checkHolder(call, user, version.Number, r.marker); err != nil {
			return err
		}
		if err := checkFence(call, user, r.marker); err != nil {
			return err
		}
		if err := s.ensureRole(ctx, tx, user, r); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "ALTER ROLE "+quoteName(user)+" LOGIN PASSWORD "+quoteText(verifier)); err != nil {
			return fmt.Errorf("set the password of role %q: %w", user, err)
		}
		m := marker{Key: call.Key, Version: version.Number, Fence: call.Fence}
		if r.marker.holds(call.Key, version.Number) && !r.marker.Refused {
			m.Since = r.marker.Since
		}
		return writeMarker(ctx, tx, user, r.words, m)
	})
	if err != nil {
		return err
	}
	return s.noteSince(ctx, call, s.settings.primary, user, version)
}

// noteSince logs in with a single user's version and notes when that was: from
// then on new sessions at n are this version's.
func (s *system) noteSince(ctx context.Context, call provider.Call, n node, user string, version provider.Version) error {
	if s.settings.strategy != singleUser {
		return nil
	}
	since, err := s.login(ctx, n, user, version)
	if err != nil {
		return fmt.Errorf("postgres: the new password of role %q: %w", user, err)
	}
	return s.changeOnPrimary(ctx, func(ctx context.Context, tx pgx.Tx) error {
		r, err := readRole(ctx, tx, user, "")
		if err != nil {
			return err
		}
		if !r.marker.holds(call.Key, version.Number) || r.marker.Refused {
			return fmt.Errorf("role %q was changed by somebody else meanwhile", user)
		}
		if _, noted := r.marker.Since[n.name]; noted {
			return nil
		}
		m := r.marker
		m.Since = maps.Clone(m.Since)
		if m.Since == nil {
			m.Since = map[string]time.Time{}
		}
		m.Since[n.name] = since
		return writeMarker(ctx, tx, user, r.words, m)
	})
}

func (s *system) acceptReplica(ctx context.Context, call provider.Call, n node, user string, version provider.Version) error {
	// The same version may have been accepted before, and refused since.
	p, err := s.position(ctx, user)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%v of role %q", version.Number, user)
	err = s.waitReplica(ctx, n, what, func(ctx context.Context, conn *pgx.Conn) (bool, error) {
		if reached, err := p.reached(ctx, conn); !reached {
			return false, err
		}
		r, err := readRole(ctx, conn, user, s.settings.group)
		if err != nil || !r.exists || !r.canLogin || r.marker.Version != 0 && !r.marker.holds(call.Key, version.Number) || r.marker.Refused {
			return false, err
		}
		// Somebody may have replaced the comment: the login decides.
		_, err = s.login(ctx, n, user, version)
		if refusesLogin(err) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return err
	}
	return s.noteSince(ctx, call, n, user, version)
}

const (
	firstPoll = 20 * time.Millisecond
	lastPoll  = 500 * time.Millisecond
)

// errNotYet is the reason of a wait that ended without any other.
var errNotYet = errors.New("not replicated")

// waitReplica polls arrived with an administrator's connection to a replica until
// it reports true. Errors of the connection are outlived, within replicaWait.
func (s *system) waitReplica(ctx context.Context, n node, what string, arrived func(context.Context, *pgx.Conn) (bool, error)) error {
	bounded, cancel := context.WithTimeout(ctx, s.settings.replicaWait)
	defer cancel()
	last := errNotYet
	why := ""
	for delay := firstPoll; ; delay = min(2*delay, lastPoll) {
		done := false
		err := s.admin(bounded, n, func(conn *pgx.Conn) error {
			for {
				var err error
				if done, err = arrived(bounded, conn); done || err != nil {
					return err
				}
				last = errNotYet
				why = replicaState(bounded, conn, why)
				if err := pause(bounded, delay); err != nil {
					return nil //nolint:nilerr // the outer loop reports it
				}
				delay = min(2*delay, lastPoll)
			}
		})
		if done && err == nil {
			return nil
		}
		if err = explain(err); provider.IsPermanent(err) || errors.Is(err, errSessionsOpen) {
			return fmt.Errorf("postgres: %s: %w", n.describe(), err)
		}
		if err != nil && bounded.Err() == nil {
			last, why = err, ""
		}
		if pause(bounded, delay) != nil {
			break
		}
	}
	if ctx.Err() != nil {
		last = errors.Join(ctx.Err(), last)
	}
	return provider.Hint(fmt.Errorf("postgres: %s: %s has not arrived in time%s: %w", n.describe(), what, why, last),
		"see to its replication, or raise replicaWait; until then nothing is taken for done there")
}

// replicaState says why a replica may lag, or keeps what was known.
func replicaState(ctx context.Context, conn *pgx.Conn, known string) string {
	var recovering, paused bool
	var behind int64
	err := conn.QueryRow(ctx, `SELECT pg_is_in_recovery(),
		CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END,
		CASE WHEN pg_is_in_recovery() THEN coalesce(pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), 0)::bigint ELSE 0 END`).Scan(&recovering, &paused, &behind)
	switch {
	case err != nil:
		return known
	case !recovering:
		return " (it is not a standby)"
	case paused:
		return fmt.Sprintf(" (its replay is paused, %d bytes wait)", behind)
	}
	return fmt.Sprintf(" (%d received bytes wait for replay)", behind)
}
