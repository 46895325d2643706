// Package client is the Go SDK of Keyturn: it brings key versions to a process
// and tells the server what became of them.
//
// There are two layers. Applications call [Open] and hold a [Handle] per key,
// which always has one consistent [Credential] and tells of changes. Programs
// that place credentials elsewhere (agents) call [Client.Watch] and do the
// placing themselves.
//
// Guarantees:
//   - A credential is never torn: its user name and its password belong to one version.
//   - An error of the server, of the network, or of one key never takes away
//     what is held already, nor holds up the other keys.
//   - Connections are re-established for ever, with full jitter and a bounded
//     exponential back-off, so that a fleet never reconnects in step.
//   - An assignment older than one already seen is dropped.
//   - An outcome is repeated until the server has made it durable; of several
//     outcomes of one key the latest wins.
//   - Secrets are held as [secret.Value] and appear in no error and in no log line.
//
// The package talks to keyturn.v1.DeliveryService and to nothing else.
package client
