package real

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
)

// flooder sends from an address of its own on loopback.
type flooder struct {
	w      *world
	dialer *net.Dialer
	token  string
}

func (f *flooder) dial(ctx context.Context) (net.Conn, error) {
	return f.dialer.DialContext(ctx, "tcp", f.w.config.Listen)
}

func (f *flooder) tls(ctx context.Context, protocol string) (net.Conn, error) {
	raw, err := f.dial(ctx)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{RootCAs: f.w.roots, ServerName: "127.0.0.1", NextProtos: []string{protocol}})
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}

func (f *flooder) client(token string) *http.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: f.w.roots}, ForceAttemptHTTP2: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return f.dialer.DialContext(ctx, network, address)
	}}
	return &http.Client{Transport: bearer{token, transport}}
}

// resident is the memory of a process, in bytes: now, or its most (VmRSS, VmHWM).
func resident(t *testing.T, pid int, field string) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("/proc/%d/status has no %s", pid, field)
	return 0
}

// patient is a client that means well and measures how it is served.
type patient struct {
	mu    sync.Mutex
	times []time.Duration
	err   error
}

func (p *patient) run(ctx context.Context, control keyturnv1connect.ControlServiceClient) {
	for ctx.Err() == nil {
		began := time.Now()
		_, err := control.ListKeys(context.WithoutCancel(ctx), &keyturnv1.ListKeysRequest{})
		p.mu.Lock()
		p.times = append(p.times, time.Since(began))
		p.err = errors.Join(p.err, err)
		p.mu.Unlock()
	}
}

// take returns the p99 since the last call.
func (p *patient) take(t *testing.T) time.Duration {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil || len(p.times) == 0 {
		t.Fatalf("%d calls, %v", len(p.times), p.err)
	}
	slices.Sort(p.times)
	p99 := p.times[len(p.times)*99/100]
	p.times = nil
	return p99
}

// together runs fn n times at once until ctx ends.
func together(ctx context.Context, n int, fn func(ctx context.Context, i int)) {
	var running sync.WaitGroup
	for i := range n {
		running.Go(func() {
			for ctx.Err() == nil {
				fn(ctx, i)
			}
		})
	}
	running.Wait()
}

// TestFloods: whatever one client sends, the server's memory stays bounded, others
// are served, its log stays short, and afterwards everything is as before.
func TestFloods(t *testing.T) {
	w := newSystems(t)
	w.config.Limits.ConnectionsPerAddress, w.config.Limits.StreamsPerToken = 600, 300
	w.config.Log.Level = "info"
	w.config.Limits.PerSecond, w.config.Limits.Burst = 1e6, 1_000_000 // what they bound has tests of its own
	child := w.startChild(t, childConfig{})
	w.apply(t, quickPolicy+"---\n"+w.keyDocument(w.primary.Addr()))
	token, err := w.control.CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{Name: "flood", Role: "admin", Keys: []string{"**"}})
	if err != nil {
		t.Fatal(err)
	}
	f := &flooder{w: w, token: token.GetToken(), dialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}}
	good := &patient{}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go good.run(ctx, w.control)
	calm := func() time.Duration {
		timer := time.NewTimer(time.Second)
		defer timer.Stop()
		<-timer.C
		return good.take(t)
	}
	before, quiet := calm(), resident(t, child.cmd.Process.Pid, "VmRSS")
	t.Logf("before: p99 %v, %d MiB", before, quiet>>20)
	for _, flood := range []struct {
		name string
		run  func(context.Context, *testing.T)
	}{
		{"wrong tokens", f.wrongTokens},
		{"huge bodies", f.hugeBodies},
		{"compressed bombs", f.bombs},
		{"nested documents", f.nested},
		{"slow headers", f.slowHeaders},
		{"slow bodies", f.slowBodies},
		{"streams that nobody reads", f.unread},
		{"connections", f.connections},
		{"streams that are reset", f.resets},
		{"headers that never end", f.continuations},
		{"headers that refer to large ones", f.references},
		{"pings", f.pings},
		{"settings", f.settings},
		{"updates of windows", f.windows},
		{"empty data", f.emptyData},
	} {
		limited, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		flood.run(limited, t)
		cancel()
		p99 := good.take(t)
		t.Logf("%s: p99 %v, %.1f times that before; %d MiB at most so far", flood.name, p99, float64(p99)/float64(before), resident(t, child.cmd.Process.Pid, "VmHWM")>>20)
		if p99 > max(100*before, 5*time.Second) {
			t.Errorf("%s: another client waits for %v", flood.name, p99)
		}
	}
	if most := resident(t, child.cmd.Process.Pid, "VmHWM"); most > quiet+400<<20 {
		t.Errorf("the server took %d MiB", most>>20)
	}
	if n := strings.Count(w.logs.String(), "\n"); n > 300 {
		t.Errorf("the floods left %d lines in the log", n)
	}
	eventually(t, "the other client is served as before", func() bool { return calm() < max(10*before, 100*time.Millisecond) })
	if _, err := keyturnv1connect.NewControlServiceClient(f.client(f.token), w.address()).ListKeys(t.Context(), &keyturnv1.ListKeysRequest{}); err != nil {
		t.Errorf("the flooder, once it is quiet: %v", err)
	}
}

func (f *flooder) wrongTokens(ctx context.Context, _ *testing.T) {
	client := keyturnv1connect.NewControlServiceClient(f.client("kt_wrong"), f.w.address())
	together(ctx, 16, func(ctx context.Context, _ int) { _, _ = client.ListKeys(ctx, &keyturnv1.ListKeysRequest{}) })
}

func (f *flooder) post(ctx context.Context, client *http.Client, procedure string, header http.Header, body io.Reader) (int, string) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, f.w.address()+procedure, body)
	if err != nil {
		return 0, err.Error()
	}
	request.Header = header
	response, err := client.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10)) // what it says so far
	return response.StatusCode, string(text)
}

// endless is a body that never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func (f *flooder) hugeBodies(ctx context.Context, _ *testing.T) {
	client := f.client(f.token)
	together(ctx, 8, func(ctx context.Context, _ int) {
		f.post(ctx, client, keyturnv1connect.ControlServiceApplyProcedure, http.Header{"Content-Type": {"application/proto"}}, endless{})
	})
}

func (f *flooder) bombs(ctx context.Context, t *testing.T) {
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	for range 256 { // 256 MiB
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	client := f.client(f.token)
	send := func(ctx context.Context) string {
		_, text := f.post(ctx, client, keyturnv1connect.ControlServiceApplyProcedure,
			http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}}, bytes.NewReader(bomb.Bytes()))
		return text
	}
	says(t, "the answer to a bomb", send(t.Context()), "resource_exhausted")
	together(ctx, 4, func(ctx context.Context, _ int) { send(ctx) })
}

func (f *flooder) nested(ctx context.Context, _ *testing.T) {
	client := keyturnv1connect.NewControlServiceClient(f.client(f.token), f.w.address())
	deep := []byte(strings.Repeat("[", 1<<20))
	json := []byte(`{"documents":` + strings.Repeat(`[{"documents":`, 100_000))
	together(ctx, 4, func(ctx context.Context, i int) {
		if i%2 == 0 {
			_, _ = client.Apply(ctx, &keyturnv1.ApplyRequest{Documents: []*keyturnv1.Document{{Name: "deep.yaml", Content: deep}}})
			return
		}
		f.post(ctx, f.client(f.token), keyturnv1connect.ControlServiceApplyProcedure, http.Header{"Content-Type": {"application/json"}}, bytes.NewReader(json))
	})
}

// hold keeps what open returns open until ctx ends.
func hold(ctx context.Context, n int, open func(i int) io.Closer) {
	var kept []io.Closer
	for i := 0; i < n && ctx.Err() == nil; i++ {
		if c := open(i); c != nil {
			kept = append(kept, c)
		}
	}
	<-ctx.Done()
	for _, c := range kept {
		_ = c.Close()
	}
}

func (f *flooder) slowHeaders(ctx context.Context, _ *testing.T) {
	hold(ctx, 300, func(int) io.Closer {
		conn, err := f.tls(ctx, "http/1.1")
		if err != nil {
			return nil
		}
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nX-")
		return conn
	})
}

func (f *flooder) slowBodies(ctx context.Context, _ *testing.T) {
	hold(ctx, 300, func(int) io.Closer {
		conn, err := f.tls(ctx, "http/1.1")
		if err != nil {
			return nil
		}
		_, _ = io.WriteString(conn, "POST "+keyturnv1connect.ControlServiceApplyProcedure+" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\nAuthorization: Bearer "+f.token+"\r\n\r\n{")
		return conn
	})
}

// unread opens streams and reads none of their answers.
func (f *flooder) unread(_ context.Context, t *testing.T) {
	client := keyturnv1connect.NewDeliveryServiceClient(f.client(f.token), f.w.address())
	streams, cancel := context.WithCancel(t.Context())
	defer cancel()
	var refused, open atomic.Int64
	var running sync.WaitGroup
	for i := range 600 {
		running.Go(func() {
			stream, err := client.Watch(streams, &keyturnv1.WatchRequest{Party: &keyturnv1.Party{Id: fmt.Sprint("flood-", i), Kind: keyturnv1.PartyKind_PARTY_KIND_CLIENT}, Keys: []*keyturnv1.Known{{Key: keyName}}})
			if err != nil {
				return
			}
			switch {
			case stream.Receive():
				open.Add(1)
				<-streams.Done()
			case connect.CodeOf(stream.Err()) == connect.CodeResourceExhausted:
				refused.Add(1)
			}
		})
	}
	eventually(t, "the streams of one token are refused", func() bool { return refused.Load() > 100 })
	cancel()
	running.Wait()
	if open.Load() > 300 {
		t.Errorf("of 600 streams of one token %d were refused, %d open", refused.Load(), open.Load())
	}
}

func (f *flooder) connections(ctx context.Context, t *testing.T) {
	open := 0
	hold(ctx, 1500, func(int) io.Closer {
		conn, err := f.dial(ctx)
		if err != nil {
			return nil
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			open++
		}
		return conn
	})
	if open > 620 {
		t.Errorf("%d connections of one address are open", open)
	}
}
