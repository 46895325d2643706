// Package jwks rotates the keys that sign tokens. A version is a key pair; its
// public key is published in JSON Web Key Sets (RFC 7517), from which verifiers
// learn what to accept.
//
// # Guarantees
//
//   - A version is accepted at an endpoint when every reader that obeys
//     Cache-Control holds a set with its key: the registered verifier has fetched
//     one, or the longest life of a cache has passed since every server node
//     published it. Until then Accept and Refuse answer provider.Later.
//   - A verdict comes from a try: a token signed with the version is verified with
//     the set as it is served, or is shown to the verifier itself. While caches may
//     still hold another set there is no verdict.
//   - Use is zero only when the last token that a version signed has expired, to
//     the knowledge of every server node. Where applications sign, there is no data.
//   - The private key is in the material's secrets and in no error.
//
// What is published is kept by a Board; the service of package token is one.
package jwks
