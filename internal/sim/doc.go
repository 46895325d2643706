// Package sim runs a whole fleet in one process under simulated time: servers,
// agents, the systems whose keys rotate, operators, and everything that goes
// wrong between them. A seed stands for one run and reproduces it exactly.
//
// # What is real
//
// The engine, the hub and the machine, unchanged, in as many servers as the seed
// says, on one store, in a testing/synctest bubble. The store is memstore, which
// passes storetest.
//
// # What is simulated
//
// Systems with several endpoints in two regions, that accept any number of
// versions, alternate between two users with lagging replicas, or hold one
// version only. Agents, which follow the rules of package client over messages
// that get lost, late, doubled and overtaken. In every sixth fleet a gateway, which
// follows the rules of internal/gateway/relay, with clients behind it. The keeper, the
// clocks, the disk.
//
// # How a run is decided
//
// Everything that could happen next waits as a request: a transaction, a call to
// a system, a message, a change at an agent, a command. When all goroutines are
// at rest the scheduler draws one of the requests, and the fault that it meets,
// and lets it alone go on. So no order depends on the Go scheduler, and every
// order may be drawn.
//
// After every step the invariants are compared with the truth: what endpoints
// really accept and what agents really use. After the last fault everything has
// to come to its end, with a complete audit log.
package sim
