// Package grant says who gets which token: the rules of a signing key, as its
// config block states them, and whether a rule fits what somebody has proven.
//
// Guarantees: everything is bounded. Nothing is granted that a rule does not name.
// A rule for another issuer's tokens names the audience and at least one claim that
// tells whose they are. Patterns match whole values; a star stands for characters
// other than "/" and ":", two for any. There is no clock, IO or randomness here.
package grant
