package ingress

import (
	"errors"
	"net"
	"sync"
	"syscall"
)

// ListenerConfig says how a listener is bounded.
type ListenerConfig struct {
	// Connections is how many may be open, PerAddress how many of them from one address;
	// of an IPv6 address the network of 64 bits counts. Required.
	Connections, PerAddress int
	// Handshakes is how many of TLS may compute at the same time. Default: one for each
	// processor.
	Handshakes int
	// Refused is told of each connection that was closed because there were too many; it
	// must not block. Required.
	Refused func()
}

// Bound returns a listener whose connections are bounded. Those beyond the
// bounds are closed as soon as they come. Handshakes are computed in the order in
// which clients said hello, a few at the same time, so that a fleet that comes back
// at once is served one after another; a client that is slow, or says nothing, holds
// up nobody. What does not begin with a handshake waits for none, so that a listener
// without TLS can be bounded as well.
func Bound(l net.Listener, config ListenerConfig) net.Listener {
	return newAdmission(config.Handshakes).queued(boundListener(l, config.Connections, config.PerAddress, config.Refused))
}

// boundedListener closes connections beyond its bounds as soon as they come, so
// that no flood of them takes memory or file descriptors.
type boundedListener struct {
	net.Listener
	// most is how many connections may be open, perAddress how many from one address.
	most, perAddress int
	// refused is told of each one that was closed; it must not block.
	refused func()

	mu   sync.Mutex
	open int
	from map[string]int
}

func boundListener(l net.Listener, most, perAddress int, refused func()) *boundedListener {
	return &boundedListener{Listener: l, most: most, perAddress: perAddress, refused: refused, from: map[string]int{}}
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address := subscriberOf(hostOf(conn.RemoteAddr().String()))
		if l.enter(address) {
			return &boundedConn{Conn: conn, leave: sync.OnceFunc(func() { l.leave(address) })}, nil
		}
		_ = conn.Close() // it was not let in
		l.refused()
	}
}

func (l *boundedListener) enter(address string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.most || l.from[address] >= l.perAddress {
		return false
	}
	l.open++
	l.from[address]++
	return true
}

func (l *boundedListener) leave(address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.from[address]--; l.from[address] == 0 {
		delete(l.from, address)
	}
}

type boundedConn struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// SyscallConn gives access to the socket beneath, if there is one.
func (c *boundedConn) SyscallConn() (syscall.RawConn, error) {
	conn, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return conn.SyscallConn()
}
