package real

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// serverVariable holds a childConfig as JSON.
const serverVariable = "KEYTURN_TEST_SERVER"

// childConfig says how to run a server as a process of its own.
type childConfig struct {
	Server server.Config
	// Later is how much the server's clock is ahead.
	Later time.Duration
}

// stop is a point at which a server stands still for ever, told to it as a line
// of JSON.
type stop struct {
	Op, Endpoint string
	Version      uint64
	After        bool
	// Deaf lets the effect go on when it is released, as if its context had not
	// ended: what is on its way through a network cannot be called back.
	Deaf bool
}

// release is the stop that lets a deaf effect go on.
var release = stop{Op: "release"}

func (s stop) is(here point) bool {
	return here.op == s.Op && here.endpoint == s.Endpoint && here.after == s.After && (s.Version == 0 || uint64(here.version) == s.Version)
}

// The lines that a server process prints; its parent is the only reader.
const (
	sayReady    = "ready "   // with its address
	sayStanding = "standing" // it has heard of its next stop
	sayReached  = "reached"  // it stands there
	sayMinted   = "minted "  // with what it mints
)

// childServer runs a server until its standard input ends. Each line that it
// reads is its next stop.
func childServer(encoded string) int {
	var config childConfig
	if err := json.Unmarshal([]byte(encoded), &config); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var next atomic.Pointer[stop]
	released := make(chan struct{}, 1)
	driver := newTap()
	driver.stand(func(ctx context.Context, here point) error {
		if here.op == "mint" && here.after {
			for _, v := range driver.mintedAs(uint64(here.version)) {
				line, err := json.Marshal(v)
				if err != nil {
					return err
				}
				fmt.Println(sayMinted + string(line))
			}
		}
		if at := next.Load(); at == nil || !at.is(here) {
			return nil
		}
		deaf := next.Swap(nil).Deaf
		if deaf && !here.after {
			driver.deaf.Store(&here)
		}
		fmt.Println(sayReached)
		if !deaf {
			select {} // until it is killed
		}
		<-released
		return nil
	})
	s, err := server.Start(context.Background(), config.Server, server.Options{
		Drivers: map[string]provider.Driver{"postgres": driver},
		Now:     func() time.Time { return time.Now().Add(config.Later) },
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(sayReady + s.Address())
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var at stop
		if err := json.Unmarshal(lines.Bytes(), &at); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if at == release {
			released <- struct{}{}
		} else {
			next.Store(&at)
		}
		fmt.Println(sayStanding)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// mintedVersion is a version as the child tells it to the test.
type mintedVersion struct {
	Number             uint64
	Username, Password string
}

func (v mintedVersion) version() provider.Version {
	return provider.Version{Number: key.Version(v.Number), Material: provider.Material{
		Attributes: map[string]string{"username": v.Username},
		Secrets:    map[string]secret.Value{"password": secret.NewString(v.Password)},
	}}
}

func (d *tap) mintedAs(v uint64) []mintedVersion {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []mintedVersion
	for _, minted := range d.minted {
		if uint64(minted.Number) == v {
			list = append(list, mintedVersion{v, minted.Material.Attributes["username"], minted.Material.Secrets["password"].RevealString()})
		}
	}
	return list
}

// child is a server that runs as a process of its own.
type child struct {
	cmd               *exec.Cmd
	stdin             io.WriteCloser
	standing, reached chan struct{}
	// done is closed when its standard output has ended.
	done chan struct{}
}

// startChild starts a server process and makes the world's clients of it. What
// it mints is known to w.tap.
func (w *world) startChild(t *testing.T, config childConfig) *child {
	t.Helper()
	config.Server = w.config
	encoded, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	c := &child{standing: make(chan struct{}, 1), reached: make(chan struct{}, 16), done: make(chan struct{})}
	c.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0])
	c.cmd.Env = append(os.Environ(), serverVariable+"="+string(encoded))
	c.cmd.Stderr = w.logs
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.kill(t) })
	ready := make(chan string, 1)
	go func() {
		defer close(c.done)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			switch line := lines.Text(); {
			case strings.HasPrefix(line, sayReady):
				ready <- line[len(sayReady):]
			case strings.HasPrefix(line, sayMinted):
				w.tap.learn(line[len(sayMinted):])
			case line == sayStanding:
				c.standing <- struct{}{}
			case line == sayReached:
				c.reached <- struct{}{}
			}
		}
	}()
	select {
	case address := <-ready:
		w.reach(t, address)
	case <-c.done:
		t.Fatalf("the server ended at its start:\n%s", w.logs.tail(2000))
	}
	return c
}

// stopAt makes the server stand still at a point, once it comes there.
func (c *child) stopAt(t *testing.T, at stop) {
	t.Helper()
	line, err := json.Marshal(at)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.stdin.Write(append(line, '\n')); err != nil {
		t.Fatal(err)
	}
	await(t, "the server hears of its stop", c.standing)
}

// kill ends the server as SIGKILL does; a killed server stays so.
func (c *child) kill(t *testing.T) {
	t.Helper()
	if c.cmd.ProcessState != nil {
		return
	}
	if err := c.cmd.Process.Kill(); err != nil {
		t.Errorf("kill the server: %v", err)
	}
	<-c.done
	_ = c.cmd.Wait() // it was killed
}

// learn takes over what another process minted.
func (d *tap) learn(line string) {
	var v mintedVersion
	if err := json.Unmarshal([]byte(line), &v); err != nil {
		return // the test misses the version, and says so
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.minted = append(d.minted, v.version())
}
