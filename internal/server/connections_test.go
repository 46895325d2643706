package server

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
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

// A stream whose client does not read ends, one whose client reads slowly goes on.
func TestStreamsThatNobodyReadsEnd(t *testing.T) {
	for _, path := range []string{"/Watch", "/Backup"} {
		t.Run(path, func(t *testing.T) { streamThatNobodyReads(t, path) })
	}
}

func streamThatNobodyReads(t *testing.T, path string) {
	t.Helper()
	g := newGate()
	g.times["/Backup"] = time.Hour
	g.stall = 200 * time.Millisecond
	ended := make(chan error, 1)
	srv := httptest.NewUnstartedServer(g.wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		piece := bytes.Repeat([]byte("x"), 64<<10)
		for {
			if _, err := w.Write(piece); err != nil {
				ended <- err
				return
			}
			if err := http.NewResponseController(w).Flush(); err != nil {
				ended <- err
				return
			}
		}
	})))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+path, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := srv.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	for range 20 { // slowly
		if _, err := io.ReadFull(answer.Body, make([]byte, 1<<20)); err != nil {
			t.Fatalf("a client that reads was cut off: %v", err)
		}
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the stream of a client that does not read goes on for ever")
	}
}

// What is too large is not decompressed to its end.
func TestBombsAreNotInflated(t *testing.T) {
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	for range 64 {
		_, _ = w.Write(make([]byte, 1<<20)) // a buffer takes everything
	}
	_ = w.Close() // the same
	r := &inflater{most: 1 << 20}
	for range 2 {
		if err := r.Reset(bytes.NewReader(bomb.Bytes())); err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, r)
		if n != 1<<20+1 || !errors.Is(err, errInflated) {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
}

// A flood leaves one line a minute.
func TestTallyIsBounded(t *testing.T) {
	var log strings.Builder
	now := time.Unix(0, 0)
	tally := newTally(slog.New(slog.NewTextHandler(&log, nil)), func() time.Time { return now })
	for range 10_000 {
		tally.add("refused", "lastFrom", "192.0.2.1")
	}
	now = now.Add(time.Minute)
	tally.add("refused")
	if lines := strings.Count(log.String(), "\n"); lines != 2 || !strings.Contains(log.String(), "times=10000") {
		t.Errorf("%d lines:\n%s", lines, log.String())
	}
}
