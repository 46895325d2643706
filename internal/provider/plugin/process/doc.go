// Package process runs plugins as programs: one process per call, the request on
// its standard input, the answer on its standard output.
//
// Guarantees:
//
//   - A program gets no secret by its arguments or its environment, and of the
//     server's environment nothing at all: what it gets is in the configuration.
//   - It runs in a process group of its own, with umask 077 (the server's own where
//     a container forbids unshare), without the means to gain privileges
//     (no_new_privs), without core dumps, and dies with the server.
//     When it has ended, or the deadline has passed, what is left of its group is
//     killed before the call returns.
//   - At most plugin.MaxAnswer bytes of its output are kept, and the end of its
//     standard error; of that nothing reaches an error before it is scrubbed.
//   - An answer counts only if the program ended with exit code 0 in time.
//   - A program that others may write to is not run.
//
// A process that leaves its group (setsid) escapes the kill; where that matters the
// service manager of the server must end it. Linux only.
package process
