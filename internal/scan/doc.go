// Package scan finds secrets in text: files, folders, archives, streams, and the
// history of git repositories. The rules are those of gitleaks, beside Keyturn's
// own for API keys, whose checksum it verifies.
//
// Guarantees:
//
//   - A finding never carries its secret in a form that prints: it names the rule,
//     the place and a keyed fingerprint.
//   - Everything is bounded: the size of files, the depth, entries and unpacked size
//     of archives, findings, candidates, and with them memory. What a bound leaves
//     out, and what cannot be read, is in the report; a report with such a gap is
//     not that of something clean.
//   - Nothing that is scanned is executed: git runs without the repository's
//     programs for diffs and text conversion.
package scan
