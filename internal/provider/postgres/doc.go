// Package postgres rotates the passwords of PostgreSQL roles.
//
// It knows two strategies. With alternating users, two or more login roles are
// members of one group role, which holds the grants and owns the objects, and
// become it at login: versions alternate between the roles, so that the old and
// the new one are accepted at the same time and neither grants nor ownership
// drift. With a single user the password of one role is replaced, and the old
// version is refused in the same instant.
//
// Guarantees:
//
//   - A password reaches a server only inside a SCRAM-SHA-256 exchange (RFC 5802,
//     RFC 7677): statements carry verifiers that are computed here, and a server
//     that asks for a password in any weaker way is not logged in to.
//   - A late or repeated call never harms another version: each role carries a
//     marker in its comment (see marker) that says which version it holds, every
//     change is made in one transaction that reads it first, and a call with an
//     older fencing token than the marker's is turned away.
//   - Probe answers Refused only when PostgreSQL itself turned the login away for
//     its password or its NOLOGIN; everything else is an error.
//   - What a replica says counts once it has replayed what the primary had when the
//     call began. Until then Accept, Refuse, Probe and Held wait, and then fail.
//   - What a call has changed is on the primary's disk when it returns.
//   - Nothing is held open: each operation makes its own administrator connection,
//     at most four at a time per key and server, with bounded connect, lock and statement times.
//
// PostgreSQL 14 or newer is needed. docs/reference/provider-postgres.md is the
// user's page, docs/design/0005-postgres-credentials.md gives the reasons.
package postgres
