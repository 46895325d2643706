package metadata

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/netutil"

	"github.com/keyturn/keyturn/internal/agent/place"
	"github.com/keyturn/keyturn/secret"
)

// ErrListen: the endpoint cannot be opened; the message says how to mend it.
var ErrListen = errors.New("the endpoint for tokens cannot be opened")

// ErrAddress: an address that is not one of this machine alone.
var ErrAddress = errors.New("write a loopback address with a port, for example 127.0.0.1:8171, or unix:/run/keyturn/tokens.sock")

// Address is where the endpoint listens.
type Address struct {
	// Network is tcp or unix; Address as net.Listen takes it.
	Network, Address string
	// Port is that of tcp.
	Port string
}

// ParseAddress reads an address, and refuses all that others than processes of this
// machine could reach. A name is none: it might resolve to anything.
func ParseAddress(text string) (Address, error) {
	if path, ok := strings.CutPrefix(text, "unix:"); ok {
		// 108 bytes with the last zero is all that Linux takes.
		if !strings.HasPrefix(path, "/") || strings.HasSuffix(path, "/") || len(path) > 107 || strings.ContainsRune(path, 0) {
			return Address{}, ErrAddress
		}
		return Address{Network: "unix", Address: path}, nil
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return Address{}, ErrAddress
	}
	ip := net.ParseIP(host)
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || ip == nil || !ip.IsLoopback() || number == 0 || strconv.FormatUint(number, 10) != port {
		return Address{}, ErrAddress
	}
	return Address{Network: "tcp", Address: net.JoinHostPort(ip.String(), port), Port: port}, nil
}

// Owner says who may use a socket and read the file of the secret.
type Owner struct {
	Mode fs.FileMode
	// UID and GID: -1 leaves the agent's own.
	UID, GID int
}

const (
	maxConnections = 64
	maxHeader      = 8 << 10
)

// Listen opens the address. A socket that an agent has left behind is replaced, one
// that somebody listens on is not.
func Listen(ctx context.Context, a Address, owner Owner) (net.Listener, error) {
	if a.Network == "unix" {
		if err := clear1(ctx, a.Address); err != nil {
			return nil, err
		}
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, a.Network, a.Address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrListen, err)
	}
	if a.Network == "unix" {
		// Until here only who may write as the agent could connect.
		if err := errors.Join(os.Chown(a.Address, owner.UID, owner.GID), os.Chmod(a.Address, owner.Mode)); err != nil {
			_ = l.Close() // it was not used
			return nil, fmt.Errorf("%w: %w", ErrListen, err)
		}
	}
	return netutil.LimitListener(l, maxConnections), nil
}

// clear1 removes a socket that nobody listens on.
func clear1(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrListen, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%w: %s is there, and no socket; give another path", ErrListen, path)
	}
	c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path)
	if err == nil {
		_ = c.Close() // nothing was said
		return fmt.Errorf("%w: somebody listens on %s; does another agent run?", ErrListen, path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("%w: %w", ErrListen, err)
	}
	return nil
}

// Secret makes the secret that processes show, and writes it to a file.
func Secret(path string, owner Owner) (secret.Value, error) {
	value := secret.NewString(rand.Text() + rand.Text())
	to := place.Spec{Path: path, Mode: owner.Mode, UID: owner.UID, GID: owner.GID}
	if err := place.Clean(to); err != nil {
		return secret.Value{}, fmt.Errorf("%w: %w", ErrListen, err)
	}
	staged, err := place.Stage(to, value)
	if err != nil {
		return secret.Value{}, fmt.Errorf("%w: %w", ErrListen, err)
	}
	if err := errors.Join(staged.Commit(), staged.Release()); err != nil {
		return secret.Value{}, fmt.Errorf("%w: %w", ErrListen, err)
	}
	return value, nil
}

// Serve answers on l until ctx ends.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: wait + 10*time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: maxHeader, ErrorLog: log.New(io.Discard, "", 0),
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("%w: %w", ErrListen, err)
	case <-ctx.Done():
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if s.Shutdown(bounded) != nil {
		_ = s.Close() // they have waited long enough
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%w: %w", ErrListen, err)
	}
	return nil
}
