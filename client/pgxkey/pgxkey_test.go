package pgxkey_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/clienttest"
	"github.com/keyturn/keyturn/client/pgxkey"
	"github.com/keyturn/keyturn/key"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const orders key.Name = "prod/orders/db"

// postgres speaks just enough of PostgreSQL's protocol to log in: the clear-text
// password must be "right-" and the user's name.
type postgres struct {
	listener net.Listener
	group    sync.WaitGroup

	mu     sync.Mutex
	open   map[string]int // connections per user
	change chan struct{}
}

func startPostgres(t *testing.T) *postgres {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &postgres{listener: listener, open: make(map[string]int), change: make(chan struct{})}
	p.group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			p.group.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		p.group.Wait()
	})
	return p
}

func (p *postgres) serve(conn net.Conn) {
	defer conn.Close()
	backend := pgproto3.NewBackend(conn, conn)
	first, err := backend.ReceiveStartupMessage()
	startup, ok := first.(*pgproto3.StartupMessage)
	if err != nil || !ok {
		return
	}
	backend.Send(&pgproto3.AuthenticationCleartextPassword{})
	if backend.Flush() != nil || backend.SetAuthType(pgproto3.AuthTypeCleartextPassword) != nil {
		return
	}
	message, err := backend.Receive()
	password, ok := message.(*pgproto3.PasswordMessage)
	if err != nil || !ok {
		return
	}
	user := startup.Parameters["user"]
	if password.Password != "right-"+user {
		backend.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "28P01", Message: "password authentication failed"})
		_ = backend.Flush()
		return
	}
	p.count(user, 1)
	defer p.count(user, -1)
	backend.Send(&pgproto3.AuthenticationOk{})
	backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	for backend.Flush() == nil {
		message, err := backend.Receive()
		if err != nil {
			return
		}
		switch message.(type) {
		case *pgproto3.Query:
			backend.Send(&pgproto3.EmptyQueryResponse{})
			backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		case *pgproto3.Terminate:
			return
		}
	}
}

func (p *postgres) count(user string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[user] += n
	close(p.change)
	p.change = make(chan struct{})
}

// wait waits until a user has n connections.
func (p *postgres) wait(t *testing.T, user string, n int) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		p.mu.Lock()
		now, change := p.open[user], p.change
		p.mu.Unlock()
		if now == n {
			return
		}
		select {
		case <-change:
		case <-limit:
			t.Fatalf("%s has %d connections, want %d", user, now, n)
		}
	}
}

func TestPoolFollowsTheKey(t *testing.T) {
	server, srv := startPostgres(t), clienttest.New(t)
	srv.Set(clienttest.Login(orders, "a", "right-a"))
	keys, err := client.Open(t.Context(), srv.Config(), orders)
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	h := keys.Key(orders)

	cfg, err := pgxpool.ParseConfig("postgres://" + server.listener.Addr().String() + "/orders?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	h.OnApply(pgxkey.Probe(cfg.ConnConfig.Copy()))
	hooks := pgxkey.New(h)
	cfg.BeforeConnect, cfg.AfterRelease = hooks.BeforeConnect, hooks.AfterRelease
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	stop := hooks.Follow(pool)
	defer stop()

	held, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := pool.Ping(t.Context()); err != nil { // a second one, idle from now on
		t.Fatal(err)
	}
	server.wait(t, "a", 2)
	srv.Set(clienttest.Login(orders, "b", "right-b"))
	server.wait(t, "a", 1) // the idle one ends by itself
	if err := held.Ping(t.Context()); err != nil {
		t.Errorf("the connection in use was cut off: %v", err)
	}
	held.Release()
	server.wait(t, "a", 0)
	if err := pool.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	server.wait(t, "b", 1)

	v3 := srv.Set(clienttest.Login(orders, "c", "wrong-password"))
	ack := srv.WaitAck(t.Context(), orders, v3)
	if ack.Code != client.Failed || ack.Using != 2 || strings.Contains(ack.Detail, "wrong-password") || !strings.Contains(ack.Detail, "28P01") {
		t.Errorf("a version that cannot log in: %+v", ack)
	}
}

func TestRefusedLoginsAreCounted(t *testing.T) {
	server, srv := startPostgres(t), clienttest.New(t)
	srv.Set(clienttest.Login(orders, "a", "wrong"))
	keys, err := client.Open(t.Context(), srv.Config(), orders)
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	cfg, err := pgx.ParseConfig("postgres://" + server.listener.Addr().String() + "/orders?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	if err := pgxkey.New(keys.Key(orders)).BeforeConnect(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := pgx.ConnectConfig(t.Context(), cfg); !pgxkey.Refused(err) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := srv.Until(ctx, func() bool { return len(srv.Reports()) > 0 }); err != nil || srv.Reports()[0].AuthFailures != 1 {
		t.Errorf("reports: %+v, %v", srv.Reports(), err)
	}
	if pgxkey.Refused(errors.New("28P01")) {
		t.Error("any error counts as refused")
	}
}

func TestMissingFields(t *testing.T) {
	srv := clienttest.New(t)
	srv.Set(clienttest.Value{Key: orders, Secrets: map[string]string{"token": "t"}})
	keys, err := client.Open(t.Context(), srv.Config(), orders)
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	err = pgxkey.New(keys.Key(orders)).BeforeConnect(t.Context(), &pgx.ConnConfig{})
	if err == nil || !strings.Contains(err.Error(), `"username"`) {
		t.Errorf("got %v", err)
	}
}
