package client_test

import (
	"context"
	"net"
	"net/http"
	"testing"
	"time"

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
		dial, dials := transport.DialContext, 0
		transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			if dials++; dials > 1 {
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
		if dials > 2 || srv.Calls(clienttest.RPCPoll) > 0 {
			t.Errorf("%d connections, %d polls", dials, srv.Calls(clienttest.RPCPoll))
		}
	})
}
