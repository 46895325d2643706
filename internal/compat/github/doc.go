// Package github receives what GitHub's secret scanning finds, by the protocol of its
// partner program.
//
// Guarantees: nothing of a message is looked at before its signature is verified
// with a key of GitHub's (ECDSA over P-256 and SHA-256). Messages, keys and the rate of
// comparisons are bounded. A message that was dealt with before is refused as long as it
// is remembered; one that was not dealt with to its end is not.
package github
