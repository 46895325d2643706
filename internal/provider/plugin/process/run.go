package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/internal/provider/plugin"
)

// command is one process to be.
type command struct {
	path       string
	args, env  []string
	dir        string
	attributes *syscall.SysProcAttr
	input      []byte
}

// outcome is what became of it.
type outcome struct {
	stdout, stderr []byte
	status         syscall.WaitStatus
	// flooded: it wrote too much. held: what it left behind keeps its output open.
	flooded, held bool
	// err: it could not be started or waited for.
	err error
}

// drainWithin is how long output may stay open after the process and its group are
// gone: then somebody outside the group holds it.
const drainWithin = 500 * time.Millisecond

// launcher starts processes from one thread, which lives as long as this process:
// what it starts inherits the thread's umask and no_new_privs, and is killed when
// the thread ends (Pdeathsig), which is when this process does. The zero value is
// ready for use.
type launcher struct {
	once  sync.Once
	tasks chan func()
	err   error
}

// start starts a process.
func (l *launcher) start(c command, p *pipes) (process *os.Process, err error) {
	l.once.Do(func() {
		l.tasks = make(chan func())
		ready := make(chan error)
		go l.serve(ready)
		l.err = <-ready
	})
	if l.err != nil {
		return nil, l.err
	}
	started := make(chan struct{})
	l.tasks <- func() {
		defer close(started)
		process, err = os.StartProcess(c.path, c.args, &os.ProcAttr{
			Dir: c.dir, Env: c.env, Files: []*os.File{p.theirIn, p.theirOut, p.theirErr}, Sys: c.attributes,
		})
	}
	<-started
	return process, err
}

// serve never ends, and with it its thread.
func (l *launcher) serve(ready chan<- error) {
	runtime.LockOSThread()
	// The umask is the thread's own after this. Some containers forbid it; then what
	// is started has this process's.
	if unix.Unshare(unix.CLONE_FS) == nil {
		unix.Umask(0o077)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		ready <- fmt.Errorf("set no_new_privs: %w", err)
		return
	}
	ready <- nil
	for task := range l.tasks {
		task()
	}
}

// run runs a process from beginning to end. It returns soon after ctx ends.
func (l *launcher) run(ctx context.Context, c command) outcome {
	pipes, err := newPipes()
	if err != nil {
		return outcome{err: err}
	}
	defer pipes.closeOurs()
	process, err := l.start(c, pipes)
	pipes.closeTheirs()
	if err != nil {
		return outcome{err: err}
	}
	// No core dumps, and no way to allow them again. It inherits the soft limit of a
	// server, which is 0 already.
	_ = unix.Prlimit(process.Pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil) // it may have ended
	unfinished, flood := context.WithCancel(ctx)
	defer flood()
	ended := make(chan outcome, 1)
	go func() { ended <- await(unfinished, process) }()

	var streams sync.WaitGroup
	out, errs := &capture{most: plugin.MaxAnswer + 1, full: flood}, &tail{most: maxErrors}
	streams.Go(func() {
		_, _ = pipes.stdin.Write(c.input) // a program need not read it; what it says counts
		pipes.stdin.Close()
	})
	streams.Go(func() { _, _ = io.Copy(out, pipes.stdout) }) // how it ended is seen by the status
	drained := make(chan struct{})
	streams.Go(func() { _, _ = io.Copy(errs, pipes.stderr) }) // the same
	go func() {
		streams.Wait()
		close(drained)
	}()

	result := <-ended
	held := false
	timer := time.NewTimer(drainWithin)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
		held = true
		// The ends are pipes in non-blocking mode: a deadline ends their reading.
		for _, end := range []*os.File{pipes.stdin, pipes.stdout, pipes.stderr} {
			_ = end.SetDeadline(time.Unix(1, 0)) // closing follows
		}
		<-drained
	}
	result.stdout, result.stderr, result.held = out.text, errs.text, held
	result.flooded = len(out.text) > plugin.MaxAnswer
	return result
}

// await waits for a process, kills its group when ctx ends, and what is left of
// it in any case.
func await(ctx context.Context, process *os.Process) outcome {
	gone := make(chan struct{})
	var killing sync.WaitGroup
	killing.Go(func() {
		select {
		case <-ctx.Done():
			_ = unix.Kill(-process.Pid, unix.SIGKILL) // the group exists: its leader is not reaped yet
		case <-gone:
		}
	})
	// Waiting without reaping keeps the number of the group ours.
	err := waitWithoutReaping(process.Pid)
	close(gone)
	killing.Wait()
	_ = unix.Kill(-process.Pid, unix.SIGKILL) // what it left behind
	state, waitErr := process.Wait()
	if err = errors.Join(err, waitErr); err != nil {
		return outcome{err: fmt.Errorf("wait for it: %w", err)}
	}
	status, _ := state.Sys().(syscall.WaitStatus)
	return outcome{status: status}
}

func waitWithoutReaping(pid int) error {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// pipes are the three streams of a process, both ends.
type pipes struct {
	stdin, stdout, stderr       *os.File
	theirIn, theirOut, theirErr *os.File
}

func newPipes() (*pipes, error) {
	p := &pipes{}
	var errs [3]error
	p.theirIn, p.stdin, errs[0] = os.Pipe()
	p.stdout, p.theirOut, errs[1] = os.Pipe()
	p.stderr, p.theirErr, errs[2] = os.Pipe()
	if err := errors.Join(errs[:]...); err != nil {
		p.closeOurs()
		p.closeTheirs()
		return nil, fmt.Errorf("open pipes: %w", err)
	}
	return p, nil
}

func (p *pipes) closeOurs() {
	for _, f := range []*os.File{p.stdin, p.stdout, p.stderr} {
		f.Close()
	}
}

func (p *pipes) closeTheirs() {
	for _, f := range []*os.File{p.theirIn, p.theirOut, p.theirErr} {
		f.Close()
	}
}

// capture keeps the beginning of a stream and tells when there is too much.
type capture struct {
	text []byte
	most int
	full func()
}

func (c *capture) Write(p []byte) (int, error) {
	c.text = append(c.text, p[:min(len(p), c.most-len(c.text))]...)
	if len(c.text) == c.most {
		c.full()
	}
	return len(p), nil
}

// tail keeps the end of a stream.
type tail struct {
	text []byte
	most int
}

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	if len(t.text) > 2*t.most {
		t.text = append(t.text[:0], t.text[len(t.text)-t.most:]...)
	}
	return len(p), nil
}
