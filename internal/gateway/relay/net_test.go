package relay_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/sim/memstore"
	"github.com/keyturn/keyturn/internal/store"
)

// network is a way to one server, in memory, that can be cut.
type network struct {
	mu      sync.Mutex
	server  *http.Server
	listen  *pipes
	conns   map[net.Conn]struct{}
	refuses bool
	dialled int
}

func newNetwork() *network { return &network{conns: map[net.Conn]struct{}{}} }

// serve starts a server in the place of an earlier one.
func (n *network) serve(h http.Handler) {
	n.stop()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listen = &pipes{accept: make(chan net.Conn), closed: make(chan struct{})}
	n.server = &http.Server{Handler: h}
	server, listen := n.server, n.listen
	go func() { _ = server.Serve(listen) }()
}

// stop kills the server.
func (n *network) stop() {
	n.mu.Lock()
	server := n.server
	n.server, n.listen = nil, nil
	n.mu.Unlock()
	if server != nil {
		_ = server.Close()
	}
	n.closeAll()
}

// cut makes the server unreachable, or reachable again; the server runs on.
func (n *network) cut(away bool) {
	n.mu.Lock()
	n.refuses = away
	n.mu.Unlock()
	if away {
		n.closeAll()
	}
}

func (n *network) closeAll() {
	n.mu.Lock()
	conns := n.conns
	n.conns = map[net.Conn]struct{}{}
	n.mu.Unlock()
	for c := range conns {
		_ = c.Close()
	}
}

func (n *network) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	n.mu.Lock()
	n.dialled++
	port := 1000 + n.dialled%60000
	listen, refuses := n.listen, n.refuses
	n.mu.Unlock()
	if listen == nil || refuses {
		return nil, errors.New("connection refused")
	}
	here, there := net.Pipe()
	a, b := addressed{here, port}, addressed{there, port}
	select {
	case listen.accept <- b:
	case <-listen.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	n.mu.Lock()
	n.conns[a], n.conns[b] = struct{}{}, struct{}{}
	n.mu.Unlock()
	return a, nil
}

// client returns a client of the server, and what ends its connections.
func (n *network) client() (*http.Client, func()) {
	t := &http.Transport{DialContext: n.dial}
	return &http.Client{Transport: t}, t.CloseIdleConnections
}

// addressed is a connection with addresses as sockets have them.
type addressed struct {
	net.Conn
	port int
}

func (a addressed) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: a.port}
}

// pipes is a listener.
type pipes struct {
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 8443} }

// disk is a store that outlives the processes that use it. Each has a handle of its own,
// which fails once its process was killed, or at a drawn write.
type disk struct{ *memstore.Store }

type handle struct {
	*disk
	dead atomic.Bool
	// left is how many writes are carried out still; negative: all. What comes then is
	// lost, and so is the process.
	left atomic.Int64
	died chan struct{}
	once sync.Once
	// full fails every write, but the process lives.
	full atomic.Bool
}

func (d *disk) open() *handle {
	h := &handle{disk: d, died: make(chan struct{})}
	h.left.Store(-1)
	return h
}

var errDead = errors.New("the process was killed")

func (h *handle) kill() { h.dead.Store(true); h.once.Do(func() { close(h.died) }) }

func (h *handle) View(ctx context.Context, fn func(store.Tx) error) error {
	if h.dead.Load() {
		return errDead
	}
	return h.disk.View(ctx, fn)
}

func (h *handle) Update(ctx context.Context, fn func(store.Tx) error) error {
	switch {
	case h.dead.Load():
		return errDead
	case h.full.Load():
		return store.ErrFull
	}
	if h.left.Load() >= 0 && h.left.Add(-1) < 0 {
		h.kill()
		return errDead
	}
	return h.disk.Update(ctx, fn)
}

// lock is a keeper that authenticates and does not encrypt.
type lock struct{}

func (lock) Wrap(_ context.Context, dek, aad []byte) (string, []byte, error) {
	return "test", append(mac(dek, aad), dek...), nil
}

func (lock) Unwrap(_ context.Context, kek string, wrapped, aad []byte) ([]byte, error) {
	if kek != "test" {
		return nil, fmt.Errorf("%w: %s", keeper.ErrUnknownKEK, kek)
	}
	if len(wrapped) < sha256.Size || !bytes.Equal(wrapped[:sha256.Size], mac(wrapped[sha256.Size:], aad)) {
		return nil, keeper.ErrCorrupt
	}
	return bytes.Clone(wrapped[sha256.Size:]), nil
}

func mac(dek, aad []byte) []byte {
	h := hmac.New(sha256.New, []byte("lock"))
	h.Write(aad)
	h.Write(dek)
	return h.Sum(nil)
}
