// Package plugin tests the example plugin against real Redis servers: by the
// conformance suite, run as a program and called as a service, and in a rotation
// under load.
package plugin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const adminPassword = "only-for-the-administrator"

// redis is a private server.
type redis struct {
	address string
	process *os.Process
	log     string
}

// startRedis starts a server on a free port and waits until it answers.
func startRedis(t *testing.T) *redis {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatalf("%v; scripts/install-parts installs it", err)
	}
	dir := t.TempDir()
	for range 5 {
		port := freePort(t)
		r := &redis{address: "127.0.0.1:" + port, log: filepath.Join(dir, "redis.log")}
		users := filepath.Join(dir, "users.acl")
		if err := os.WriteFile(users, []byte("user default on >"+adminPassword+" ~* &* +@all\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, "--port", port, "--bind", "127.0.0.1", "--dir", dir, "--save", "", "--aclfile", users, "--logfile", r.log, "--daemonize", "no")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r.process = cmd.Process
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait()
			close(ended)
		}()
		t.Cleanup(func() {
			_ = r.process.Kill()
			<-ended
		})
		if r.answers(ended) {
			return r
		}
	}
	t.Fatal("redis-server does not start")
	return nil
}

// answers waits until the server takes a login or has ended.
func (r *redis) answers(ended <-chan struct{}) bool {
	timeout := time.After(20 * time.Second)
	for {
		if c, err := login(context.Background(), r.address, "default", adminPassword); err == nil {
			c.Close()
			return true
		}
		select {
		case <-ended:
			return false
		case <-timeout:
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// errRefused says that Redis turned a login away.
var errRefused = errors.New("login refused")

// conn is one connection of an application.
type conn struct {
	net.Conn
	answers *bufio.Reader
}

func login(ctx context.Context, address, user, password string) (*conn, error) {
	plain, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: plain, answers: bufio.NewReader(plain)}
	if _, err := c.do("AUTH", user, password); err != nil {
		c.Close()
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	return c, nil
}

// do sends a command whose answer is one line, or one bulk string.
func (c *conn) do(words ...string) (string, error) {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(words))
	for _, w := range words {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(w), w)
	}
	if _, err := io.WriteString(c, b.String()); err != nil {
		return "", err
	}
	line, err := c.answers.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimRight(line, "\r\n")
	if strings.HasPrefix(line, "-") {
		return "", errors.New(line[1:])
	}
	if size, err := strconv.Atoi(strings.TrimPrefix(line, "$")); strings.HasPrefix(line, "$") && err == nil && size >= 0 {
		text := make([]byte, size+2)
		_, err := io.ReadFull(c.answers, text)
		return string(text[:size]), err
	}
	return line, nil
}
