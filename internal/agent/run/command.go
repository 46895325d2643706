package run

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// MaxOutput is how much of a command's output an error shows, in bytes.
const MaxOutput = 400

// pipeDelay is how long output is awaited after a command has ended: a daemon
// that it left behind may hold the pipe for ever.
const pipeDelay = 500 * time.Millisecond

// Command is a program with its arguments; no shell is involved.
type Command struct {
	Args []string
	// Timeout is required; it counts from the start.
	Timeout time.Duration
	// Env is added to the agent's environment, as NAME=value.
	Env []string
}

// Run executes the command and waits for it. The error tells how it ended and
// the beginning of its output, redacted; after the timeout it wraps ErrTimeout.
func (c Command) Run(ctx context.Context, redact Redactor) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, ErrTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Env = append(environment(), c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
			return os.ErrProcessDone
		}
		return nil
	}
	cmd.WaitDelay = pipeDelay
	out := &head{limit: MaxOutput + redact.Longest()}
	cmd.Stdout, cmd.Stderr = out, out
	err := cmd.Run()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) && cmd.ProcessState.Success() {
		return nil
	}
	if cmd.Process != nil {
		// What it has begun must not go on beside what follows its failure.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // nothing may be left
	}
	said := redact.Text(out.bytes, MaxOutput)
	if said != "" {
		said = "; it said: " + said
	}
	if errors.Is(context.Cause(ctx), ErrTimeout) {
		return fmt.Errorf("command %s: %w after %v and was killed%s", c.Args[0], ErrTimeout, c.Timeout, said)
	}
	return fmt.Errorf("command %s: %w%s", c.Args[0], err, said)
}

// environment is the agent's own without its tokens.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "KEYTURN_TOKEN=") || strings.HasPrefix(e, "KEYTURN_JOIN_TOKEN=")
	})
}

// head keeps the first bytes written to it. One goroutine of os/exec writes.
type head struct {
	bytes []byte
	limit int
}

// Write implements io.Writer and never fails, so that the command is not
// stopped by a long output.
func (h *head) Write(p []byte) (int, error) {
	h.bytes = append(h.bytes, p[:min(len(p), max(0, h.limit-len(h.bytes)))]...)
	return len(p), nil
}
