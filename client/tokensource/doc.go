// Package tokensource gets short-lived access tokens from Keyturn's token broker,
// keeps them fresh, and sends requests with them.
//
// Guarantees:
//
//   - A token that is held is handed out for as long as it is valid, whatever the
//     issuer does. It is replaced in the background after half to two thirds of its
//     life, at a moment drawn at random, so that processes do not ask together; an
//     issuer may be away for a fifth of the life, at any moment, and no caller sees an
//     error.
//   - There is one request at a time, however many callers wait. After a failure the
//     pauses grow, are drawn at random, and are never shorter than Retry-After.
//   - A caller waits no longer than its context, and Config.MaxWait.
//   - A token is usable by the monotonic and by the wall clock: a process that was
//     frozen holds no old one for a new one.
//   - Bound to a key (RFC 9449) or certificate (RFC 8705) if asked for: an answer
//     that is not bound is refused. The key is made here and never leaves the process.
//   - Transport sends a token to the hosts that were named and to no other, whatever
//     redirects say; it asks for another token once when one is refused.
//   - Tokens and what they are asked for with are in no error and no log line.
package tokensource
