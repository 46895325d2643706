// Package token publishes the public keys of signing keys, signs tokens with them,
// and verifies tokens.
//
// # Guarantees
//
// Of the Board, which publishes:
//
//   - What a server node serves was committed to the store. It serves from memory,
//     also while the store is down, for at most Config.Outage; then it serves
//     nothing, so that other nodes know when nobody serves an older set any more.
//   - A change has arrived when every node serves it and every cache that was
//     filled before has ended, or the registered verifier has fetched it since.
//   - Sets have an ETag and a life in caches, which is what arrival counts with.
//
// Of the Signer, which signs:
//
//   - It signs with the version that it was last told, and acknowledges when it can.
//   - No token outlives what was written to the store before the token was signed.
//     So use is never reported as zero while a token may be valid, whatever crashes.
//   - While the store is down it goes on signing; the nearer the end of what was
//     written before, the shorter tokens live.
//   - Counts of tokens are kept in memory and written every few seconds: after a
//     crash too few may be counted, but never none.
//
// Of verification: the algorithm is that of the published key that kid names; keys
// and addresses of keys in a token's header are never used.
package token
