// Package apikey verifies API keys, and keeps the table of them that all nodes on
// one store share.
//
// Guarantees:
//
//   - Stored is a keyed hash of each version, under a pepper that the keeper
//     seals; never a key.
//   - Set returns once every node that may answer serves the change: a version that
//     was accepted is let in everywhere, one that was refused nowhere. A node that
//     cannot read the store any more goes on serving what it knows for
//     Config.Stale and then answers ErrUnsure; a refusal waits for it that long.
//   - A node that is behind never says that a key is bad: it says ErrUnsure.
//   - Whatever is wrong with a key, the answer and the work are the same; why is
//     counted apart.
//   - Use is counted per version and node, with those who used it, and is durable
//     within FlushEvery. A node that has not told lately makes the count ErrNoData.
//   - Config.Used hears of every use once it is written, and of tries of what is
//     refused: a use may be told again after a failure, none is told that was not made.
//   - Verifying reads memory only. Everything is bounded.
package apikey
