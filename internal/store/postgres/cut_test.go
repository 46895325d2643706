package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/postgres"
	"github.com/keyturn/keyturn/test/pgtest"
)

// cutter stands between a store and its server. It ends a connection at the nth
// message that passes, once.
type cutter struct {
	listener net.Listener
	target   string

	mu    sync.Mutex
	armed bool
	left  int
	// lose says that the message itself is lost; else its answer is.
	lose bool
	cuts int
}

func newCutter(t *testing.T, target string) *cutter {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	c := &cutter{listener: listener, target: target}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go c.forward(client)
		}
	}()
	return c
}

// arm cuts at the nth message from now on.
func (c *cutter) arm(n int, lose bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed, c.left, c.lose = true, n, lose
}

// disarm reports whether nothing was cut since arm.
func (c *cutter) disarm() (unused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	unused, c.armed = c.armed, false
	return unused
}

// now reports whether the message that passes is the one, and whether it is lost.
func (c *cutter) now() (cut, lose bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.armed {
		return false, false
	}
	c.left--
	if c.left > 0 {
		return false, false
	}
	c.armed = false
	c.cuts++
	return true, c.lose
}

func (c *cutter) forward(client net.Conn) {
	server, err := net.Dial("tcp", c.target)
	if err != nil {
		_ = client.Close()
		return
	}
	deaf := make(chan struct{}) // the answers are lost from now on
	go func() {
		buffer := make([]byte, 64<<10)
		for {
			n, err := server.Read(buffer)
			select {
			case <-deaf:
				n = 0
			default:
			}
			if n > 0 {
				_, err = client.Write(buffer[:n])
			}
			if err != nil {
				_ = client.Close()
				return
			}
		}
	}()
	buffer := make([]byte, 64<<10)
	for {
		n, err := client.Read(buffer)
		cut, lose := false, false
		if n > 0 {
			cut, lose = c.now()
		}
		if cut {
			close(deaf)
		}
		if n > 0 && !lose {
			if _, err := server.Write(buffer[:n]); err != nil {
				return
			}
		}
		if cut {
			// The server answers what it has got, and then sees the end.
			_ = client.Close()
			if tcp, ok := server.(*net.TCPConn); ok {
				_ = tcp.CloseWrite()
			}
			return
		}
		if err != nil {
			_ = server.Close()
			return
		}
	}
}

// TestCutAtEveryMessage ends the connection at each message of an Update in turn,
// before and after the server has got it. The Update is repeated or looked up
// inside the store: it succeeds, and has happened exactly once.
func TestCutAtEveryMessage(t *testing.T) {
	direct := newDatabase(t)
	through, err := url.Parse(direct)
	must(t, err)
	c := newCutter(t, through.Host)
	through.Host = c.listener.Addr().String()
	s := open(t, through.String())
	ctx := t.Context()
	n := 0
	for _, lose := range []bool{false, true} {
		for at := 1; ; at++ {
			name := fmt.Sprintf("%v %d", lose, at)
			c.arm(at, lose)
			err := s.Update(ctx, func(tx store.Tx) error {
				if _, err := increment(ctx, tx, "all"); err != nil {
					return err
				}
				if _, err := increment(ctx, tx, name); err != nil { // reads after it has written
					return err
				}
				return tx.Queue.Enqueue(ctx, store.Job{ID: name, Lane: name, Target: "t", Key: "prod/db", RunAt: epoch})
			})
			if err != nil {
				t.Fatalf("cut %s: %v", name, err)
			}
			n++
			if c.disarm() {
				break // it was over before
			}
			if at > 50 {
				t.Fatal("the Update has no end")
			}
		}
	}
	observer := open(t, direct)
	if got := counted(t, observer, "all"); got != n {
		t.Errorf("%d Updates succeeded, %d took place", n, got)
	}
	if c.cuts < 6 {
		t.Errorf("the connection was cut %d times: it proves nothing", c.cuts)
	}
	// A View that is cut fails, unless it has only begun; the next one works.
	look := func() error {
		return s.View(ctx, func(tx store.Tx) error {
			_, err := tx.Docs.Get(ctx, "counter", "all")
			return err
		})
	}
	for at := 1; at < 10; at++ {
		c.arm(at, at%2 == 0)
		if err := look(); err != nil && at == 1 {
			t.Errorf("a View that had only begun: %v", err)
		}
		c.disarm()
		must(t, look())
	}
}

// TestServerDiesInMidCommit kills and restarts the server again and again under
// load. What was acknowledged is there, what was refused is not.
func TestServerDiesInMidCommit(t *testing.T) {
	server := pgtest.Start(t, pgserver.Config{})
	pgtest.Exec(t, server, "postgres", "CREATE DATABASE keyturn")
	s := open(t, server.SuperuserURL("keyturn"))
	const workers = 8
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	type outcome struct {
		name string
		err  error
	}
	outcomes := make(chan outcome, 1<<16)
	var running sync.WaitGroup
	for w := range workers {
		running.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("%d/%d", w, i)
				err := s.Update(t.Context(), func(tx store.Tx) error {
					if _, err := increment(t.Context(), tx, fmt.Sprint("worker ", w)); err != nil {
						return err
					}
					_, err := tx.Docs.Put(t.Context(), store.Doc{Kind: "written", Name: name})
					return err
				})
				outcomes <- outcome{name, err}
				if err != nil {
					<-time.After(5 * time.Millisecond) // the server is away
				}
			}
		})
	}
	for round := range 6 {
		seen := len(outcomes)
		pgtest.Eventually(t, "Updates are committed", func() bool { return len(outcomes) > seen+40 })
		if round%2 == 0 {
			must(t, server.Kill())
		}
		must(t, server.Restart(t.Context()))
	}
	stop()
	running.Wait()
	close(outcomes)
	present := map[string]bool{}
	must(t, s.View(t.Context(), func(tx store.Tx) error {
		after := ""
		for {
			docs, err := tx.Index.List(t.Context(), "written", "", after, 1000)
			if err != nil || len(docs) == 0 {
				return err
			}
			for _, doc := range docs {
				present[doc.Name], after = true, doc.Name
			}
		}
	}))
	committed, refused := 0, 0
	for o := range outcomes {
		switch {
		case o.err == nil:
			committed++
		case errors.Is(o.err, postgres.ErrUnknown):
			t.Errorf("nobody stopped the store: %v", o.err)
		default:
			refused++
		}
		if present[o.name] != (o.err == nil) {
			t.Errorf("%s: present is %v, Update returned %v", o.name, present[o.name], o.err)
		}
	}
	total := 0
	for w := range workers {
		total += counted(t, s, fmt.Sprint("worker ", w))
	}
	if total != committed || len(present) != committed || committed < 200 {
		t.Errorf("%d Updates were committed (%d refused), %d counted, %d present", committed, refused, total, len(present))
	}
}

// TestStopEndsTheWait: an Update whose commit cannot be looked up is told as
// unknown when the store is stopped, and not before.
func TestStopEndsTheWait(t *testing.T) {
	through, err := url.Parse(newDatabase(t))
	must(t, err)
	c := newCutter(t, through.Host)
	through.Host = c.listener.Addr().String()
	s, err := postgres.Open(t.Context(), postgres.Config{URL: through.String()})
	must(t, err)
	update(t, s, func(tx store.Tx) error { _, err := increment(t.Context(), tx, "a"); return err })
	result := make(chan error, 1)
	inside := make(chan struct{})
	go func() {
		first := true
		result <- s.Update(t.Context(), func(tx store.Tx) error {
			_, err := increment(t.Context(), tx, "a")
			if first {
				first = false
				c.arm(1, true) // the next message is the COMMIT
				must(t, c.listener.Close())
				close(inside)
			}
			return err
		})
	}()
	<-inside
	stopped := make(chan error, 1)
	go func() { stopped <- s.Stop() }()
	select {
	case err := <-result:
		if !errors.Is(err, postgres.ErrUnknown) {
			t.Errorf("got %v, want %v", err, postgres.ErrUnknown)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Stop does not end the wait")
	}
	must(t, <-stopped)
}

// TestFailover: the store finds the new primary by itself, and a standby alone is
// refused with a message.
func TestFailover(t *testing.T) {
	primary, replica := pgtest.StartPair(t, pgserver.Config{}, "b")
	pgtest.Exec(t, primary, "postgres", "CREATE DATABASE keyturn")
	both, err := url.Parse(primary.SuperuserURL("keyturn"))
	must(t, err)
	pgtest.Eventually(t, "the standby has the database", func() bool {
		return execIn(t.Context(), replica, "keyturn", "SELECT") == nil
	})
	both.Host = replica.Addr() + "," + primary.Addr()
	s := open(t, both.String())
	update(t, s, func(tx store.Tx) error { _, err := increment(t.Context(), tx, "a"); return err })
	_, err = postgres.Open(t.Context(), postgres.Config{URL: replica.SuperuserURL("keyturn")})
	if !errors.Is(err, postgres.ErrReadOnlyServer) {
		t.Errorf("a standby: %v", err)
	}
	conn := pgtest.Connect(t, replica.SuperuserURL("keyturn"))
	pgtest.Eventually(t, "the standby has it", func() bool {
		var n int
		err := conn.QueryRow(t.Context(), "SELECT count(*) FROM keyturn.docs").Scan(&n)
		return err == nil && n == 1
	})
	must(t, primary.Kill())
	if err := s.Update(t.Context(), func(store.Tx) error { return nil }); !errors.Is(err, postgres.ErrReadOnlyServer) && !errors.Is(err, postgres.ErrConnect) {
		t.Errorf("without a primary: %v", err)
	}
	if _, err := conn.Exec(t.Context(), "SELECT pg_promote()"); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the store writes to the new primary", func() bool {
		return s.Update(t.Context(), func(tx store.Tx) error { _, err := increment(t.Context(), tx, "a"); return err }) == nil
	})
	if n := counted(t, s, "a"); n != 2 {
		t.Errorf("counted to %d, want 2", n)
	}
}
