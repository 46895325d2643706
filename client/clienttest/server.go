package clienttest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// DefaultHeartbeat is how often a stream gets an empty answer. Parties are told
// to reconnect after three times as long.
const DefaultHeartbeat = 5 * time.Second

// RPC names a method of the delivery API. The zero value is invalid.
type RPC uint8

// The methods.
const (
	RPCJoin RPC = iota + 1
	RPCWatch
	RPCPoll
	RPCAck
	RPCReport
	RPCLeave
)

// Option changes a server before it starts.
type Option func(*Server)

// InMemory makes the server listen in memory, without network and TLS. Its
// clients must use the HTTPClient that Config returns.
func InMemory() Option { return func(s *Server) { s.pipes = newPipeListener() } }

// Heartbeat sets how often a stream gets an empty answer.
func Heartbeat(every time.Duration) Option { return func(s *Server) { s.heartbeat = every } }

// Server is the test server. It is safe for concurrent use.
type Server struct {
	tb        testing.TB
	heartbeat time.Duration
	pipes     *pipeListener
	cert      tls.Certificate
	roots     *x509.CertPool
	address   string

	mu      sync.Mutex
	http    *http.Server
	serving sync.WaitGroup
	token   string
	joins   map[string]string               // join token → party's token
	keys    map[key.Name]*client.Assignment // what every party is to present
	changed chan struct{}                   // closed and replaced at every change of anything below or above
	cut     chan struct{}                   // closed and replaced by Disconnect
	pushes  [][]client.Assignment
	fails   map[RPC]failure
	silent  bool
	blocked bool
	record
}

type failure struct {
	err  error
	left int // negative: until it is lifted
}

// New starts a server that stops when the test ends.
func New(tb testing.TB, options ...Option) *Server {
	tb.Helper()
	s := &Server{
		tb: tb, heartbeat: DefaultHeartbeat, token: "test-token",
		joins: make(map[string]string), keys: make(map[key.Name]*client.Assignment), fails: make(map[RPC]failure),
		changed: make(chan struct{}), cut: make(chan struct{}),
		record: newRecord(),
	}
	for _, option := range options {
		option(s)
	}
	if s.pipes == nil {
		var err error
		if s.cert, s.roots, err = selfSigned(); err != nil {
			tb.Fatalf("clienttest: %v", err)
		}
	}
	s.Start()
	tb.Cleanup(s.Stop)
	return s
}

// Config returns a configuration that reaches the server, with a party ID of its
// own at each call. Change it as needed.
func (s *Server) Config() client.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parties++
	cfg := client.Config{
		Address: s.address,
		Token:   client.StaticToken(secret.NewString(s.token)),
		RootCAs: s.roots,
		Party:   client.Party{ID: fmt.Sprintf("test-%d", s.parties), Kind: client.KindClient},
	}
	if s.pipes != nil {
		cfg.HTTPClient = &http.Client{Transport: &http.Transport{DialContext: s.pipes.dial}}
	}
	return cfg
}

// Start serves again after Stop, at the same address and with the same keys.
func (s *Server) Start() {
	s.tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.http != nil {
		return
	}
	mux := http.NewServeMux()
	mux.Handle(keyturnv1connect.NewDeliveryServiceHandler(&handler{Server: s}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	s.http = server
	if s.pipes != nil {
		s.address = "http://127.0.0.1:1"
		listener := s.pipes.open()
		s.serving.Go(func() { _ = server.Serve(listener) })
		return
	}
	address := s.address
	if address == "" {
		address = "https://127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", address[len("https://"):])
	if err != nil {
		s.tb.Errorf("clienttest: %v", err)
		return
	}
	s.address = "https://" + listener.Addr().String()
	server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{s.cert}, MinVersion: tls.VersionTLS13}
	s.serving.Go(func() { _ = server.ServeTLS(listener, "", "") })
}

// Stop closes the listener and every connection, as the end of a server does.
func (s *Server) Stop() {
	s.mu.Lock()
	server := s.http
	s.http = nil
	s.mu.Unlock()
	if server == nil {
		return
	}
	s.Disconnect()
	_ = server.Close()
	s.serving.Wait()
}

// Disconnect ends every stream and held poll with an error; parties may come back.
func (s *Server) Disconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.cut)
	s.cut = make(chan struct{})
}

// Fail makes a method fail with err until it is called with nil. An error that
// is no *connect.Error counts as unavailable.
func (s *Server) Fail(rpc RPC, err error) { s.FailNext(rpc, -1, err) }

// FailNext makes the next n calls of a method fail with err. Streams that are
// open stay.
func (s *Server) FailNext(rpc RPC, n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil || n == 0 {
		delete(s.fails, rpc)
		return
	}
	if wire := (*connect.Error)(nil); !errors.As(err, &wire) {
		err = connect.NewError(connect.CodeUnavailable, err)
	}
	s.fails[rpc] = failure{err: err, left: n}
}

// SetSilent makes every open and new stream and poll stay open without an
// answer, as a half-open connection does.
func (s *Server) SetSilent(silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = silent
	s.wakeLocked()
}

// SetStreamsBlocked makes streams stay open without an answer while polls work,
// as a proxy does that collects answers.
func (s *Server) SetStreamsBlocked(blocked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blocked = blocked
	s.wakeLocked()
}

// SetToken changes the bearer token that is accepted. Configs that were handed
// out before keep the old one. Open streams stay.
func (s *Server) SetToken(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token = token
}

// AllowJoin makes joinToken work once. The party gets the accepted token.
func (s *Server) AllowJoin(joinToken string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.joins[joinToken] = s.token
}

func (s *Server) wakeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// admit counts a call and returns the failure that is injected into it.
func (s *Server) admit(ctx context.Context, rpc RPC, authorization string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[rpc]++
	s.wakeLocked()
	if f, found := s.fails[rpc]; found {
		if f.left > 0 {
			if f.left--; f.left == 0 {
				delete(s.fails, rpc)
			} else {
				s.fails[rpc] = f
			}
		}
		return f.err
	}
	if rpc != RPCJoin && authorization != "Bearer "+s.token {
		return connect.NewError(connect.CodeUnauthenticated, errors.New("unknown token"))
	}
	return ctx.Err()
}
