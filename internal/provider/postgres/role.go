package postgres

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// changeTries bounds the attempts at a transaction that lost a race.
const changeTries = 4

// role is what a server knows of a login role.
type role struct {
	exists   bool
	canLogin bool
	super    bool
	words    string // its comment without the marker
	marker   marker
	inGroup  bool   // a direct member of the group
	becomes  string // its "role" setting for every database
}

const readRoleSQL = `
SELECT r.rolcanlogin, r.rolsuper, coalesce(shobj_description(r.oid, 'pg_authid'), ''),
       EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid AND g.rolname = $2),
       coalesce((SELECT max(substr(c, 6)) FROM pg_db_role_setting s, unnest(s.setconfig) c
                 WHERE s.setrole = r.oid AND s.setdatabase = 0 AND c LIKE 'role=%'), '')
FROM pg_roles r WHERE r.rolname = $1`

// queryer is a connection or a transaction.
type queryer interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func readRole(ctx context.Context, q queryer, name, group string) (role, error) {
	r := role{exists: true}
	var comment string
	err := q.QueryRow(ctx, readRoleSQL, name, group).Scan(&r.canLogin, &r.super, &comment, &r.inGroup, &r.becomes)
	if errors.Is(err, pgx.ErrNoRows) {
		return role{}, nil
	}
	if err != nil {
		return role{}, fmt.Errorf("read role %q: %w", name, err)
	}
	r.words, r.marker = splitComment(comment)
	return r, nil
}

// lockSQL also sees to it that what is confirmed is on disk: otherwise a crash of the
// primary could take back a version that applications were told to use. A stronger
// setting is left alone.
const lockSQL = `SELECT pg_advisory_xact_lock($1), CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', true) END`

// change runs fn in one transaction on the primary, alone among the changes to
// the roles of this owner. It is repeated when it lost a race.
func (s *system) change(ctx context.Context, conn *pgx.Conn, fn func(context.Context, pgx.Tx) error) error {
	for try := 1; ; try++ {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, lockSQL, s.lockID()); err != nil {
				return fmt.Errorf("wait for other changes to %q: %w", s.settings.owner(), err)
			}
			return fn(ctx, tx)
		})
		if err == nil || !lostRace(err) || try == changeTries {
			return err
		}
		if pauseErr := pause(ctx, time.Duration(try)*50*time.Millisecond); pauseErr != nil {
			return errors.Join(pauseErr, err)
		}
	}
}

// onPrimary runs fn with an administrator's connection to the primary and says
// what to do about its errors.
func (s *system) onPrimary(ctx context.Context, fn func(*pgx.Conn) error) error {
	var failed error // by fn, not by connecting
	err := s.admin(ctx, s.settings.primary, func(conn *pgx.Conn) error {
		failed = fn(conn)
		return failed
	})
	if failed != nil {
		return fmt.Errorf("postgres: %s: %w", s.settings.primary.describe(), explain(failed))
	}
	return err
}

// changeOnPrimary is change with a connection of its own.
func (s *system) changeOnPrimary(ctx context.Context, fn func(context.Context, pgx.Tx) error) error {
	return s.onPrimary(ctx, func(conn *pgx.Conn) error { return s.change(ctx, conn, fn) })
}

// lostRace recognises what concurrent changes of the role catalogue do to each
// other where the advisory lock does not reach: other databases, other tools.
func lostRace(err error) bool {
	switch sqlState(err) {
	case codeSerialization, codeDeadlock, codeDuplicateObject, codeUniqueViolation:
		return true
	case codeInternal:
		return strings.Contains(err.Error(), "tuple concurrently")
	}
	return false
}

func (s *system) lockID() int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte("keyturn roles of " + s.settings.owner())) // never fails
	return int64(h.Sum64())
}

// checkFence turns away a call whose lease was lost to a later one.
func checkFence(call provider.Call, user string, m marker) error {
	if call.Fence == 0 || m.Key != call.Key || call.Fence >= m.Fence {
		return nil
	}
	return provider.Hint(
		fmt.Errorf("role %q was changed under fencing token %d, this call has %d", user, m.Fence, call.Fence),
		"a later call overtook this one, which is repeated by itself; if the server's database was restored from a backup, see \"After a restore\" in docs/reference/provider-postgres.md")
}

// checkHolder refuses to put version into a role that holds something newer, or
// something of another key.
func (s settings) checkHolder(call provider.Call, user string, version key.Version, m marker) error {
	const mend = "if that is no longer true, run COMMENT ON ROLE %s IS NULL on the primary and repeat"
	switch {
	case m.Version == 0:
		return nil
	case m.Key != call.Key:
		return provider.Permanent(fmt.Errorf("role %q belongs to key %q", user, m.Key), fmt.Sprintf("give every key roles of its own; "+mend, quoteName(user)))
	case s.strategy == alternatingUsers && m.Version > version:
		return provider.Permanent(fmt.Errorf("role %q holds %v, which is newer than %v", user, m.Version, version),
			fmt.Sprintf("the server's database may have been restored from an older backup; "+mend, quoteName(user)))
	}
	return nil
}

// writeMarker replaces the marker in the role's comment.
func writeMarker(ctx context.Context, tx pgx.Tx, user, words string, m marker) error {
	_, err := tx.Exec(ctx, "COMMENT ON ROLE "+quoteName(user)+" IS "+quoteText(joinComment(words, m)))
	if err != nil {
		return fmt.Errorf("note the version in the comment of role %q: %w", user, err)
	}
	return nil
}

// ensureRole makes the role a login of its owner: it creates what is missing,
// and takes nothing away.
func (s *system) ensureRole(ctx context.Context, tx pgx.Tx, user string, r role) error {
	if !r.exists {
		if _, err := tx.Exec(ctx, "CREATE ROLE "+quoteName(user)); err != nil {
			return fmt.Errorf("create role %q: %w", user, err)
		}
	}
	group := s.settings.group
	if s.settings.strategy == alternatingUsers {
		if err := ensureExists(ctx, tx, group); err != nil {
			return err
		}
		if !r.inGroup {
			if err := grant(ctx, tx, group, user); err != nil {
				return err
			}
		}
		if r.becomes != group {
			if err := becomeAtLogin(ctx, tx, user, group); err != nil {
				return err
			}
		}
	}
	for _, parent := range s.settings.memberOf {
		var member bool
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles u ON u.oid = m.member
			WHERE g.rolname = $1 AND u.rolname = $2)`, parent, s.settings.owner()).Scan(&member)
		if err != nil {
			return fmt.Errorf("read the members of %q: %w", parent, err)
		}
		if !member {
			if err := grant(ctx, tx, parent, s.settings.owner()); err != nil {
				return err
			}
		}
	}
	return nil
}

func ensureExists(ctx context.Context, tx pgx.Tx, group string) error {
	var exists bool
	if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", group).Scan(&exists); err != nil {
		return fmt.Errorf("read role %q: %w", group, err)
	}
	if exists {
		return nil
	}
	if _, err := tx.Exec(ctx, "CREATE ROLE "+quoteName(group)+" NOLOGIN"); err != nil {
		return fmt.Errorf("create group role %q: %w", group, err)
	}
	return nil
}

func grant(ctx context.Context, tx pgx.Tx, group, member string) error {
	if _, err := tx.Exec(ctx, "GRANT "+quoteName(group)+" TO "+quoteName(member)); err != nil {
		return fmt.Errorf("make %q a member of %q: %w", member, group, err)
	}
	return nil
}

// becomeAtLogin makes user become group in every new session. PostgreSQL checks
// the setting against the rights of the one who makes it, so an administrator
// that is no member of the group is one for the length of this transaction.
func becomeAtLogin(ctx context.Context, tx pgx.Tx, user, group string) error {
	var version int
	if err := tx.QueryRow(ctx, "SELECT current_setting('server_version_num')::int").Scan(&version); err != nil {
		return fmt.Errorf("read the server's version: %w", err)
	}
	// From version 16 on the creator of a role is a member that may not SET ROLE.
	privilege, options := "MEMBER", ""
	if version >= 160000 {
		privilege, options = "SET", " WITH INHERIT FALSE, SET TRUE"
	}
	var self string
	var allowed bool
	err := tx.QueryRow(ctx, "SELECT session_user::text, pg_has_role(session_user, $1::name, $2)", group, privilege).Scan(&self, &allowed)
	if err != nil {
		return fmt.Errorf("read the administrator's membership in %q: %w", group, err)
	}
	statements := []string{"ALTER ROLE " + quoteName(user) + " SET role = " + quoteText(group)}
	if !allowed {
		statements = []string{
			"GRANT " + quoteName(group) + " TO " + quoteName(self) + options,
			statements[0],
			"REVOKE " + quoteName(group) + " FROM " + quoteName(self),
		}
	}
	for _, statement := range statements {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return fmt.Errorf("make %q become %q at login: %w", user, group, err)
		}
	}
	return nil
}

// quoteName quotes an identifier, quoteText a literal (standard_conforming_strings
// is on in every administrator's session).
func quoteName(name string) string { return pgx.Identifier{name}.Sanitize() }

func quoteText(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
