package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Signal tells a process to read its files again. Exactly one of PIDFile and
// Process is set.
type Signal struct {
	Number unix.Signal
	// PIDFile holds the process's number in its first line.
	PIDFile string
	// Process is the name as in /proc/PID/comm (at most 15 bytes are compared).
	// Of a tree of processes with that name the topmost gets the signal.
	Process string
}

// ParseSignal reads a name such as "HUP" or "SIGHUP".
func ParseSignal(name string) (unix.Signal, error) {
	full := strings.ToUpper(name)
	if !strings.HasPrefix(full, "SIG") {
		full = "SIG" + full
	}
	if n := unix.SignalNum(full); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("unknown signal %q; write for example SIGHUP", name)
}

// Send sends the signal. It wraps ErrNotRunning when there is no such process.
func (s Signal) Send(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.PIDFile != "" {
		return s.toPIDFile()
	}
	return s.toName()
}

func (s Signal) toPIDFile() error {
	text, err := os.ReadFile(s.PIDFile)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: there is no pid file %s", ErrNotRunning, s.PIDFile)
	}
	if err != nil {
		return fmt.Errorf("read pid file: %w", err)
	}
	info, err := os.Stat(s.PIDFile)
	if err != nil {
		return fmt.Errorf("look at pid file: %w", err)
	}
	first, _, _ := bytes.Cut(bytes.TrimSpace(text), []byte("\n"))
	pid, err := strconv.Atoi(strings.TrimSpace(string(first[:min(len(first), 20)])))
	if err != nil || pid <= 1 {
		return fmt.Errorf("pid file %s does not begin with a process number greater than 1", s.PIDFile)
	}
	err = s.to(pid, func() error {
		started, err := startTime(pid)
		if err != nil {
			return err
		}
		if started.After(info.ModTime().Add(2 * time.Second)) {
			return fmt.Errorf("%w: process %d is younger than pid file %s, which is a leftover", ErrNotRunning, pid, s.PIDFile)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("signal %s to pid file %s: %w", unix.SignalName(s.Number), s.PIDFile, err)
	}
	return nil
}

func (s Signal) toName() error {
	pids, err := topmost(s.Process)
	if err != nil {
		return err
	}
	if len(pids) == 0 {
		return fmt.Errorf("%w: no process is called %q", ErrNotRunning, s.Process)
	}
	for _, pid := range pids {
		err := s.to(pid, func() error {
			if p, err := readProcess(pid); err != nil || p.name != comm(s.Process) {
				return ErrNotRunning
			}
			return nil
		})
		if err != nil && !errors.Is(err, ErrNotRunning) {
			return fmt.Errorf("signal %s to process %d (%s): %w", unix.SignalName(s.Number), pid, s.Process, err)
		}
	}
	return nil
}

// to signals pid if check agrees once the process can no longer be mistaken.
func (s Signal) to(pid int, check func() error) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: there is no process %d", ErrNotRunning, pid)
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := check(); err != nil {
		return err
	}
	switch err := unix.PidfdSendSignal(fd, s.Number, nil, 0); {
	case errors.Is(err, unix.ESRCH):
		return fmt.Errorf("%w: process %d has just ended", ErrNotRunning, pid)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("process %d: %w; run the agent as the same user or with CAP_KILL", pid, err)
	case err != nil:
		return fmt.Errorf("process %d: %w", pid, err)
	}
	return nil
}

type process struct {
	name   string
	parent int
	// startTicks counts clock ticks (1/100 s) since the machine started.
	startTicks int64
	zombie     bool
}

func readProcess(pid int) (process, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return process{}, fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	return parseStat(string(b))
}

// parseStat reads a line of /proc/PID/stat (proc(5)). The name stands in
// parentheses and may itself contain some.
func parseStat(line string) (process, error) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return process{}, errors.New("unexpected form of /proc/PID/stat")
	}
	fields := strings.Fields(line[end+1:])
	if len(fields) < 20 {
		return process{}, errors.New("unexpected form of /proc/PID/stat")
	}
	parent, err1 := strconv.Atoi(fields[1])
	ticks, err2 := strconv.ParseInt(fields[19], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return process{}, fmt.Errorf("unexpected form of /proc/PID/stat: %w", err)
	}
	return process{name: line[open+1 : end], parent: parent, startTicks: ticks, zombie: fields[0] == "Z"}, nil
}

// startTime returns when the process started, to 10 ms.
func startTime(pid int) (time.Time, error) {
	p, err := readProcess(pid)
	if err != nil {
		return time.Time{}, err
	}
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}, fmt.Errorf("read the machine's start time: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if text, ok := strings.CutPrefix(line, "btime "); ok {
			seconds, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			if err != nil {
				break
			}
			return time.Unix(seconds, 0).Add(time.Duration(p.startTicks) * 10 * time.Millisecond), nil
		}
	}
	return time.Time{}, errors.New("/proc/stat has no start time")
}

func comm(name string) string { return name[:min(len(name), 15)] }

// topmost returns the processes of that name whose parent has another name.
func topmost(name string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	named := make(map[int]process)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if p, err := readProcess(pid); err == nil && p.name == comm(name) && !p.zombie {
			named[pid] = p
		}
	}
	var top []int
	for pid, p := range named {
		if _, inner := named[p.parent]; !inner {
			top = append(top, pid)
		}
	}
	slices.Sort(top)
	return top, nil
}
