// Package demo shows Keyturn at work on an empty machine: a server, a fleet of
// applications under constant load, and real rotations of a real credential:
// one that was due, one whose canary fails and is rolled back by itself, and an
// emergency.
//
// Guarantees: everything runs on loopback and in one temporary folder, which is
// removed; the figures are counted from what the applications saw; Run fails
// when a single request failed, when a rotation ended otherwise than it should,
// or when the audit log does not verify.
package demo
