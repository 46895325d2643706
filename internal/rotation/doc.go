// Package rotation is the machine that rotates keys: the protocol accept before
// present, drain before revoke, prove before destroy, as one pure function.
//
// Step takes the State of one key and an Event and returns the next State and
// the Effects to carry out. It reads no clock, draws no random number, does no
// IO and changes neither argument, so the events of a key, folded in order,
// always lead to the same state.
//
// # Guarantees
//
// The explorer in this package's tests walks every interleaving of small
// configurations and checks, in every state:
//
//   - No lockout: a version that a presenter may be presenting is accepted by
//     every verifier it may reach, except under contain-first and for a system
//     whose Gap was accepted.
//   - No loss: a version is stored before any verifier hears of it, and is
//     destroyed only after every verifier was proven to refuse it.
//   - Bounded exposure: a compromised version is never told to a presenter again.
//   - One cut-over at a time; version numbers and epochs only grow.
//   - Reversible until destroyed: up to the end of quarantine the version before
//     can be brought back, unless it is compromised.
//   - No data is not success: an unknown answer moves nothing forward.
//   - From every state the rotation can still come to its end.
//
// # Effects
//
// An effect is identified by Effect.ID. It may be carried out more than once, but
// of the effects with one Lane at most one runs at a time, and a newer one of the
// same lane takes the place of an older one that has not started. One that
// State.Awaits no more is not started. Its result comes back as a Result event; a
// result that nobody waits for any more is refused with ErrStale.
//
// # Presenters
//
// A presenter ignores a telling whose epoch is not larger than the largest it has
// seen. Its answers may come late, twice and in any order, on one condition: once
// it uses the version told under an epoch, it uses no other until it is told under
// a larger one. One that could not follow keeps what it had, says so, and may try
// again.
package rotation
