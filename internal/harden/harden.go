// Package harden keeps a process that holds secrets from leaking its memory.
//
// Guarantees: after Process has returned nil, the kernel writes no core dump of
// the process, whatever core_pattern says, and no other process of the same
// user may read its memory or attach a debugger. Linux only.
package harden

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Process marks the calling process as not dumpable (prctl(2),
// PR_SET_DUMPABLE) and sets its soft limit for core files to 0 bytes. Both hold
// for all threads. A program started by exec is dumpable again; it inherits the
// limit and may raise it, because the hard limit is left alone. Call it before
// the first secret is read. It may be called again, and concurrently.
func Process() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid core dumps: prctl PR_SET_DUMPABLE: %w", err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("forbid core dumps: getrlimit RLIMIT_CORE: %w", err)
	}
	limit.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("forbid core dumps: setrlimit RLIMIT_CORE: %w", err)
	}
	return nil
}
