// Package relay serves the delivery API of a region: it sends the requests of SDKs and
// agents on to the centre, and hands out by itself what it holds while the centre does
// not answer.
//
// # Guarantees
//
//   - The centre decides and audits: a request goes on with the client's own token, and
//     the centre's answers and errors come back as they are.
//   - The relay is a party of the centre as any agent is. It hands out by itself only
//     versions that it was told to present as that party, under the epoch of the telling,
//     from a cache that is sealed and durable.
//   - It acknowledges a version n when (a) n is durable in the cache, so that it can never
//     again hand out another one, and (b) nobody whom it served by itself may be using
//     another version unknown to the centre. So whatever a newcomer may have got from it
//     is among what the relay itself may be using, in the centre's eyes, and is accepted.
//   - While the centre is away it serves a token for keys only for which the centre has
//     accepted that token through it, at most Config.ServeFor ago. A refusal of the centre
//     ends that at once. A clock that is set back prolongs nothing.
//   - Each hand-out is durable before the answer leaves, and is kept until the centre has
//     entered it into its audit log.
//   - A client notices neither the loss of the centre nor its return: its stream goes on.
//   - Everything is bounded: keys, grants, hand-outs, streams. Beyond the bound it relays
//     only, and hands nothing out.
//
// What it cannot know: a cache that is put back to an earlier state (a snapshot of the
// machine) knows nothing of what was acknowledged since. Remove it instead: a relay
// without a cache hands out nothing until the centre has told it what to present.
package relay
