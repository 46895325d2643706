// Package metadata gives the processes of a machine, pod or function short-lived
// access tokens over loopback HTTP or a unix socket, as the metadata services of
// clouds do.
//
// Guarantees:
//
//   - Only what the configuration names is given: a process says which token it wants
//     by name, and neither audiences nor scopes beyond that.
//   - It listens on loopback addresses and unix sockets only. Over TCP a request must
//     name such an address as its host, so that a name that a browser was made to
//     resolve to loopback gets nothing.
//   - A request that was forwarded, that a browser made for a page, or that lacks the
//     header which a server-side request forgery cannot set, is refused: a session comes
//     first (PUT, then its token), or the secret of a file, or Metadata-Flavor, or Metadata.
//   - Requests, connections, headers and waiting are bounded.
//   - Tokens come from memory, and are given to their end while the issuer is away.
//   - No log line and no refusal contains a token or secret.
package metadata
