package ingress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener without a network, for use within a bubble.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// processor is the time of one processor, which all that compute share alike.
type processor struct {
	busy atomic.Int64
	most atomic.Int64
}

// spend computes for d, in steps in which the others advance as well.
func (p *processor) spend(d time.Duration) {
	n := p.busy.Add(1)
	defer p.busy.Add(-1)
	for most := p.most.Load(); n > most && !p.most.CompareAndSwap(most, n); most = p.most.Load() {
	}
	const step = time.Millisecond
	for ; d > 0; d -= step {
		<-time.After(step * time.Duration(p.busy.Load()))
	}
}

// stormOf runs a server whose handshakes take cost of one processor, and counts what
// becomes of clients that connect at once.
func stormOf(t *testing.T, clients int, cost time.Duration, queued func(net.Listener) net.Listener) (failed int, last time.Duration, cpu *processor) {
	t.Helper()
	cpu = &processor{}
	config, caFile, err := NewTLS(TLSConfig{Dir: t.TempDir(), Subject: "test", Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	hand := config.GetConfigForClient
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		cpu.spend(cost)
		return hand(hello)
	}
	l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	srv := NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }), slog.New(slog.DiscardHandler))
	srv.TLSConfig = config
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(queued(l), "", "") }()
	roots := rootsOf(t, caFile)
	began := time.Now()
	var failures atomic.Int64
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			transport := &http.Transport{
				DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return l.dial(ctx) },
				TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13},
				TLSHandshakeTimeout: 2 * time.Minute, ForceAttemptHTTP2: true,
			}
			defer transport.CloseIdleConnections()
			for {
				request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://localhost/", http.NoBody)
				if err != nil {
					t.Error(err)
					return
				}
				answer, err := transport.RoundTrip(request)
				if err == nil {
					_ = answer.Body.Close()
					return
				}
				if failures.Add(1) > int64(5*clients) {
					return // enough was seen
				}
				<-time.After(200 * time.Millisecond)
			}
		})
	}
	running.Wait()
	last = time.Since(began)
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	return int(failures.Load()), last, cpu
}

// TestStormIsAdmittedInTurn: a fleet connects at one moment to a server that needs
// longer for all of them than each of them may take. Nobody has to try twice, and
// the last is in when the processor has done what there was to do. Without turns
// nobody comes through: every handshake is cut off half done, and begun again.
func TestStormIsAdmittedInTurn(t *testing.T) {
	const clients, cost = 150, 100 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		failed, last, cpu := stormOf(t, clients, cost, newAdmission(2).queued)
		if failed > 0 || last > clients*cost+time.Second || cpu.most.Load() > 2 {
			t.Errorf("%d tries failed; the last of %d was in after %v; up to %d handshakes at the same time", failed, clients, last, cpu.most.Load())
		}
	})
	synctest.Test(t, func(t *testing.T) {
		if failed, _, _ := stormOf(t, clients, cost, func(l net.Listener) net.Listener { return l }); failed < clients {
			t.Errorf("%d tries failed without turns: this test proves nothing", failed)
		}
	})
}

// TestSlowHandshakesHoldNoPlace: clients that connect and say nothing, half a hello,
// a hello and no more, or something else, keep nobody out; and one that hung up
// while it waited costs nothing.
func TestSlowHandshakesHoldNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		config, caFile, err := NewTLS(TLSConfig{Dir: t.TempDir(), Subject: "test", Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		queue := newAdmission(1)
		srv := NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }), slog.New(slog.DiscardHandler))
		srv.TLSConfig = config
		served := make(chan error, 1)
		go func() { served <- srv.ServeTLS(queue.queued(l), "", "") }()
		// What a real client says first.
		ours, theirs := net.Pipe()
		hello := make([]byte, 4096)
		go func() {
			_ = tls.Client(ours, &tls.Config{ServerName: "localhost", MinVersion: tls.VersionTLS13}).Handshake()
		}()
		n, err := theirs.Read(hello)
		if err != nil {
			t.Fatal(err)
		}
		hello = hello[:n]
		_, _ = ours.Close(), theirs.Close()
		var slow sync.WaitGroup
		for i := range 40 {
			conn, err := l.dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			part := [][]byte{nil, hello[:n/2], hello, []byte("GET / HTTP/1.1\r\n\r\n")}[i%4]
			slow.Go(func() {
				_, _ = conn.Write(part)
				_, _ = io.Copy(io.Discard, conn) // until the server has enough of it
				_ = conn.Close()
			})
		}
		synctest.Wait()
		began := time.Now()
		transport := &http.Transport{
			DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return l.dial(ctx) },
			TLSClientConfig: &tls.Config{RootCAs: rootsOf(t, caFile), MinVersion: tls.VersionTLS13},
		}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://localhost/", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		transport.CloseIdleConnections()
		if took := time.Since(began); took > time.Second {
			t.Errorf("an honest client waited for %v", took)
		}
		slow.Wait()
		if took := time.Since(began); took > answerHello+time.Second {
			t.Errorf("slow clients were kept for %v", took)
		}
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		synctest.Wait()
		if len(queue.places) != 0 {
			t.Error("a place is still held")
		}
	})
}

// TestWhoHungUpIsNotServed: a client that gave up while it waited for its turn gets
// no handshake.
func TestWhoHungUpIsNotServed(t *testing.T) {
	inner, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	queue := newAdmission(1)
	l := queue.queued(boundListener(inner, 10, 10, func() {}))
	defer l.Close()
	queue.places <- struct{}{} // somebody computes
	for _, hangsUp := range []bool{true, false} {
		theirs, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		ours, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := theirs.Write([]byte{recordHandshake, 3, 1, 0, 1, 1}); err != nil {
			t.Fatal(err)
		}
		if hangsUp {
			// What the kernel has not passed on yet comes first: the end is behind it.
			if err := theirs.Close(); err != nil {
				t.Fatal(err)
			}
		}
		read := make(chan error, 1)
		go func() {
			_, err := io.ReadFull(ours, make([]byte, 6))
			read <- err
		}()
		<-queue.places
		if err := <-read; (err != nil) != hangsUp {
			t.Errorf("hung up: %t: %v", hangsUp, err)
		}
		_, _ = theirs.Close(), ours.Close()
		queue.places <- struct{}{}
	}
}

func rootsOf(t *testing.T, caFile string) *x509.CertPool {
	t.Helper()
	pem, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return roots
}
