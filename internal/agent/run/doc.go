// Package run carries out what a target asks for beside its file: a signal, a
// command, a health check.
//
// Guarantees:
//   - Everything ends within its timeout; a command's whole process group is
//     killed then, and when it fails, and its output is read no further.
//   - A signal reaches the process that was meant: a process that started after
//     its pid file was written is taken for a stranger with a re-used number.
//   - No error contains a secret that the Redactor knows.
//   - A command gets no secret: none in its arguments, none in its environment,
//     the agent's own tokens included.
//
// All types are values; their methods may be called concurrently. Linux only.
package run

import "errors"

var (
	// ErrTimeout: it did not end in time.
	ErrTimeout = errors.New("timed out")
	// ErrNotRunning: there is no process to signal.
	ErrNotRunning = errors.New("the process is not running")
	// ErrUnhealthy: the health check ran and said no.
	ErrUnhealthy = errors.New("unhealthy")
)
