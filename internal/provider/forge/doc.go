// Package forge is the provider of deploy keys: SSH keys with which one repository
// of a Git forge is read, or written. It speaks to Gitea, to Forgejo, which has the
// same API, and to GitHub.
//
// Guarantees:
//
//   - A version is an Ed25519 key pair drawn by Keyturn. The forge gets the public
//     half; it finds a version by that, never by a number that could be another's.
//   - What the forge lists of others is left alone.
//   - A version is tried as git does it: an SSH connection with the version's key,
//     and the list of the repository's branches. The forge's host key is one of
//     those in the config, or nothing is sent.
//   - Gitea tells nothing of a key's use: there is no data, ever. GitHub tells the
//     day of the last use.
//
// A forge compares no fence, so Call.Fence is unused.
package forge
