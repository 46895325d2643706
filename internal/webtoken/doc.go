// Package webtoken reads JSON Web Tokens in the compact serialisation (RFC 7515,
// RFC 7519). The server and the SDK's verifier read by this one package.
//
// Guarantees: a signature counts only by the algorithm of the key that the caller
// trusts; keys and addresses of keys in a token's header are never used. A claim that
// is there twice, a registered claim of another type than RFC 7519 gives it, and claims
// that are nested deep are refused. Input is bounded. There is no clock, IO or
// randomness here, and nothing is changed: all may be called concurrently.
//
// An error is the reason, in one line, for a log; it repeats nothing of the token. The
// caller wraps it in an error of its own.
package webtoken
