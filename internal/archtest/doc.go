// Package archtest keeps the architecture true: it reads the source of a module
// and reports where it breaks a rule that the compiler does not know.
//
// The rules are the floors (which package may import which, see
// docs/design/0002-floors.md), the purity of the lower floors (no clock, no
// randomness, no IO), and the house rules of CONTRIBUTING.md. What they say of
// Keyturn stands in tables: Floors in floors.go, the exceptions, each with its
// reason, in exceptions.go. A test runs every rule over a fake module that
// breaks it, so a rule that stopped working is noticed.
//
// Nothing is compiled: files are parsed one by one and build constraints are
// ignored, so what is built only under a tag is judged as well.
package archtest
