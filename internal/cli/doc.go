// Package cli is the command line of Keyturn.
//
// Guarantees:
//   - The exit code is 0 only on success; see Exit for the others.
//   - Results go to standard output, everything else to standard error. With
//     --output json the result is one JSON value (one a line where it is a
//     stream), and errors are JSON objects too.
//   - Secrets are printed by "get" and "token" alone, to standard output or to a
//     file with mode 0600; none is ever taken from an argument.
//   - What a server sends reaches a terminal without control characters.
//   - A token goes to the server only for which it was configured.
//   - Interrupting a command that waits leaves the rotation running.
//
// The package belongs to the outer side: it speaks to a server through the API
// alone. What needs more (server, dev, demo) is handed in by package main.
package cli
