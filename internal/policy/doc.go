// Package policy holds Keyturn's resources as files: it parses, checks, prints
// and compares them, and answers from them when a key is due, which stage a
// party belongs to, and what a rotation would do.
//
// Guarantees:
//
//   - The package is pure: no IO, no clock, no randomness, no package state that
//     changes. Time is an argument. Time zones come from the Go runtime, so a
//     program that must not depend on the machine embeds time/tzdata.
//   - Input is bounded (MaxSource, MaxDocument, MaxDepth, MaxNodes): no input of
//     permitted size takes more than a few seconds or a few hundred MiB.
//   - Every problem is reported, not only the first, each with file, line and
//     column, what is wrong, and what would be right. Problems never quote the
//     values of a key's config block: it may hold credentials.
//   - A parsed policy is the effective one: whatever the file left out holds its
//     documented default. A stored policy therefore does not change its meaning
//     when a later release changes a default.
//   - What Marshal prints, Parse reads back to an equal resource.
//   - Due depends on nothing but its arguments: a restart, an upgrade or a clock
//     that jumps backwards starts no rotation.
//
// All functions may be called concurrently. A Compiled is immutable.
package policy
