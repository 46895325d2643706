// Package broker gives short-lived tokens to those who prove who they are: jobs and
// workloads by tokens of their own issuers, clients by API keys, tokens of Keyturn or
// certificates. It revokes tokens, and tells whether one is good.
//
// # Guarantees
//
//   - A token is given only by a rule of the signing key (package grant), with the
//     audience, the scopes and the life the rule allows, and no more than was asked.
//   - Tokens of other issuers count only if a rule names the issuer, letter by letter;
//     they are verified with the keys of that issuer alone, kept for at most KeysStale
//     when it does not answer.
//   - A proof of possession counts once, at all nodes that share a store together, also
//     across restarts; the nonce of a refusal is good at each of them. Only proofs of
//     clients that are known are remembered.
//   - A token of another issuer is exchanged once under a rule that says so, at all nodes
//     together; who shows it again is entered in the audit log once.
//   - Where it cannot be told whether a token of another issuer is good, because its key
//     is not known yet, the answer is ErrAway and not that it is bad.
//   - A token leaves only after an entry in the audit log covers it: an exchange of a
//     federated token has one of its own; a client that asks again within AuditSpan is
//     covered by its first entry of the span, and the next one says how many there were.
//     While the log cannot be written no token is given.
//   - Refusals are counted, and entered as sums, at most once in AuditSpan for each reason.
//   - A revoked token is reported as inactive by every node as soon as it has read the
//     revocation, and by the node that was asked at once. A node that cannot read the
//     store for Stale says so instead of answering.
//   - Whoever is refused learns no reason that tells of others.
//   - Everything is bounded.
package broker
