package ingress

import (
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// admission lets few handshakes compute at the same time, in the order in which
// they were asked for. All of a fleet that comes back at once would otherwise
// advance together and finish together: later than anybody waits, so that they
// all begin anew. In turn, the first is served after a moment, and what a fleet
// needs grows with its size and no faster.
//
// A place is taken once the client has said hello, and left when the server has
// computed its answer: a client that is slow, or says nothing, holds none.
type admission struct{ places chan struct{} }

// newAdmission returns one with n places; 0 means one for each processor.
func newAdmission(n int) *admission {
	if n == 0 {
		n = runtime.GOMAXPROCS(0)
	}
	return &admission{places: make(chan struct{}, n)}
}

// queued returns a listener whose connections wait for their turn.
func (a *admission) queued(l net.Listener) net.Listener { return &queuedListener{l, a} }

type queuedListener struct {
	net.Listener
	admission *admission
}

// Accept implements net.Listener.
func (l *queuedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &queuedConn{Conn: conn, admission: l.admission, closed: make(chan struct{})}, nil
}

const (
	// recordHeader is the length of the header of a TLS record (RFC 8446, section 5.1).
	recordHeader = 5
	// recordHandshake is the type of the record that a handshake begins with.
	recordHandshake = 22
)

// answerHello is how long a client that had its turn may take for the rest of its
// handshake. It may have a whole fleet's work of its own to do, and holds no place.
const answerHello = 30 * time.Second

// queuedConn is a connection that waits for its turn once its client's hello has
// arrived.
type queuedConn struct {
	net.Conn
	admission *admission
	closeOnce sync.Once
	closed    chan struct{}

	// What follows belongs to the goroutine that shakes hands, which is the one that
	// reads.

	// header is the beginning of what was read, got how much that is.
	header [recordHeader]byte
	got    int
	// begun: it had its turn, or needs none.
	begun bool

	mu      sync.Mutex
	holding bool
}

// Read implements io.Reader.
func (c *queuedConn) Read(p []byte) (int, error) {
	if c.begun {
		c.leave() // the server has answered, and waits for the client
		return c.Conn.Read(p)
	}
	n, err := c.Conn.Read(p)
	if c.got < recordHeader {
		copy(c.header[c.got:], p[:n])
	}
	c.got += n
	if err != nil || c.got < recordHeader {
		return n, err
	}
	if c.header[0] != recordHandshake {
		c.begun = true
		return n, nil
	}
	if c.got < recordHeader+(int(c.header[3])<<8|int(c.header[4])) {
		return n, nil
	}
	c.begun = true
	if err := c.wait(); err != nil {
		return 0, err // what was read is of no use to anybody
	}
	return n, nil
}

// wait waits for the connection's turn. The time that the client has for its part
// begins then.
func (c *queuedConn) wait() error {
	select {
	case c.admission.places <- struct{}{}: // those that wait are served in their order
	case <-c.closed:
		return net.ErrClosed
	}
	c.mu.Lock()
	c.holding = true
	c.mu.Unlock()
	if hungUp(c.Conn) {
		c.leave()
		return io.ErrUnexpectedEOF // it gave up while it waited
	}
	return c.Conn.SetDeadline(time.Now().Add(answerHello))
}

func (c *queuedConn) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holding {
		c.holding = false
		<-c.admission.places
	}
}

// Close implements net.Conn.
func (c *queuedConn) Close() error {
	c.closeOnce.Do(func() { close(c.closed) })
	c.leave()
	return c.Conn.Close()
}

// hungUp reports whether the other side has closed the connection, after what was
// read of it.
func hungUp(conn net.Conn) bool {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		var one [1]byte
		n, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		gone = n == 0 && err == nil || err != nil && !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR)
	})
	return gone || err != nil
}
