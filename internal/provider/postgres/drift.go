package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/provider"
)

// drift finds how the roles differ from what the strategy needs, or from each
// other. It reports and changes nothing: what a person did by hand may be meant.
func (s *system) drift(ctx context.Context, conn *pgx.Conn) ([]provider.Finding, error) {
	roles, err := s.driftOfRoles(ctx, conn)
	if err != nil || s.settings.strategy == singleUser {
		return roles, err
	}
	objects, err := s.driftOfObjects(ctx, conn)
	if err != nil {
		return nil, err
	}
	empty, err := s.emptyGroup(ctx, conn)
	if err != nil {
		return nil, err
	}
	return slices.Concat(roles, objects, empty), nil
}

const driftOfRolesSQL = `
SELECT r.rolname::text,
       concat_ws(' ', CASE WHEN r.rolsuper THEN 'SUPERUSER' END, CASE WHEN r.rolcreaterole THEN 'CREATEROLE' END,
                 CASE WHEN r.rolcreatedb THEN 'CREATEDB' END, CASE WHEN r.rolreplication THEN 'REPLICATION' END,
                 CASE WHEN r.rolbypassrls THEN 'BYPASSRLS' END),
       r.rolcanlogin,
       coalesce(r.rolvaliduntil <> 'infinity' AND r.rolvaliduntil > now(), false),
       r.rolconnlimit,
       ARRAY(SELECT g.rolname::text FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid GROUP BY 1 ORDER BY 1),
       ARRAY(SELECT coalesce(d.datname || ': ', '') || c FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) c
             WHERE s.setrole = r.oid ORDER BY 1)
FROM pg_roles r WHERE r.rolname = ANY($1) ORDER BY array_position($1, r.rolname::text)`

// roleFacts is one row of driftOfRolesSQL.
type roleFacts struct {
	name, attributes  string
	canLogin, expires bool
	connLimit         int
	parents, settings []string
}

func (s *system) driftOfRoles(ctx context.Context, conn *pgx.Conn) ([]provider.Finding, error) {
	rows, err := conn.Query(ctx, driftOfRolesSQL, s.settings.allRoles())
	if err != nil {
		return nil, fmt.Errorf("postgres: look for drift of the roles: %w", err)
	}
	facts, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f roleFacts, err error) {
		err = row.Scan(&f.name, &f.attributes, &f.canLogin, &f.expires, &f.connLimit, &f.parents, &f.settings)
		return f, err
	})
	if err != nil {
		return nil, fmt.Errorf("postgres: look for drift of the roles: %w", err)
	}
	var findings []provider.Finding
	add := func(code, message, hint string) {
		findings = append(findings, provider.Finding{Code: code, Message: message, Hint: hint})
	}
	var first *roleFacts // the user that the others are compared with
	var firstSettings []string
	for _, f := range facts {
		if f.attributes != "" {
			add("attributes-drifted", fmt.Sprintf("role %q has %s, which sessions of an application should not have", f.name, f.attributes),
				"run ALTER ROLE "+quoteName(f.name)+" "+without(f.attributes))
		}
		if f.name == s.settings.group {
			if f.canLogin {
				add("attributes-drifted", fmt.Sprintf("group role %q can log in, past every rotation", f.name), "run ALTER ROLE "+quoteName(f.name)+" NOLOGIN once nobody does")
			}
			continue
		}
		if f.expires {
			add("expiry-set", fmt.Sprintf("the password of role %q expires at a date that is set on the role", f.name), "run ALTER ROLE "+quoteName(f.name)+" VALID UNTIL 'infinity': Keyturn's policy decides")
		}
		if s.settings.strategy == singleUser {
			continue
		}
		s.membershipDrift(f, add)
		rest := s.settingDrift(f, add)
		if first == nil {
			first, firstSettings = &f, rest
			continue
		}
		if !slices.Equal(rest, firstSettings) || f.connLimit != first.connLimit {
			add("settings-drifted", fmt.Sprintf("roles %q and %q differ in their settings or connection limit: %s and %s", first.name, f.name, firstSettings, rest),
				"give every user the same by ALTER ROLE … SET and CONNECTION LIMIT")
		}
	}
	return findings, nil
}

func without(attributes string) string { return "NO" + strings.ReplaceAll(attributes, " ", " NO") }

func (s *system) membershipDrift(f roleFacts, add func(code, message, hint string)) {
	group := s.settings.group
	if !slices.Contains(f.parents, group) {
		add("membership-drifted", fmt.Sprintf("role %q is not a member of %q", f.name, group),
			"the next version of this role makes it one; to do so now, run GRANT "+quoteName(group)+" TO "+quoteName(f.name))
	}
	for _, parent := range f.parents {
		if parent != group {
			add("membership-drifted", fmt.Sprintf("role %q is a member of %q by itself, so its versions may do what others may not", f.name, parent),
				"run GRANT "+quoteName(parent)+" TO "+quoteName(group)+" and REVOKE "+quoteName(parent)+" FROM "+quoteName(f.name)+", and list it under memberOf")
		}
	}
}

// settingDrift checks what the user becomes at login and returns its other settings.
func (s *system) settingDrift(f roleFacts, add func(code, message, hint string)) (rest []string) {
	becomes := false
	for _, setting := range f.settings {
		switch {
		case setting == "role="+s.settings.group:
			becomes = true
		case strings.HasPrefix(setting, "role="):
		case strings.Contains(setting, ": role="):
			add("role-setting-drifted", fmt.Sprintf("role %q becomes another role in one database (%s)", f.name, setting),
				"run ALTER ROLE "+quoteName(f.name)+" IN DATABASE … RESET role")
		default:
			rest = append(rest, setting)
		}
	}
	if !becomes {
		add("role-setting-drifted", fmt.Sprintf("role %q does not become %q at login, so that it would own what it creates", f.name, s.settings.group),
			"the next version of this role sets it; to do so now, run ALTER ROLE "+quoteName(f.name)+" SET role = "+quoteText(s.settings.group))
	}
	return rest
}

// driftOfObjectsSQL looks at pg_shdepend, which knows for all databases what a
// role owns (o) and where it is named in a grant (a, i) or a policy (r).
const driftOfObjectsSQL = `
SELECT r.rolname::text, d.deptype = 'o', coalesce(db.datname, ''), count(*)::int,
       (array_agg(CASE WHEN d.dbid = 0 OR db.datname = current_database() THEN pg_describe_object(d.classid, d.objid, d.objsubid) END ORDER BY d.classid, d.objid))[1:3]
FROM pg_shdepend d
JOIN pg_roles r ON d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid
LEFT JOIN pg_database db ON db.oid = d.dbid
WHERE r.rolname = ANY($1) AND d.deptype IN ('o', 'a', 'i', 'r') AND d.classid <> 'pg_auth_members'::regclass
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3`

func (s *system) driftOfObjects(ctx context.Context, conn *pgx.Conn) ([]provider.Finding, error) {
	rows, err := conn.Query(ctx, driftOfObjectsSQL, s.settings.users)
	if err != nil {
		return nil, fmt.Errorf("postgres: look for drifted grants: %w", err)
	}
	defer rows.Close()
	var findings []provider.Finding
	for rows.Next() {
		var user, database string
		var owns bool
		var count int
		var described []*string
		if err := rows.Scan(&user, &owns, &database, &count, &described); err != nil {
			return nil, fmt.Errorf("postgres: look for drifted grants: %w", err)
		}
		what := examples(count, described)
		if database != "" {
			what += fmt.Sprintf(" in database %q", database)
		}
		f := provider.Finding{
			Code:    "grants-drifted",
			Message: fmt.Sprintf("role %q itself, not its group, has grants on %s: they are missing under the other users", user, what),
			Hint:    "grant the same to " + quoteName(s.settings.group) + " and revoke it from " + quoteName(user),
		}
		if owns {
			f.Code = "ownership-drifted"
			f.Message = fmt.Sprintf("role %q itself, not its group, owns %s", user, what)
			f.Hint = "in that database run REASSIGN OWNED BY " + quoteName(user) + " TO " + quoteName(s.settings.group)
		}
		findings = append(findings, f)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("postgres: look for drifted grants: %w", err)
	}
	return findings, nil
}

func examples(count int, described []*string) string {
	var names []string
	for _, d := range described {
		if d != nil {
			names = append(names, *d)
		}
	}
	switch {
	case len(names) == 0:
		return fmt.Sprintf("%d objects", count)
	case count > len(names):
		return fmt.Sprintf("%s and %d more", strings.Join(names, ", "), count-len(names))
	}
	return strings.Join(names, ", ")
}

// emptyGroup finds a group that can do nothing, as it is when Keyturn made it.
func (s *system) emptyGroup(ctx context.Context, conn *pgx.Conn) ([]provider.Finding, error) {
	var empty bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_roles g WHERE g.rolname = $1
		AND NOT EXISTS (SELECT FROM pg_shdepend d WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = g.oid AND d.classid <> 'pg_auth_members'::regclass)
		AND NOT EXISTS (SELECT FROM pg_auth_members m WHERE m.member = g.oid))`, s.settings.group).Scan(&empty)
	if err != nil {
		return nil, fmt.Errorf("postgres: look at the grants of %q: %w", s.settings.group, err)
	}
	if !empty {
		return nil, nil
	}
	return []provider.Finding{{
		Code:    "group-empty",
		Message: fmt.Sprintf("group role %q owns nothing and has no grants: applications can log in and do little else", s.settings.group),
		Hint:    "grant it what the applications need, or list roles under memberOf",
	}}, nil
}
