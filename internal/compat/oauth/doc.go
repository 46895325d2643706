// Package oauth gives tokens over HTTP: the token endpoint (RFC 6749, RFC 8693),
// introspection (RFC 7662) and revocation (RFC 7009) of each signing key's issuer.
//
// # Guarantees
//
//   - Answers are never cached. Errors are those of the standards, with a description
//     that says what to do and nothing of rules, other clients or why a proof failed.
//   - Bodies are bounded, a parameter counts once, the query of the URL never.
//   - Whoever shows bad credentials too often waits.
package oauth
