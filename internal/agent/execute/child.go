package execute

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// child is a running program in a process group of its own.
type child struct {
	cmd *exec.Cmd
	// done is closed when the program has ended.
	done chan struct{}
}

// spawn starts the program with the credentials.
func (p *plan) spawn(c credentials, dir *sharedDir) (*child, error) {
	env, err := p.environ(c)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStart, err)
	}
	contents, err := p.contents(c)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStart, err)
	}
	cmd := exec.Command(p.Command[0], p.Command[1:]...) //nolint:noctx // its end is ours to bring about, gently
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, nil, nil
	if p.Stdin != nil {
		cmd.Stdin = p.Stdin
	}
	if p.Stdout != nil {
		cmd.Stdout = p.Stdout
	}
	if p.Stderr != nil {
		cmd.Stderr = p.Stderr
	}
	defer func() {
		for _, m := range cmd.ExtraFiles {
			_ = m.Close() // the program has its own descriptor
		}
	}()
	for i, f := range p.Files {
		if dir != nil {
			if err := dir.put(f.Name, contents[i]); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrStart, err)
			}
			env = setenv(env, f.Name, dir.file(f.Name))
			continue
		}
		m, err := memoryFile(f.Name, contents[i])
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrStart, err)
		}
		env = setenv(env, f.Name, fmt.Sprintf("/proc/self/fd/%d", firstFD+len(cmd.ExtraFiles)))
		cmd.ExtraFiles = append(cmd.ExtraFiles, m)
	}
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if onTerminal(p.Stdin) {
		cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, int(p.Stdin.Fd())
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStart, err)
	}
	ch := &child{cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // the state says it all
		close(ch.done)
	}()
	return ch, nil
}

// setenv replaces or adds a variable.
func setenv(env []string, name, value string) []string {
	for i, e := range env {
		if strings.HasPrefix(e, name+"=") {
			env[i] = name + "=" + value
			return env
		}
	}
	return append(env, name+"="+value)
}

// exited reports whether the program has ended.
func (c *child) exited() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// code is the exit code after done is closed: 128 plus the signal's number for a
// program that a signal ended, as shells have it.
func (c *child) code() int {
	if status, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return c.cmd.ProcessState.ExitCode()
}

// signal sends s to the program alone.
func (c *child) signal(s os.Signal) error {
	if err := c.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %v to the program: %w", s, err)
	}
	return nil
}

// group sends s to the program and to what it has started in its group.
func (c *child) group(s syscall.Signal) { _ = syscall.Kill(-c.cmd.Process.Pid, s) }

func onTerminal(f *os.File) bool {
	if f == nil {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// takeTerminal makes us the terminal's foreground group again.
func takeTerminal(f *os.File) {
	if !onTerminal(f) {
		return
	}
	signal.Ignore(syscall.SIGTTOU)
	defer signal.Reset(syscall.SIGTTOU)
	_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.TIOCSPGRP, unix.Getpgrp())
}
