// Package evidence is the form of an evidence pack: what happened to some keys, in
// one file that can be verified without a server.
//
// A pack is a ZIP file. MANIFEST names every other file in it with its length and
// SHA-256. ENTRIES are the records of the audit log that concern the keys, PROOFS proves
// of each that it is in the log whose signed CHECKPOINT is in the pack. BUNDLE is the
// whole log as package audit exports it; a pack may go without it. What else the pack
// says is checked against the log, as far as the log tells.
//
// SIGNATURE is a statement by the log's key about MANIFEST: by whom and when the pack was
// made.
//
// Guarantees:
//
//   - The same content makes the same bytes, but for SIGNATURE.
//   - Check names every file that is missing, altered or not in the manifest.
//   - CheckManifest tells a manifest that was altered since it was signed.
//   - CheckProofs names a record that is not proven to be in the log.
//   - CheckEntries names a policy that is not the one by which a rotation began, by the
//     log, and, in a pack with the log, a record that the log does not have, or has and the pack does
//     not, and a rotation that the log tells otherwise of.
//   - Reading is bounded by what the manifest says of each file, in time, and by
//     MaxFiles and maxManifest in memory: a small file that unpacks to a huge one is an
//     altered one.
//
// It must be told by whom the log may be signed: see audit.VerifyBundle, which the
// caller runs on BUNDLE. No secret is in a pack: it is made of what the API shows to
// those who may read, and of the audit log.
package evidence
