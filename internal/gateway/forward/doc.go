// Package forward answers the proxies and services of a region that ask whether a
// request's credential is good: an API key or an access token. It answers what nginx
// (auth_request), Traefik, Caddy, HAProxy and Envoy ask over HTTP, Envoy's ext_authz over
// gRPC, and the server's own POST /v1/apikeys/verify.
//
// Guarantees:
//
//   - What is needed is said by the gates of the configuration and by nothing else: the
//     proxy names one, by the path it calls or, over gRPC, by its own configuration. No
//     header, query or path of the client changes what a gate needs.
//   - A credential counts if it is there once: two of them, or one twice, are an error
//     and not a choice.
//   - A request is let in only after the credential was verified, by a key that the gate
//     names or a token for its audience, with all of its scopes. What cannot be told now
//     is answered as such (503), and never as a refusal or as good.
//   - The answer to whoever is let in has every header of Headers, so that none that the
//     client sent under these names is left where a proxy copies them. Their values are
//     printable ASCII.
//   - The client's address, and the method and URL that a proof of possession must be for,
//     are taken only from what the proxy sets, as the configuration says.
//   - Nobody is answered whom Config.Caller does not know.
//   - Bodies are not read, but for that of POST /v1/apikeys/verify and gRPC, which are
//     bounded; headers are bounded before anything is done with them. The labels of metrics
//     are names of the configuration and of this package.
//   - No log line, metric and answer contains a credential.
package forward
