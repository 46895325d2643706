// Package sealed keeps the secrets that the servers on one store share, one for each
// purpose: what they hash and sign with among themselves.
//
// Guarantees:
//
//   - A secret is drawn once in the life of a store, by the server that comes first;
//     every other one gets the same.
//   - Only its envelope is stored, bound to the purpose: it opens for no other.
//   - Rewrap exchanges the key-encryption key that it needs, without opening it, and
//     leaves alone what another server has exchanged meanwhile.
package sealed
