package server

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// stallTimeout is how long a client may take to read one piece of a stream.
const stallTimeout = 30 * time.Second

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
		address := addressOf(&http.Request{RemoteAddr: conn.RemoteAddr().String()})
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

// streamWriter ends a stream whose client does not read. It answers pings, so the
// connection looks well.
type streamWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	within  time.Duration
}

// Unwrap lets http.ResponseController find what is beneath.
func (w *streamWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Write implements io.Writer.
func (w *streamWriter) Write(p []byte) (int, error) {
	defer w.limit().Stop()
	return w.ResponseWriter.Write(p)
}

// Flush implements http.Flusher.
func (w *streamWriter) Flush() { _ = w.FlushError() } // the next write tells

// FlushError implements what http.ResponseController looks for.
func (w *streamWriter) FlushError() error {
	defer w.limit().Stop()
	return w.control.Flush()
}

func (w *streamWriter) limit() *time.Timer {
	return time.AfterFunc(w.within, func() {
		_ = w.control.SetWriteDeadline(time.Now()) // the connection is gone if this fails
	})
}
