// Package audit is the tamper-evident audit log: the format of an entry, the
// Merkle tree over the entries, signed checkpoints, proofs, and verification,
// online against a store and offline against an exported bundle.
//
// The log is a transparency log as in RFC 9162, section 2.1 (the hashes are
// those of RFC 6962). Entries are numbered from 0 without gaps; a checkpoint
// states the number of entries and the root of the tree over them, and is
// signed with Ed25519 in the format of golang.org/x/mod/sumdb/note (C2SP
// tlog-checkpoint and signed-note).
//
// Guarantees:
//
//   - An entry has exactly one encoding: Decode accepts b only if encoding the
//     result gives b again. Its size is at most MaxRecordSize.
//   - Append never fails because of free text: it cleans and shortens what
//     people and foreign systems wrote. It refuses what only code can get wrong.
//   - Times never run backwards in a log that Append wrote, whatever clocks did.
//   - Verification reads a stream in bounded memory and names the first entry, or
//     the smallest range of entries that the signed checkpoints and stored hashes
//     allow to tell, that was altered, removed, reordered or inserted.
//   - Every byte of a bundle is checked: changing any single one is an error.
//
// What verification cannot see: whoever holds the signing key can sign another
// history, and any prefix of a log that ends at a checkpoint is a valid log.
// Checkpoints that an auditor kept elsewhere (Options.Kept) reveal both.
//
// No secret can enter an entry: all fields are names, numbers, times and text
// that code chooses; none is a secret.Value, which has no text form. Code must
// not put revealed bytes into Reason or Detail.
//
// The package does no IO of its own: hashes and records come through Source and
// tlog.HashReader, and the caller stores what Append returns in the transaction
// that does what the entries say. Functions may be called concurrently; values
// are not changed by them.
package audit
