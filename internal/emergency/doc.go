// Package emergency declares emergencies of many keys as one group, and tells how
// far a group is.
//
// Guarantees:
//
//   - A group is one document in the store, with the ID of the rotation of every key,
//     written before the first key is declared. Each key is declared in a transaction
//     of its own, with its audit entry. A crash in between loses nothing: the rest is
//     declared when a server runs again, by any node, and no key twice.
//   - A repeated request with the same ID leads to the same group.
//   - A key that cannot be declared is named with the reason, and keeps no other from
//     being declared.
//   - A group holds at most MaxKeys keys; a selection with more is refused, and
//     nothing is declared.
//   - A selection by what was read says which part of the audit log it was made from,
//     and what could not be found out; with such a lack a group is declared only if the
//     request accepts it. That nothing was found is an error.
//
// A Service may be used concurrently.
package emergency
