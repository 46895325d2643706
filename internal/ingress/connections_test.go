package ingress

import (
	"net"
	"testing"
	"time"
)

// Connections beyond the bounds are closed, those of other addresses let in, and
// one that ends makes room.
func TestConnectionsAreBounded(t *testing.T) {
	inner, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan struct{}, 100)
	l := boundListener(inner, 3, 2, func() { refused <- struct{}{} })
	accepted := make(chan net.Conn, 100)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- conn
		}
	}()
	dial := func(from string) net.Conn {
		t.Helper()
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := dialer.DialContext(t.Context(), "tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	let := func(from string, want bool) net.Conn {
		t.Helper()
		dial(from)
		select {
		case conn := <-accepted:
			if !want {
				t.Fatalf("a connection from %s was let in", from)
			}
			return conn
		case <-refused:
			if want {
				t.Fatalf("a connection from %s was refused", from)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("neither")
		}
		return nil
	}
	first := let("127.0.0.1", true)
	let("127.0.0.1", true)
	let("127.0.0.1", false)
	let("127.0.0.2", true)
	let("127.0.0.3", false) // all places are taken
	_ = first.Close()
	_ = first.Close() // leaves once
	let("127.0.0.3", true)
	let("127.0.0.1", false)
	_ = inner.Close()
	<-accepted
}
