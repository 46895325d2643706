package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
)

// maxAnswerBytes bounds one answer of the server: 1,000 keys of 64 KiB.
const maxAnswerBytes = 64 << 20

// transport is the delivery API as the rest of the package sees it; tests
// replace it. Its errors went through explain.
type transport interface {
	watch(ctx context.Context, req *keyturnv1.WatchRequest) (stream, error)
	poll(ctx context.Context, req *keyturnv1.PollRequest) (*keyturnv1.PollResponse, error)
	ack(ctx context.Context, req *keyturnv1.AckRequest) error
	report(ctx context.Context, req *keyturnv1.ReportRequest) error
	leave(ctx context.Context, req *keyturnv1.LeaveRequest) error
	join(ctx context.Context, req *keyturnv1.JoinRequest) (*keyturnv1.JoinResponse, error)
	// renew drops the connections there are: the next request dials.
	renew()
	// patience sets how long a server may take to accept a connection.
	patience(d time.Duration)
	// nodes are the servers that requests go to.
	nodes() *servers
	// ready asks a server whether it serves.
	ready(ctx context.Context, server *url.URL) error
}

// stream is an open Watch.
type stream interface {
	// next blocks for the next answer; io.EOF means that the server ended the stream.
	next() (*keyturnv1.WatchResponse, error)
	close()
}

// wire is the transport over Connect.
type wire struct {
	rpc  keyturnv1connect.DeliveryServiceClient
	http *roundTripper
}

// newWire builds the transport of a checked Config. token may be nil: Join has none.
func newWire(cfg Config) (*wire, error) {
	list, err := newServers(cfg.Address)
	if err != nil {
		return nil, err
	}
	rt := &roundTripper{token: cfg.Token, now: cfg.Now, servers: list}
	if cfg.HTTPClient != nil {
		fixed := *cfg.HTTPClient
		fixed.Timeout = 0
		fixed.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		rt.fixed = &fixed
	} else {
		roots, err := loadRoots(cfg)
		if err != nil {
			return nil, err
		}
		// A connection that is opened again costs the server no signature.
		sessions := tls.NewLRUClientSessionCache(2 * max(list.number(), 1))
		rt.dial = func(patience time.Duration) *http.Transport {
			return newHTTPTransport(roots, sessions, list.number() > 1, patience)
		}
		rt.patience.Store(int64(patienceFor(list.number(), 0)))
		rt.current.Store(rt.dial(time.Duration(rt.patience.Load())))
	}
	rpc := keyturnv1connect.NewDeliveryServiceClient(rt, list.first.String(), connect.WithReadMaxBytes(maxAnswerBytes))
	return &wire{rpc: rpc, http: rt}, nil
}

func loadRoots(cfg Config) (*x509.CertPool, error) {
	if cfg.RootCAs != nil || cfg.CACertFile == "" {
		return cfg.RootCAs, nil
	}
	pem, err := os.ReadFile(cfg.CACertFile)
	if err != nil {
		return nil, fmt.Errorf("%w: CACertFile: %w", ErrConfig, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%w: CACertFile %s holds no PEM certificate; it must hold the authority of the server's certificate", ErrConfig, cfg.CACertFile)
	}
	return pool, nil
}

const (
	// elsewhere is how long a server may take for what a living one does at once, when
	// there are others to go to.
	elsewhere = 5 * time.Second
	// pingAfter is how long a connection is silent before the server is asked whether
	// it lives: a little more than the 15 s after which a quiet stream is kept alive, so
	// that nobody asks while streams are. Fifty thousand clients that ask every 5 s keep
	// a processor busy.
	pingAfter = 16 * time.Second
	// pingLate is how long it may take to answer. A server that fifty thousand clients
	// call at once is late by seconds, and each that leaves it then makes it later.
	pingLate = 15 * time.Second
	// handshakeLate is how long it may take when there are none. A whole fleet may
	// wait in front of this party, and who gives up goes to the end of the queue.
	handshakeLate = 2 * time.Minute
)

// patienceFor is how long a server may take for a handshake, after so many failures
// in a row. With several, one that is late is left at once for another; but when all
// are, they are busy rather than dead, and going round would only begin anew.
func patienceFor(servers, failures int) time.Duration {
	if servers <= 1 {
		return handshakeLate
	}
	patience := elsewhere
	for rounds := failures / servers; rounds > 0 && patience < handshakeLate; rounds-- {
		patience *= 2
	}
	return min(patience, handshakeLate)
}

// newHTTPTransport returns one for connections to a server that has patience to
// connect, and to prove that it lives.
func newHTTPTransport(roots *x509.CertPool, sessions tls.ClientSessionCache, several bool, patience time.Duration) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, ClientSessionCache: sessions}
	t.TLSHandshakeTimeout = patience
	t.ForceAttemptHTTP2 = true
	// A dead peer is found by pings also while no stream is open.
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingLate}
	if several {
		t.DialContext = (&net.Dialer{Timeout: elsewhere, KeepAlive: 30 * time.Second}).DialContext
	}
	return t
}

func (w *wire) watch(ctx context.Context, req *keyturnv1.WatchRequest) (stream, error) {
	from := w.http.servers.current()
	s, err := w.rpc.Watch(ctx, req)
	if err != nil {
		return nil, explain(err)
	}
	return &wireStream{s: s, ctx: ctx, live: &w.http.live, leave: func() { w.http.servers.leave(from) }}, nil
}

func (w *wire) poll(ctx context.Context, req *keyturnv1.PollRequest) (*keyturnv1.PollResponse, error) {
	resp, err := w.rpc.Poll(ctx, req)
	return resp, explain(err)
}

func (w *wire) ack(ctx context.Context, req *keyturnv1.AckRequest) error {
	_, err := w.rpc.Ack(ctx, req)
	return explain(err)
}

func (w *wire) report(ctx context.Context, req *keyturnv1.ReportRequest) error {
	_, err := w.rpc.Report(ctx, req)
	return explain(err)
}

func (w *wire) leave(ctx context.Context, req *keyturnv1.LeaveRequest) error {
	_, err := w.rpc.Leave(ctx, req)
	return explain(err)
}

func (w *wire) join(ctx context.Context, req *keyturnv1.JoinRequest) (*keyturnv1.JoinResponse, error) {
	resp, err := w.rpc.Join(ctx, req)
	return resp, explain(err)
}

func (w *wire) renew() { w.http.renew() }

func (w *wire) patience(d time.Duration) {
	if w.http.fixed == nil && w.http.patience.Swap(int64(d)) != int64(d) {
		w.http.renew()
	}
}

func (w *wire) nodes() *servers { return w.http.servers }

func (w *wire) ready(ctx context.Context, server *url.URL) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.JoinPath("readyz").String(), http.NoBody)
	if err != nil {
		return err
	}
	resp, err := w.http.send(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	// What stands before the servers may not pass the path on.
	if resp.StatusCode >= http.StatusInternalServerError {
		return fmt.Errorf("%s answers %s", req.URL, resp.Status)
	}
	return nil
}

type wireStream struct {
	s *connect.ServerStreamForClient[keyturnv1.WatchResponse]
	// leave goes to another server; ctx is that of the stream.
	ctx   context.Context //nolint:containedctx // it tells why the stream ended
	leave func()
	// live counts the streams that were answered; answered: this one is in it.
	live     *atomic.Int32
	answered bool
}

func (s *wireStream) next() (*keyturnv1.WatchResponse, error) {
	if s.s.Receive() {
		s.count(true)
		return s.s.Msg(), nil
	}
	s.count(false)
	err := explain(s.s.Err())
	if s.ctx.Err() == nil && !permanent(err) && connect.CodeOf(err) != connect.CodeAborted {
		s.leave() // it stops, is full, or has died
	}
	if err == nil {
		err = io.EOF
	}
	return nil, err
}

func (s *wireStream) count(answered bool) {
	if s.answered != answered {
		s.answered = answered
		s.live.Add(map[bool]int32{true: 1, false: -1}[answered])
	}
}

func (s *wireStream) close() {
	s.count(false)
	_ = s.s.Close()
}

// roundTripper sends requests with the bearer token. It follows no redirect,
// which would carry the token to another host.
type roundTripper struct {
	token   TokenSource
	now     func() time.Time
	servers *servers
	fixed   *http.Client
	dial    func(patience time.Duration) *http.Transport
	current atomic.Pointer[http.Transport]
	// patience is a time.Duration: how long a server may take for a handshake.
	patience atomic.Int64
	// live is how many streams were answered and stand, late how many requests in a row
	// were not answered in time meanwhile.
	live, late atomic.Int32
}

// lateMost is how many requests in a row a server may leave unanswered while its
// stream stands: pings show that it lives, so it is busy.
const lateMost = 3

// lost reports whether a request that failed is a reason to leave the server. The
// connection of a stream that stands is as good as any other to it; many clients that
// leave a busy server keep all others busy with handshakes.
func (rt *roundTripper) lost(ctx context.Context) bool {
	switch err := ctx.Err(); {
	case errors.Is(err, context.Canceled):
		return false
	case errors.Is(err, context.DeadlineExceeded) && rt.live.Load() > 0:
		return rt.late.Add(1)%lateMost == 0
	}
	return true
}

// Do implements connect.HTTPClient.
func (rt *roundTripper) Do(req *http.Request) (*http.Response, error) {
	if rt.token != nil {
		token, err := rt.token.Token(req.Context())
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+token.RevealString())
	}
	to := rt.servers.current()
	rt.servers.address(req, to)
	resp, err := rt.send(req)
	if err != nil {
		if rt.lost(req.Context()) {
			rt.servers.leave(to)
		}
		return nil, err
	}
	rt.late.Store(0)
	if resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusBadGateway || resp.StatusCode == http.StatusGatewayTimeout {
		rt.servers.leave(to)
	}
	return rt.checkBusy(req, resp)
}

func (rt *roundTripper) send(req *http.Request) (*http.Response, error) {
	if rt.fixed != nil {
		return rt.fixed.Do(req)
	}
	return rt.current.Load().RoundTrip(req)
}

// checkBusy turns the "come back later" of a proxy into an error that keeps the
// time it asks for; the server's own goes through the Connect error.
func (rt *roundTripper) checkBusy(req *http.Request, resp *http.Response) (*http.Response, error) {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return resp, nil
	}
	// The answer to a stream has status 200 whenever it comes from the server.
	streaming := strings.HasPrefix(req.Header.Get("Content-Type"), "application/connect+")
	if !streaming && strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		return resp, nil
	}
	_ = resp.Body.Close()
	after := parseRetryAfter(resp.Header.Get("Retry-After"), rt.now())
	return nil, &busyError{status: resp.Status, after: max(after, time.Second)}
}

// renew makes the next request dial. What is under way ends by itself.
func (rt *roundTripper) renew() {
	if rt.fixed != nil {
		rt.fixed.CloseIdleConnections()
		return
	}
	rt.current.Swap(rt.dial(time.Duration(rt.patience.Load()))).CloseIdleConnections()
}
