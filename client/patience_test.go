package client_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/clienttest"
)

// A server that a whole fleet connects to at once is slow. Whoever asks it again
// meanwhile makes it slower: then nobody comes through.
func TestSlowConnectionIsWaitedFor(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		srv.Set(clienttest.Login(orders, "a", "1"))
		cfg := srv.Config()
		transport := cfg.HTTPClient.Transport.(*http.Transport)
		dial := transport.DialContext
		var dials atomic.Int32
		transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			if dials.Add(1) > 1 {
				return dial(ctx, network, address) // for the acknowledgement
			}
			timer := time.NewTimer(25 * time.Second)
			defer timer.Stop()
			select {
			case <-timer.C:
				return dial(ctx, network, address)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		p := watch(t, cfg, nil, client.Known{Key: orders})
		p.next(26 * time.Second)
		for _, s := range p.told() {
			if s.Err != nil || s.Mode != client.ModeStream {
				t.Errorf("%+v", s)
			}
		}
		if dials.Load() > 2 || srv.Calls(clienttest.RPCPoll) > 0 {
			t.Errorf("%d connections, %d polls", dials.Load(), srv.Calls(clienttest.RPCPoll))
		}
	})
}

// While a server starts, a poll may get through just after a stream was refused.
// That is no sign that streams do not.
func TestServerThatComesBackIsNoReasonToPoll(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		srv.Set(clienttest.Login(orders, "a", "1"))
		cfg := srv.Config()
		transport := cfg.HTTPClient.Transport.(*http.Transport)
		transport.DisableKeepAlives = true
		dial, began := transport.DialContext, time.Now()
		var refused time.Time
		transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			now := time.Now()
			if srv.Calls(clienttest.RPCWatch) >= 3 && now.Sub(began) < time.Minute && !now.Equal(refused) {
				refused = now
				return nil, errors.New("connection refused")
			}
			return dial(ctx, network, address)
		}
		// It was stopping before: what it said then does not count either.
		srv.FailNext(clienttest.RPCWatch, 3, connect.NewError(connect.CodeUnavailable, errors.New("the server is stopping")))
		srv.FailNext(clienttest.RPCPoll, 1, connect.NewError(connect.CodeUnavailable, errors.New("the server is stopping")))
		p := watch(t, cfg, nil, client.Known{Key: orders})
		p.next(2 * time.Minute)
		for _, s := range p.told() {
			if s.Mode == client.ModePoll || s.Mode == client.ModeLongPoll {
				t.Errorf("%+v", s)
			}
		}
		if since := time.Since(began); p.mode() != client.ModeStream || since > 71*time.Second {
			t.Errorf("%v after %v", p.mode(), since)
		}
	})
}
