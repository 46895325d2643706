// Package apikey is the provider of API keys that Keyturn itself verifies: it
// mints them, and has the service that verifies them accept and refuse them.
//
// Guarantees: the key is in the sealed secret "key" only. What is public of a
// version is a keyed hash, and everything but minting works by that: a version
// whose key is known to its client alone can be tried, refused and accepted again.
package apikey
