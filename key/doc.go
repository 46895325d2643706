// Package key holds the words every other package shares: the name of a key,
// its numbered versions, the state and the label of a version, and the
// identifier of a rotation.
//
// Guarantees: the package is pure (no IO, no clock, no globals that change),
// imports the standard library only, and every enumeration has an invalid zero
// value, so that a forgotten field never reads as a meaningful one.
//
// States follow NIST SP 800-57 Part 1 Rev. 5, section 7.
package key
