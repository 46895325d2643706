// Package awsiam is the provider of AWS access keys: those of one IAM user, of
// whom AWS lets two exist.
//
// Guarantees:
//
//   - A version is an access key with an ID of its own, so that a late call harms
//     no newer version. What a version is stands in a tag of the user, where the
//     console of AWS shows it beside the access key.
//   - AWS draws the secret itself. A minted access key is made inactive before its
//     secret is returned. When an answer is lost, the repetition removes what it
//     left: an access key that was created since the rotation began, was never
//     used, and is described as nothing else. No other access key is ever removed
//     but by Destroy, and by that only when it is inactive.
//   - No request is repeated by the SDK: a lost answer is Keyturn's to judge.
//   - A verdict is what STS says in every region of the config, to the access key
//     itself. Where regions differ there is none yet.
//
// AWS compares no fence, so Call.Fence is unused.
package awsiam
