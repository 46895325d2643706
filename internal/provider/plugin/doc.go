// Package plugin is the provider for systems that a plugin knows: a program that
// is run, or a service that is called, by the protocol keyturn-provider/v1.
//
// The package holds the protocol, the config of keys and the provider; how a
// message travels is a Transport's business: package process below runs programs,
// package webhook calls services.
//
// Guarantees:
//
//   - Which program or service is called is decided where the Transports are made,
//     from the server's configuration; a key's document names one, no more.
//   - An answer counts only if it belongs to the call (it repeats its ID and
//     method), is well-formed JSON without ambiguity, and says exactly one thing,
//     the one that was asked for. Anything else is an error: a malformed answer is
//     never a verdict, a missing number never zero, a missing list never empty.
//   - Nothing of an answer reaches an error, a finding or an attribute before the
//     secrets of the call and of the answer are blotted out in it, in the
//     encodings that Scrubber lists, and its length is bounded.
//   - What Keyturn mints itself comes from a cryptographic source and has at least
//     128 bits.
//
// docs/reference/plugins.md is the page for authors of plugins,
// docs/design/0014-plugins.md gives the reasons.
package plugin
