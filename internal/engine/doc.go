// Package engine is the only place where the machine, the store and the effects
// meet. It folds events into the state of keys, carries out the effects that
// the machine decides, and answers what callers ask.
//
// # Guarantees
//
//   - One transaction holds the event, the new state, the audit entries of all
//     that changed, and the effects to carry out. So nothing happens outside
//     without an audit entry, and no decision is lost in a crash.
//   - An effect is carried out under a lease with a fencing token, which is renewed
//     while it runs; it is cut short when that fails. Its result is recorded in the
//     transaction that ends the lease, or not at all.
//   - Any number of engines may work on one store. What one decides the others tell
//     to the presenters that are connected to them.
//   - Material is sealed and stored in the transaction that tells the machine of
//     it, before any effect outside can follow.
//   - Effects on one host share a bulkhead: a host that hangs delays only itself.
//   - The engine never decides for the machine: an effect without a clear answer
//     is repeated, or told as "no data".
package engine
