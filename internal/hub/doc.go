// Package hub connects parties to the engine: it keeps their sessions, hands
// them what they are told to present, and gathers their answers and reports.
//
// # Guarantees
//
//   - A session always ends up with the latest assignment of each of its keys:
//     assignments replace older ones of the same key that were not taken yet, so
//     the memory of a session is bounded by its keys, however slow its party.
//   - Assignments that were decided together are taken together.
//   - An acknowledgement is answered when the engine has made it durable.
//     Acknowledgements that arrive together share a transaction.
//   - A tell that meets no session is not lost: the party hears of it when it
//     connects again.
//   - A client that stays away is forgotten; not so while nobody of its region is
//     connected, since a region that is cut off still uses what it has.
//   - Reports are kept in memory and bounded; after a restart there is "no data"
//     until parties report again.
//   - Several nodes on one store know who is connected to each of them, within
//     seconds, and what is reported at each during a bake. A node that shows no life
//     for deadAfter counts as dead, and its parties as away. A client that another
//     node has is not forgotten. Clocks of nodes are not compared.
package hub
