// Package agent is Keyturn's agent: it brings key versions into files, tells
// applications, watches their health, and tells the server what became of it.
//
// Guarantees:
//   - The targets that share a changed key switch together or not at all: when
//     one of them fails, those that have switched are restored and told again.
//   - A version is acknowledged as applied after its files are durable, its
//     applications were told, and their health checks passed; never before.
//   - What arrives while a change is under way is not lost; of each key the
//     newest version is taken next.
//   - A rendering that has not changed is not written, and its application is
//     not told, neither after a restart of the agent nor after one of the server.
//   - After a crash at any point, the next start brings the files and the
//     applications to where no crash would have brought them.
//   - While the server is away, the last known good versions are served.
//   - No log line, error or acknowledgement contains a secret.
//
// The package belongs to the outer side: it uses package client, never the engine.
// Linux only.
package agent

import "errors"

var (
	// ErrConfig is wrapped by every error about a configuration.
	ErrConfig = errors.New("invalid agent configuration")
	// ErrJoin: the agent has no token and could not get one.
	ErrJoin = errors.New("cannot join")
)
