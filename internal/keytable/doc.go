// Package keytable is what verifying an API key takes: its form with the
// checksum, its keyed hash, and a compact table that finds who it belongs to. The
// server and the SDK verify by this one package.
//
// Guarantees: no plaintext of a key is kept. A look-up takes the same steps
// whether the key is unknown, suspended or expired, and does not allocate. Equal
// hashes of two versions are refused, never overwritten. Memory is bounded by the
// number of entries: 1,000,000 of them take less than 300 MiB, rate limits and
// counts of use included. There is no clock, IO or randomness here: time is an
// argument.
package keytable
