// Package identity issues bearer tokens and tells whom a token stands for.
//
// # Guarantees
//
//   - A token is stored as a SHA-256 hash only. It has 256 random bits, so that
//     the hash needs no salt and no stretching.
//   - Issuing, redeeming and revoking a token is committed together with its audit
//     entry.
//   - A join token is redeemed at most once, also when two try at the same time.
//   - Hashes are compared in constant time.
//   - A token that this server revokes is refused from that moment on; one that
//     another server revokes, within a second.
package identity
