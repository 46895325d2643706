// Package clienttest is a Keyturn server for tests: it speaks the real delivery
// protocol to the real client, so that an application's rotation can be tested
// without a control plane.
//
// Guarantees: it runs in the test's process, holds everything in memory, checks
// the bearer token, sends several keys that were set together in one answer, and
// keeps what parties told it. Every fault it injects is switched on by the test;
// left alone it never fails. With [InMemory] it uses no network and works within
// a testing/synctest bubble.
//
// It judges nothing: a failed outcome is recorded and leads to no roll-back. The
// test decides what happens next.
package clienttest
