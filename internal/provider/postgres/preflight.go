package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/provider"
)

// oldestVersion is the first server_version_num that is supported.
const oldestVersion = 140000

// Preflight implements provider.Preflighter. It checks that the administrator
// reaches the primary and every replica and has the rights that a rotation
// needs, and looks for drift.
//
// The codes of its findings are attributes-drifted, expiry-set, grants-drifted,
// group-empty, membership-drifted, ownership-drifted, replay-paused,
// role-setting-drifted, settings-drifted, tls-unverified and user-unlisted.
func (s *system) Preflight(ctx context.Context, call provider.Call, live []provider.Version) ([]provider.Finding, error) {
	findings := s.settings.unlisted(live)
	var errs []error
	for _, n := range s.settings.nodes() {
		findings = append(findings, n.unverifiedTLS()...)
		err := s.admin(ctx, n, func(conn *pgx.Conn) error {
			more, err := s.inspect(ctx, call, n, conn)
			findings = append(findings, more...)
			return err
		})
		if err != nil {
			errs = append(errs, err)
		}
	}
	return findings, errors.Join(errs...)
}

func (s *system) inspect(ctx context.Context, call provider.Call, n node, conn *pgx.Conn) ([]provider.Finding, error) {
	var recovering, super, createRole, canSignal, canSee bool
	var version int
	var self string
	err := conn.QueryRow(ctx, `SELECT pg_is_in_recovery(), current_setting('server_version_num')::int, r.rolname::text, r.rolsuper, r.rolcreaterole,
			pg_has_role(r.oid, 'pg_signal_backend', 'USAGE'), pg_has_role(r.oid, 'pg_read_all_stats', 'USAGE')
		FROM pg_roles r WHERE r.rolname = current_user`).
		Scan(&recovering, &version, &self, &super, &createRole, &canSignal, &canSee)
	if err != nil {
		return nil, fmt.Errorf("postgres: %s: read the administrator's rights: %w", n.describe(), err)
	}
	var errs []error
	report := func(problem, hint string) {
		errs = append(errs, provider.Hint(fmt.Errorf("postgres: %s: %s", n.describe(), problem), hint))
	}
	if version < oldestVersion {
		report(fmt.Sprintf("its version %d is too old", version/10000), "PostgreSQL 14 or newer is needed")
	}
	if !canSignal {
		report(fmt.Sprintf("%q cannot end the sessions of other roles", self), "run GRANT pg_signal_backend TO "+quoteName(self))
	}
	if !canSee {
		report(fmt.Sprintf("%q cannot see the sessions of other roles", self), "run GRANT pg_read_all_stats TO "+quoteName(self))
	}
	if n.name != primaryName {
		if !recovering {
			report("it is not a standby, so changes of roles will not arrive there", "list under replicas only hot standbys of the primary")
			return nil, errors.Join(errs...)
		}
		findings, err := n.replay(ctx, conn)
		return findings, errors.Join(append(errs, err)...)
	}
	if recovering {
		report("it is a standby", "point admin at the primary, or at a name that follows it")
		return nil, errors.Join(errs...)
	}
	if !createRole && !super {
		report(fmt.Sprintf("%q cannot create or alter roles", self), "run ALTER ROLE "+quoteName(self)+" CREATEROLE")
	}
	problems, err := s.checkRoles(ctx, call, conn, super, version)
	errs = append(errs, problems...)
	if err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	findings, err := s.drift(ctx, conn)
	return findings, errors.Join(append(errs, err)...)
}

// checkRoles finds what of the existing roles would make a rotation fail.
func (s *system) checkRoles(ctx context.Context, call provider.Call, conn *pgx.Conn, super bool, version int) ([]error, error) {
	admin := "true"
	if version >= 160000 && !super {
		admin = "pg_has_role(current_user, r.oid, 'USAGE WITH ADMIN OPTION')"
	}
	rows, err := conn.Query(ctx, `SELECT r.rolname::text, r.rolsuper, `+admin+`, coalesce(r.rolvaliduntil <= now(), false), coalesce(shobj_description(r.oid, 'pg_authid'), '')
		FROM pg_roles r WHERE r.rolname = ANY($1) ORDER BY 1`, s.settings.allRoles())
	if err != nil {
		return nil, fmt.Errorf("postgres: read the roles: %w", err)
	}
	defer rows.Close()
	var errs []error
	report := func(problem, hint string) { errs = append(errs, provider.Hint(errors.New("postgres: "+problem), hint)) }
	for rows.Next() {
		var name, comment string
		var isSuper, mayAlter, expired bool
		if err := rows.Scan(&name, &isSuper, &mayAlter, &expired, &comment); err != nil {
			return nil, fmt.Errorf("postgres: read the roles: %w", err)
		}
		switch {
		case isSuper && !super:
			report(fmt.Sprintf("role %q is a superuser, which only a superuser may change", name), "run ALTER ROLE "+quoteName(name)+" NOSUPERUSER")
		case !mayAlter:
			report(fmt.Sprintf("the administrator may not change role %q", name), "run GRANT "+quoteName(name)+" TO the administrator WITH ADMIN OPTION")
		}
		if expired && slices.Contains(s.settings.users, name) {
			report(fmt.Sprintf("the password of role %q has expired, so that no new one would be let in", name), "run ALTER ROLE "+quoteName(name)+" VALID UNTIL 'infinity'")
		}
		_, m := splitComment(comment)
		if slices.Contains(s.settings.users, name) && m.Version != 0 && m.Key != call.Key && call.Key != "" {
			report(fmt.Sprintf("role %q belongs to key %q", name, m.Key), "give every key roles of its own; if that is no longer true, run COMMENT ON ROLE "+quoteName(name)+" IS NULL")
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("postgres: read the roles: %w", err)
	}
	return errs, nil
}

// allRoles are the users and, where there is one, the group.
func (s settings) allRoles() []string {
	if s.group == "" {
		return s.users
	}
	return append(slices.Clone(s.users), s.group)
}

// replay finds a standby that receives but does not apply.
func (n node) replay(ctx context.Context, conn *pgx.Conn) ([]provider.Finding, error) {
	var paused bool
	if err := conn.QueryRow(ctx, "SELECT pg_is_wal_replay_paused()").Scan(&paused); err != nil {
		return nil, fmt.Errorf("postgres: %s: read the state of replay: %w", n.describe(), err)
	}
	if !paused {
		return nil, nil
	}
	return []provider.Finding{{
		Code:    "replay-paused",
		Message: fmt.Sprintf("%s has its replay paused: a new version will not arrive there", n.describe()),
		Hint:    "run SELECT pg_wal_replay_resume() on it",
	}}, nil
}

// unverifiedTLS finds a connection over a network that somebody in between could
// answer. SCRAM keeps the password from him all the same.
func (n node) unverifiedTLS() []provider.Finding {
	ip := net.ParseIP(n.host)
	if n.host == "localhost" || ip != nil && ip.IsLoopback() || strings.HasPrefix(n.tls.mode, "verify-") {
		return nil
	}
	return []provider.Finding{{
		Code:    "tls-unverified",
		Message: fmt.Sprintf("the certificate of %s is not verified (sslmode=%s)", n.describe(), orElse(n.tls.mode, "prefer")),
		Hint:    "append ?sslmode=verify-full&sslrootcert=PATH to its URL",
	}}
}

// unlisted finds live versions whose role left the config.
func (s settings) unlisted(live []provider.Version) []provider.Finding {
	var findings []provider.Finding
	for _, v := range live {
		user := v.Material.Attributes["username"]
		if user != "" && !slices.Contains(s.users, user) {
			findings = append(findings, provider.Finding{
				Code:    "user-unlisted",
				Message: fmt.Sprintf("%v belongs to role %q, which is not among the users any more: it can be refused, but not accepted again", v.Number, user),
				Hint:    "put the role back until the version is destroyed",
			})
		}
	}
	return findings
}
