package real

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A process can be stopped before each of its system calls that change something
// outside of it, without anything in it that knows of that: it asks the kernel to
// let its parent decide (seccomp_unotify(2)). Killed there, it has done all that
// came before, and not this call.

// filtered are the calls that wait for the parent; openat only where it creates.
var filtered = map[uint32]string{
	unix.SYS_OPENAT: "create", unix.SYS_FCHMOD: "chmod", unix.SYS_FSYNC: "fsync", unix.SYS_LINKAT: "link", unix.SYS_RENAMEAT: "rename",
	unix.SYS_UNLINKAT: "unlink", unix.SYS_PIDFD_SEND_SIGNAL: "signal", unix.SYS_CONNECT: "connect",
}

// further are calls that wait only if superviseMe was asked for them.
var further = map[uint32]string{
	unix.SYS_PWRITE64: "pwrite", unix.SYS_FDATASYNC: "fdatasync", unix.SYS_FTRUNCATE: "truncate", unix.SYS_UNLINK: "unlink",
	unix.SYS_RENAME: "rename", unix.SYS_WRITE: "write",
}

// Offsets in struct seccomp_data, on a little-endian machine.
const (
	dataNumber = 0
	dataFlags  = 16 + 2*8 // of openat
)

// superviseMe makes the calls of this process wait, and some of the further ones, and gives the right to decide
// on them to whoever is at the other end of the socket.
func superviseMe(socket int, more ...uint32) error {
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	give := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	program := []unix.SockFilter{
		load(dataNumber),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_OPENAT, Jf: 4},
		load(dataFlags),
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: unix.O_CREAT, Jf: 1},
		give(unix.SECCOMP_RET_USER_NOTIF),
		give(unix.SECCOMP_RET_ALLOW),
	}
	for _, number := range append(slices.Collect(maps.Keys(filtered)), more...) {
		if number != unix.SYS_OPENAT {
			program = append(
				program,
				unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: number, Jf: 1},
				give(unix.SECCOMP_RET_USER_NOTIF),
			)
		}
	}
	program = append(program, give(unix.SECCOMP_RET_ALLOW))

	runtime.LockOSThread() // both calls belong to one thread; the second is for all
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&filter)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	if err := unix.Sendmsg(socket, []byte{0}, unix.UnixRights(int(fd)), nil, 0); err != nil {
		return fmt.Errorf("give the listener away: %w", err)
	}
	return errors.Join(unix.Close(int(fd)), unix.Close(socket))
}

// notification is struct seccomp_notif, and verdict struct seccomp_notif_resp.
type (
	notification struct {
		id          uint64
		pid, flags  uint32
		number      uint32
		arch        uint32
		instruction uint64
		args        [6]uint64
	}
	verdict struct {
		id    uint64
		value int64
		err   int32
		flags uint32
	}
)

// call is a system call that waits: what it does, to what.
type call struct{ what, to string }

func (c call) String() string { return c.what + " " + c.to }

// supervisor decides on the calls of one process.
type supervisor struct {
	// names are those of files for the prefixes of their temporary files.
	names map[string]string

	mu sync.Mutex
	// seen, if not nil, is asked about every call, while the call waits.
	seen func(call)
}

// look sets who is asked about calls; nil lets them all pass.
func (s *supervisor) look(seen func(call)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = seen
}

// socketPair is the way of the listener from the child to its parent.
func socketPair(t *testing.T) (parent int, child *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fds[0], os.NewFile(uintptr(fds[1]), "supervisor")
}

// receive takes the listener that superviseMe sends.
func receive(socket int) (int, error) {
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), control, 0)
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return 0, fmt.Errorf("it sent no listener: %w", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, err
	}
	return fds[0], nil
}

// run decides until the last process with the filter has ended.
func (s *supervisor) run(listener int) {
	defer unix.Close(listener)
	for {
		poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); errors.Is(err, unix.EINTR) {
			continue
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			return
		}
		var n notification
		if err := control(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); err != nil {
			continue // it was killed between
		}
		s.mu.Lock()
		seen := s.seen
		s.mu.Unlock()
		if seen != nil {
			seen(s.describe(n))
		}
		v := verdict{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		// It fails when the process was killed while it waited.
		_ = control(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&v))
	}
}

func control(fd int, request uintptr, argument unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}

// describe names the file that a call is about, a temporary one by what it is for.
func (s *supervisor) describe(n notification) call {
	c := call{what: filtered[n.number] + further[n.number]}
	switch n.number {
	case unix.SYS_FCHMOD, unix.SYS_FSYNC, unix.SYS_PWRITE64, unix.SYS_FDATASYNC, unix.SYS_FTRUNCATE, unix.SYS_WRITE:
		path, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", n.pid, n.args[0]))
		if c.to = s.name(path); strings.HasPrefix(path, "socket:") {
			c.to = "socket"
		}
	case unix.SYS_UNLINK:
		c.to = s.name(text(n.pid, n.args[0]))
	case unix.SYS_RENAME:
		c.to = s.name(text(n.pid, n.args[0])) + " to " + s.name(text(n.pid, n.args[1]))
	case unix.SYS_OPENAT, unix.SYS_UNLINKAT:
		c.to = s.name(text(n.pid, n.args[1]))
	case unix.SYS_LINKAT, unix.SYS_RENAMEAT:
		c.to = s.name(text(n.pid, n.args[1])) + " to " + s.name(text(n.pid, n.args[3]))
	case unix.SYS_PIDFD_SEND_SIGNAL:
		c.to = unix.SignalName(unix.Signal(n.args[1]))
	case unix.SYS_CONNECT:
		c.to = port(n.pid, n.args[1])
	}
	return c
}

func (s *supervisor) name(path string) string {
	base := filepath.Base(path)
	for prefix, name := range s.names {
		if strings.HasPrefix(base, prefix) {
			return "temporary " + name
		}
	}
	return base
}

// temporaries are the prefixes that package place gives to temporary files.
func temporaries(names ...string) map[string]string {
	prefixes := make(map[string]string)
	for _, name := range names {
		sum := sha256.Sum256([]byte(name))
		prefixes[".keyturn-"+hex.EncodeToString(sum[:6])+"-"] = name
	}
	return prefixes
}

// text reads a string of another process.
func text(pid uint32, at uint64) string {
	b := memory(pid, at, 256)
	if end := bytes.IndexByte(b, 0); end >= 0 {
		b = b[:end]
	}
	return string(b)
}

// port is that of an IPv4 address in another process.
func port(pid uint32, at uint64) string {
	if b := memory(pid, at, 4); len(b) == 4 && b[0] == unix.AF_INET {
		return strconv.Itoa(int(b[2])<<8 | int(b[3]))
	}
	return "elsewhere"
}

func memory(pid uint32, at uint64, size int) []byte {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil
	}
	defer f.Close()
	b := make([]byte, size)
	n, _ := f.ReadAt(b, int64(at))
	return b[:n]
}

// TestSupervisedCalls: what a process does is seen in its order, before it is done.
func TestSupervisedCalls(t *testing.T) {
	t.Parallel()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, number, _ := net.SplitHostPort(listener.Addr().String())
	var seen []string
	s := &supervisor{names: temporaries("x")}
	path := filepath.Join(t.TempDir(), "x")
	s.look(func(c call) {
		if c.what == "create" {
			if _, err := os.Stat(path); err == nil {
				t.Error("it was created before the call was let through")
			}
		}
		seen = append(seen, c.String())
	})
	p := supervise(t, s, t.Output(), callsVariable+"="+path+" "+listener.Addr().String())
	<-p.done
	if got, want := strings.Join(seen, ", "), "create x, fsync x, connect "+number+", unlink x"; got != want {
		t.Errorf("seen was %s, want %s", got, want)
	}
}

// callsVariable makes this program do what TestSupervisedCalls looks at.
const callsVariable = "KEYTURN_TEST_CALLS"

func makeCalls(argument string) int {
	path, address, _ := strings.Cut(argument, " ")
	err := superviseMe(supervisorSocket)
	if err == nil {
		err = makeEachCall(context.Background(), path, address)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func makeEachCall(ctx context.Context, path, address string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp4", address)
	if err != nil {
		return err
	}
	return errors.Join(conn.Close(), syscall.Unlink(path))
}
