package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/clienttest"
	"github.com/keyturn/keyturn/key"
)

func open(t *testing.T, srv *clienttest.Server, names ...key.Name) *client.Keys {
	t.Helper()
	keys, err := client.Open(soon(t), srv.Config(), names...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	return keys
}

func TestOpenHoldsAndFollows(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		srv.Set(clienttest.Login(orders, "a", "pw-1"), clienttest.Login(cache, "c", "pw-1"))
		keys := open(t, srv, orders, cache)
		h := keys.Key(orders)
		if keys.Key("not/opened") != nil {
			t.Error("a handle of a key that was not opened")
		}
		changes, stop := h.Changes()
		defer stop()
		first := h.Current()
		if first.Version != 1 || first.Username() != "a" || first.Password().RevealString() != "pw-1" {
			t.Fatalf("current: %+v", first)
		}
		v2 := srv.Set(clienttest.Login(orders, "b", "pw-2"))
		if got, err := h.Wait(soon(t), v2); err != nil || got.Username() != "b" || got.Password().RevealString() != "pw-2" {
			t.Fatalf("got %+v, %v", got, err)
		}
		if got := <-changes; got.Version != v2 {
			t.Errorf("change to %v", got.Version)
		}
		if keys.Key(cache).Current().Version != 1 {
			t.Error("the other key changed as well")
		}
		// Back to version 1, as after a roll-back.
		back := clienttest.Login(orders, "a", "pw-1")
		back.Version = 1
		srv.Set(back)
		if got := <-changes; got.Version != 1 || got.Username() != "a" || h.Current().Version != 1 {
			t.Errorf("rolled back to %+v", got)
		}
		srv.Stop()
		time.Sleep(time.Hour)
		if h.Current().Version != 1 {
			t.Error("the version went away with the server")
		}
	})
}

func TestUserNameAndPasswordAreOfOneVersion(t *testing.T) {
	srv := clienttest.New(t)
	login := func(n int) clienttest.Value { return clienttest.Login(orders, fmt.Sprint(n), fmt.Sprint(n)) }
	srv.Set(login(0))
	h := open(t, srv, orders).Key(orders)
	stop := make(chan struct{})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if c := h.Current(); c.Username() != c.Password().RevealString() {
					t.Errorf("torn: %s has the password of %s", c.Username(), c.Password().RevealString())
					return
				}
			}
		})
	}
	for n := range 50 {
		if _, err := h.Wait(soon(t), srv.Set(login(n+1))); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	group.Wait()
}

func TestApplierDecides(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		srv.Set(clienttest.Login(orders, "a", "password-1"))
		h := open(t, srv, orders).Key(orders)
		var first []key.Version
		h.OnApply(func(_ context.Context, c client.Credential) error {
			first = append(first, c.Version)
			return nil
		})
		refuse := true
		stop := h.OnApply(func(_ context.Context, c client.Credential) error {
			if refuse && c.Version > 1 {
				return fmt.Errorf("login as %s with %s refused", c.Username(), c.Password().RevealString())
			}
			return nil
		})
		v2 := srv.Set(clienttest.Login(orders, "b", "password-2"))
		ack := srv.WaitAck(soon(t), orders, v2)
		if ack.Code != client.Failed || ack.Using != 1 || strings.Contains(ack.Detail, "password-2") || !strings.Contains(ack.Detail, "login as b") {
			t.Errorf("acknowledgement: %+v", ack)
		}
		if h.Current().Version != 1 || fmt.Sprint(first) != "[v2 v1]" {
			t.Errorf("current %v; the first applier got %v", h.Current().Version, first)
		}
		refuse = false
		v3 := srv.Rotate(orders)
		if ack := srv.WaitAck(soon(t), orders, v3); ack.Code != client.Applied || h.Current().Version != v3 {
			t.Errorf("acknowledgement: %+v, current %v", ack, h.Current().Version)
		}
		refuse = true
		stop()
		if ack := srv.WaitAck(soon(t), orders, srv.Rotate(orders)); ack.Code != client.Applied {
			t.Errorf("an applier that was taken away still decides: %+v", ack)
		}
	})
}

func TestApplierThatHangsFailsInTime(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		srv.Set(clienttest.Login(orders, "a", "1"), clienttest.Login(cache, "a", "1"))
		keys := open(t, srv, orders, cache)
		keys.Key(orders).OnApply(func(ctx context.Context, _ client.Credential) error {
			<-ctx.Done()
			return ctx.Err()
		})
		v2 := srv.Rotate(orders)
		if ack := srv.WaitAck(soon(t), orders, v2); ack.Code != client.Failed || ack.Using != 1 {
			t.Errorf("acknowledgement: %+v", ack)
		}
		srv.WaitAck(soon(t), cache, srv.Rotate(cache))
	})
}

func TestOnChangeSkipsButNeverMissesTheLatest(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		srv.Set(clienttest.Login(orders, "a", "1"))
		h := open(t, srv, orders).Key(orders)
		release, got := make(chan struct{}), make(chan key.Version, 100)
		stop := h.OnChange(func(c client.Credential) {
			got <- c.Version
			<-release
		})
		for range 10 {
			if _, err := h.Wait(soon(t), srv.Rotate(orders)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		close(release)
		synctest.Wait()
		if len(got) != 2 || <-got != 2 || <-got != 11 {
			t.Errorf("%d calls", len(got))
		}
		stop()
		stop()
		srv.WaitAck(soon(t), orders, srv.Rotate(orders))
		synctest.Wait()
		if len(got) != 0 {
			t.Error("called after stop")
		}
	})
}

func TestOpenExplains(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		srv.Set(clienttest.Login(orders, "a", "1"))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := client.Open(ctx, srv.Config(), orders, cache)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), cache.String()) || strings.Contains(err.Error(), orders.String()) {
			t.Errorf("a key that never comes: %v", err)
		}
		srv.Fail(clienttest.RPCWatch, connect.NewError(connect.CodePermissionDenied, errors.New("not your key")))
		began := time.Now()
		_, err = client.Open(soon(t), srv.Config(), orders)
		if !errors.Is(err, client.ErrDenied) || !strings.Contains(err.Error(), "not your key") || time.Since(began) > time.Second {
			t.Errorf("a key that is denied: %v after %v", err, time.Since(began))
		}
		srv.Stop()
		ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err = client.Open(ctx, srv.Config(), orders); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "the server is stopped") {
			t.Errorf("a server that is down: %v", err)
		}
		if _, err = client.Open(ctx, client.Config{}, orders); !errors.Is(err, client.ErrConfig) {
			t.Errorf("no configuration: %v", err)
		}
	})
}

func TestUsesAreReported(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		srv.Set(clienttest.Login(orders, "a", "1"))
		keys := open(t, srv, orders)
		h := keys.Key(orders)
		time.Sleep(time.Minute)
		if n := srv.Calls(clienttest.RPCReport); n != 0 {
			t.Errorf("%d reports of nothing", n)
		}
		srv.FailNext(clienttest.RPCReport, 3, errors.New("away"))
		for i := range 5 {
			h.RecordUse(1, client.UseSucceeded)
			if i == 0 {
				h.RecordUse(1, client.UseRefused)
			}
			time.Sleep(2 * time.Second)
		}
		for range 1000 {
			h.RecordUse(2, client.UseBroken)
		}
		h.RecordUse(2, client.UseSucceeded)
		keys.Close()
		sum := map[key.Version]client.Sample{}
		for _, r := range srv.Reports() {
			s := sum[r.Version]
			s.Attempts += r.Attempts
			s.AuthFailures += r.AuthFailures
			s.Healthy = r.Healthy
			sum[r.Version] = s
		}
		if v1 := sum[1]; v1.Attempts != 6 || v1.AuthFailures != 1 {
			t.Errorf("version 1: %+v", v1)
		}
		if v2 := sum[2]; v2.Attempts != 1001 || v2.AuthFailures != 0 || !v2.Healthy {
			t.Errorf("version 2: %+v", v2)
		}
		if srv.Reports()[0].Healthy {
			t.Error("a version with a refusal was reported healthy")
		}
	})
}

func TestCloseLeavesAndReleases(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		srv.Set(clienttest.Login(orders, "a", "1"))
		keys := open(t, srv, orders)
		h := keys.Key(orders)
		waiting := make(chan error, 1)
		go func() {
			_, err := h.Wait(context.Background(), 99)
			waiting <- err
		}()
		changes, _ := h.Changes()
		keys.Close()
		keys.Close()
		if err := <-waiting; !errors.Is(err, client.ErrClosed) {
			t.Errorf("a waiter got %v", err)
		}
		if _, open := <-changes; open {
			t.Error("the channel of changes is still open")
		}
		if late, _ := h.Changes(); late == nil {
			t.Error("no channel after Close")
		} else if _, open := <-late; open {
			t.Error("a channel that was made after Close is open")
		}
		if len(srv.Parties()) != 0 || h.Current().Version != 1 {
			t.Errorf("parties %v, version %v", srv.Parties(), h.Current().Version)
		}
	})
}

func TestRefreshAsksAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		srv.Set(clienttest.Login(orders, "a", "1"))
		h := open(t, srv, orders).Key(orders)
		time.Sleep(10 * time.Second)
		srv.SetStreamsBlocked(true)
		v2 := srv.Rotate(orders)
		for range 1000 {
			h.Refresh()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := h.Wait(ctx, v2); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if n := srv.Calls(clienttest.RPCPoll); n > 2 {
			t.Errorf("%d polls for 1,000 refreshes", n)
		}
	})
}
