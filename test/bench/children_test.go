package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime/pprof"
	"sync"
	"testing"
)

// The roles of child processes.
const (
	roleKeyturn = "keyturn" // agents that are clients of Keyturn
	roleBare    = "bare"    // agents that read fixed messages from HTTP/2 streams
	roleServer  = "server"  // a server of Keyturn
)

// runChild is the main function of a child process: its orders are the first thing
// on its standard input, and it ends when that closes, as it does with its parent,
// however that ended.
func runChild(role string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	read := func(orders any) error {
		if err := json.NewDecoder(os.Stdin).Decode(orders); err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			cancel()
		}()
		return nil
	}
	if path := os.Getenv("KEYTURN_BENCH_CHILD_PROFILE"); path != "" {
		f, err := os.Create(fmt.Sprintf("%s.%s.%d", path, role, os.Getpid()))
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	switch role {
	case roleKeyturn, roleBare:
		var o orders
		if err := read(&o); err != nil {
			return err
		}
		return runAgents(ctx, role, o)
	case roleServer:
		var o serverOrders
		if err := read(&o); err != nil {
			return err
		}
		return runServer(ctx, o)
	}
	return fmt.Errorf("%s=%s is no role of a child process", childVariable, role)
}

// child is a process that plays another part of this test binary.
type child struct {
	pid int
	// stop tells it to end, and waits until it has.
	stop func()
}

// startChild starts one and gives it its orders. What it prints goes to next, in a
// goroutine, until next returns an error or the child has ended.
func startChild(b *testing.B, role string, orders any, next func(*json.Decoder) error) *child {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	command := exec.Command(self)
	command.Env = append(os.Environ(), childVariable+"="+role)
	command.Stderr = os.Stderr
	in, err := command.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := command.Start(); err != nil {
		b.Fatal(err)
	}
	var once sync.Once
	read := make(chan struct{})
	stop := func() {
		_ = in.Close() // tells it to end
		<-read
		_ = command.Wait() // it was told to end
	}
	b.Cleanup(func() { once.Do(stop) })
	go func() {
		defer close(read)
		for decoder := json.NewDecoder(bufio.NewReader(out)); next(decoder) == nil; {
			continue
		}
		_, _ = io.Copy(io.Discard, out) // the child may print while it ends
	}()
	if err := json.NewEncoder(in).Encode(orders); err != nil {
		b.Fatal(err)
	}
	return &child{pid: command.Process.Pid, stop: func() { once.Do(stop) }}
}
