package client_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/keyturn/keyturn/client"
)

// TestRouteOpensMoreConnections: more streams than one connection carries are no reason
// to wait: a gateway has as many as it has clients.
func TestRouteOpensMoreConnections(t *testing.T) {
	const perConnection, streams = 10, 55
	var mu sync.Mutex
	connections, there := 0, make(chan string, streams)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		there <- r.Proto + " " + r.Header.Get("Authorization")
		<-r.Context().Done()
	}))
	server.EnableHTTP2 = true
	server.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: perConnection}
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		if s == http.StateNew {
			connections++
		}
	}
	server.StartTLS()
	defer server.Close()
	route, err := client.NewRoute(client.Config{Address: server.URL, RootCAs: server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs})
	if err != nil {
		t.Fatal(err)
	}
	defer route.Renew()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for range streams {
		running.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, route.Address()+"/x", strings.NewReader("{}"))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Authorization", "Bearer of the client")
			resp, err := route.Do(req)
			if err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
			defer resp.Body.Close()
			_, _ = io.Copy(io.Discard, resp.Body) // until the end of the test
		})
	}
	for range streams {
		if got := <-there; got != "HTTP/2.0 Bearer of the client" {
			t.Errorf("%s", got)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if connections < (streams+perConnection-1)/perConnection {
		t.Errorf("%d streams on %d connections", streams, connections)
	}
}

// TestRouteLeaves: a server that cannot be reached, or that the caller leaves, is left.
func TestRouteLeaves(t *testing.T) {
	var hits sync.Map
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { hits.Store(r.Host, true) })
	a, b := httptest.NewServer(handler), httptest.NewServer(handler)
	defer a.Close()
	defer b.Close()
	route, err := client.NewRoute(client.Config{Address: a.URL + "," + b.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer route.Renew()
	if route.Servers() != 2 {
		t.Errorf("%d servers", route.Servers())
	}
	ask := func() {
		t.Helper()
		if err := route.Ready(t.Context()); err != nil {
			t.Error(err)
		}
	}
	ask()
	from := route.Current()
	route.Leave(from)
	route.Leave(from) // it was left already
	if route.Current() == from {
		t.Error("it was not left")
	}
	ask()
	for _, s := range []*httptest.Server{a, b} {
		if _, ok := hits.Load(strings.TrimPrefix(s.URL, "http://")); !ok {
			t.Errorf("%s was not asked", s.URL)
		}
	}
	if _, err := client.NewRoute(client.Config{Address: "http://example.com"}); !errors.Is(err, client.ErrConfig) {
		t.Errorf("%v", err)
	}
}
