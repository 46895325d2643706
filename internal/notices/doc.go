// Package notices tells partners of their keys by e-mail and webhook: that the
// next one is planned, that it is ready, again and again while they still use the old one, before its
// time is over, that it is refused, and that a key ends.
//
// Guarantees: a notice is stored before it is sent, once for each occasion and
// recipient, however many nodes note it. It is sent at least once, tried a bounded
// number of times over hours, and what became of it is entered into the audit log.
// What lies ahead is found by time, at a cost that grows with what is due and what has
// changed, not with the number of keys. No notice holds a secret. Nothing else waits for notices. What goes to a webhook is
// signed by a secret of the key's own, which is stored sealed; while it is replaced,
// by two.
package notices
