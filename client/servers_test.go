package client_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/clienttest"
)

// several returns servers that know the same, and a configuration that names
// them all. The last address is that of a server that is frozen: it takes
// connections and never answers.
func several(t *testing.T, n int) (list []*clienttest.Server, config func(id int) client.Config) {
	t.Helper()
	dial := map[string]func(context.Context, string, string) (net.Conn, error){}
	addresses := ""
	for i := range n {
		srv := clienttest.New(t, clienttest.InMemory())
		list = append(list, srv)
		address := fmt.Sprintf("localhost:%d", i+1)
		dial[address] = srv.Config().HTTPClient.Transport.(*http.Transport).DialContext
		addresses += "http://" + address + ", "
	}
	frozen := fmt.Sprintf("localhost:%d", n+1)
	var mu sync.Mutex
	var held []net.Conn
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		for _, conn := range held {
			_ = conn.Close()
		}
	})
	dial[frozen] = func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		mu.Lock()
		defer mu.Unlock()
		held = append(held, theirs)
		return ours, nil
	}
	return list, func(id int) client.Config {
		transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return dial[address](ctx, network, address)
		}}
		t.Cleanup(transport.CloseIdleConnections)
		cfg := list[0].Config()
		cfg.Address = addresses + "http://" + frozen
		cfg.HTTPClient = &http.Client{Transport: transport}
		cfg.Party.ID = fmt.Sprint("party-", id)
		return cfg
	}
}

// TestGoesToAnotherServer: a client of several servers spreads over them, passes
// by one that is frozen, and when its own stops it is served by another within
// seconds.
func TestGoesToAnotherServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, config := several(t, 2)
		for _, srv := range list {
			srv.Set(clienttest.Login(orders, "orders_a", "pw-1"))
		}
		const clients = 40
		var parties []*party
		for i := range clients {
			parties = append(parties, watch(t, config(i), nil, client.Known{Key: orders}))
		}
		for _, p := range parties {
			p.next(15 * time.Second)
		}
		a, b := list[0].Streams(), list[1].Streams()
		if a+b != clients || a < clients/4 || b < clients/4 {
			t.Errorf("%d and %d streams", a, b)
		}
		list[0].Stop()
		began := time.Now()
		list[1].WaitStreams(soon(t), clients)
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("it took %v until all were connected again", took)
		}
		v2 := list[1].Set(clienttest.Login(orders, "orders_b", "pw-2"))
		for _, p := range parties {
			if batch := p.next(time.Second); batch[0].Version != v2 {
				t.Errorf("%v", batch)
			}
		}
	})
}

// TestGoesHome: clients return to a server that was away, each at a time of its own,
// and nobody hears of it. Those whose own server never answers stay where they are.
func TestGoesHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, config := several(t, 2)
		for _, srv := range list {
			srv.Set(clienttest.Login(orders, "orders_a", "pw-1"))
		}
		const clients = 60
		list[0].Stop()
		var parties []*party
		for i := range clients {
			parties = append(parties, watch(t, config(i), nil, client.Known{Key: orders}))
		}
		for _, p := range parties {
			p.next(time.Minute)
		}
		list[0].Start()
		<-time.NewTimer(14 * time.Minute).C
		if n := list[0].Streams(); n > 0 {
			t.Errorf("%d are back soon after", n)
		}
		told := 0
		for _, p := range parties {
			told += len(p.told())
		}
		<-time.NewTimer(11 * time.Minute).C
		some := list[0].Streams()
		<-time.NewTimer(25 * time.Minute).C
		all := list[0].Streams()
		if some == 0 || all <= some || all < clients/6 || all > clients/2 {
			t.Errorf("%d are back in the middle, %d in the end", some, all)
		}
		if n := list[1].Streams(); n+all != clients {
			t.Errorf("%d and %d streams", all, n)
		}
		for _, p := range parties {
			told -= len(p.told())
		}
		if told != 0 {
			t.Errorf("users heard of it %d times", -told)
		}
	})
}

// TestBusyServerIsNotLeft: of several servers one that takes connections in good
// time and is slow to answer is busy. Its parties wait: going round would give the
// others as much to do.
func TestBusyServerIsNotLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, config := several(t, 2)
		list[0].Set(clienttest.Login(orders, "orders_a", "pw-1"))
		cfg := config(1)
		slow := list[0].Config().HTTPClient.Transport.(*http.Transport).DialContext
		var dials atomic.Int32
		cfg.HTTPClient.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := slow(ctx, network, "localhost:1")
			if dials.Add(1) > 1 {
				return conn, err // for the acknowledgement
			}
			return &late{Conn: conn, until: time.Now().Add(8 * time.Second)}, err
		}
		p := watch(t, cfg, nil, client.Known{Key: orders})
		p.next(9 * time.Second)
		for _, s := range p.told() {
			if s.Err != nil || s.Mode != client.ModeStream {
				t.Errorf("%+v", s)
			}
		}
		if n := dials.Load(); n > 2 {
			t.Errorf("%d connections", n)
		}
	})
}

// TestServerThatAcknowledgesLateIsNotLeft: while its stream stands a server that does
// not answer in time is busy with others: requests go on over the same connection,
// until that has been so several times in a row.
func TestServerThatAcknowledgesLateIsNotLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, config := several(t, 2)
		for _, srv := range list {
			srv.Set(clienttest.Login(orders, "orders_a", "pw-1"))
		}
		cfg := config(1)
		through := &deaf{RoundTripper: cfg.HTTPClient.Transport, path: "/Ack", most: 3}
		cfg.HTTPClient.Transport = through
		p := watch(t, cfg, nil, client.Known{Key: orders})
		p.next(15 * time.Second)
		acked := func() bool { return len(list[0].Acks())+len(list[1].Acks()) > 0 }
		for began := time.Now(); !acked(); <-time.NewTimer(time.Second).C {
			if time.Since(began) > 10*time.Minute {
				t.Fatal("it is never acknowledged")
			}
		}
		through.mu.Lock()
		defer through.mu.Unlock()
		if hosts := through.hosts; len(hosts) < 4 || hosts[0] != hosts[1] || hosts[1] != hosts[2] || hosts[2] == hosts[3] {
			t.Errorf("acknowledged to %q", through.hosts)
		}
		if told := p.told(); told[len(told)-1].Mode != client.ModeStream || len(told) > 2 {
			t.Errorf("the stream: %+v", told)
		}
	})
}

// deaf lets the first requests of a path wait until their clients give up.
type deaf struct {
	http.RoundTripper
	path string
	most int

	mu    sync.Mutex
	hosts []string
}

func (d *deaf) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(r.URL.Path, d.path) {
		return d.RoundTripper.RoundTrip(r)
	}
	d.mu.Lock()
	d.hosts = append(d.hosts, r.URL.Host)
	wait := len(d.hosts) <= d.most
	d.mu.Unlock()
	if wait {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	return d.RoundTripper.RoundTrip(r)
}

// late is a connection that brings no answer for a while.
type late struct {
	net.Conn
	until time.Time
}

func (c *late) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	<-time.NewTimer(time.Until(c.until)).C
	return n, err
}
