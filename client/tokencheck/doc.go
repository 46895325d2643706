// Package tokencheck verifies access tokens of Keyturn's token broker in the service
// that was shown them, by the published keys: without a request, and while no server
// answers.
//
// Guarantees:
//
//   - A token counts only if a key that is published for the issuer signed it, by the
//     algorithm of that key, which is on a list of asymmetric ones; with type at+jwt, the
//     issuer and audience of Config, and times that fit with Config.Skew to spare. What
//     is too large, names keys of its own or has a claim twice is refused.
//   - A token that is bound to a key (RFC 9449) or certificate (RFC 8705) counts only
//     with the proof, each proof once in this process, or on a connection with the
//     certificate. A proof counts for the URLs of Config.Origins only.
//   - The set of keys is fetched again after half of the life that Cache-Control gives
//     it, which is what a rotation counts on. Without an answer it is used for
//     Config.MaxAge at most; then Check fails with ErrUnsure, which is no refusal.
//   - An unknown kid makes the set be fetched once, and at most every few seconds,
//     however many such tokens are shown. It is refused only by a set of that moment.
//   - With Config.Report the server is told whom this service refuses, for its rules: a
//     bounded number of clients and addresses, the others in sum, never by holding up a
//     request. What could not be sent is sent later, while the process lives.
//   - Input, sets and memory are bounded; no error contains a token or proof.
//
// Revocation of single tokens is not known here: tokens live for minutes, and who must
// know at once asks the server (RFC 7662).
package tokencheck
