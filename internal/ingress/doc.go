// Package ingress takes connections and requests in, for the server and for the
// gateway.
//
// Guarantees: TLS always, 1.2 or newer; connections, handshakes, headers, bodies,
// times, rates and what is logged of refusals are bounded, and the memory for that
// as well, whoever asks and however often; who reads slowly or not at all, or sends
// slowly, keeps nobody else waiting. Nothing here knows tokens or keys: who a caller
// is and what he may do is for others to say.
//
// All types may be used concurrently.
package ingress
