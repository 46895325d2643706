package pgtest

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
)

// Proxy stands between a client and a server and can fall silent, in both
// directions or in one: connections are still made, and then nothing arrives any
// more, as behind a firewall that drops packets. Or it breaks: connections end and
// new ones are refused.
type Proxy struct {
	listener net.Listener
	target   string

	mu    sync.Mutex
	fault fault
	conns map[net.Conn]bool
}

// fault is what a proxy does to its connections.
type fault struct {
	// requests, replies: what the client, or the server, sends is swallowed.
	requests, replies bool
	broken            bool
}

// NewProxy forwards a free port of 127.0.0.1 to target until the test ends.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{listener: listener, target: target, conns: map[net.Conn]bool{}}
	go p.accept()
	t.Cleanup(p.close)
	return p
}

// Addr is where the proxy listens, host:port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Cut makes the proxy fall silent. Neither side hears that the connections there
// are lead nowhere.
func (p *Proxy) Cut() { p.set(fault{requests: true, replies: true}) }

// CutRequests makes it swallow what clients send: the server cannot be reached,
// but what it says by itself arrives.
func (p *Proxy) CutRequests() { p.set(fault{requests: true}) }

// CutReplies makes it swallow what the server sends: it hears, and cannot answer.
func (p *Proxy) CutReplies() { p.set(fault{replies: true}) }

// Break ends all connections and refuses new ones.
func (p *Proxy) Break() { p.set(fault{broken: true}) }

// Restore undoes all of these. Connections there are end; new ones are forwarded.
func (p *Proxy) Restore() { p.set(fault{}) }

func (p *Proxy) set(f fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
	if f == (fault{}) || f.broken {
		p.closeConns()
	}
}

func (p *Proxy) now() fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fault
}

func (p *Proxy) close() {
	_ = p.listener.Close() // ends accept
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closeConns()
}

func (p *Proxy) closeConns() {
	for conn := range p.conns {
		_ = conn.Close() // ends its copying
	}
	clear(p.conns)
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		go p.forward(client)
	}
}

func (p *Proxy) forward(client net.Conn) {
	p.mu.Lock()
	p.conns[client] = true
	f := p.fault
	p.mu.Unlock()
	switch {
	case f.broken:
		_ = client.Close() // as a connection that is reset
		return
	case f.requests && f.replies:
		return // held open and silent until Restore or the end
	}
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		_ = client.Close() // as a refused connection would look
		return
	}
	p.mu.Lock()
	alive := p.conns[client] // it may have been ended meanwhile
	if alive {
		p.conns[server] = true
	}
	p.mu.Unlock()
	if !alive {
		_ = server.Close()
		return
	}
	go p.copy(server, client, func(f fault) bool { return f.requests })
	p.copy(client, server, func(f fault) bool { return f.replies })
}

// copy forwards until either side ends; what arrives while it is cut is swallowed.
func (p *Proxy) copy(to, from net.Conn, cut func(fault) bool) {
	buffer := make([]byte, 16<<10)
	for {
		n, err := from.Read(buffer)
		if cut(p.now()) {
			if err != nil {
				return
			}
			continue
		}
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				_ = from.Close()
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				_ = from.Close()
			}
			_ = to.Close()
			return
		}
	}
}
