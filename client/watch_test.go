package client_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/clienttest"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

const (
	orders key.Name = "prod/orders/db"
	cache  key.Name = "prod/orders/cache"
)

// inBubble runs a test under simulated time against a server in memory.
func inBubble(t *testing.T, test func(t *testing.T, srv *clienttest.Server)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, clienttest.New(t, clienttest.InMemory())) })
}

// party is a Watch under way whose handler records what it gets.
type party struct {
	t       *testing.T
	client  *client.Client
	batches chan []client.Assignment
	// answer decides on the outcomes; nil applies everything.
	answer func([]client.Assignment) []client.Outcome

	mu       sync.Mutex
	statuses []client.Status
}

func applied(batch []client.Assignment) []client.Outcome {
	out := make([]client.Outcome, len(batch))
	for i, a := range batch {
		out[i] = client.Outcome{Key: a.Key, Version: a.Version, Epoch: a.Epoch, Code: client.Applied, Using: a.Version}
	}
	return out
}

// watch starts a Watch that ends with the test.
func watch(t *testing.T, cfg client.Config, answer func([]client.Assignment) []client.Outcome, known ...client.Known) *party {
	t.Helper()
	p := &party{t: t, batches: make(chan []client.Assignment, 1000), answer: answer}
	if answer == nil {
		p.answer = applied
	}
	cfg.OnStatus = func(s client.Status) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.statuses = append(p.statuses, s)
	}
	var err error
	if p.client, err = client.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- p.client.Watch(ctx, known, func(_ context.Context, batch []client.Assignment) []client.Outcome {
			p.batches <- batch
			return p.answer(batch)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch ended with %v", err)
		}
	})
	return p
}

func (p *party) next(within time.Duration) []client.Assignment {
	p.t.Helper()
	select {
	case batch := <-p.batches:
		return batch
	case <-time.After(within):
		p.t.Fatalf("no assignment within %v; statuses: %+v", within, p.told())
		return nil
	}
}

func (p *party) nothing(within time.Duration) {
	p.t.Helper()
	select {
	case batch := <-p.batches:
		p.t.Fatalf("unexpected assignments %v", batch)
	case <-time.After(within):
	}
}

func (p *party) told() []client.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.statuses)
}

func (p *party) mode() client.Mode {
	all := p.told()
	if len(all) == 0 {
		return 0
	}
	return all[len(all)-1].Mode
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestWatchOverTLS(t *testing.T) {
	srv := clienttest.New(t)
	srv.Set(clienttest.Login(orders, "orders_a", "pw-1"))
	p := watch(t, srv.Config(), nil, client.Known{Key: orders})
	first := p.next(10 * time.Second)
	if len(first) != 1 || first[0].Version != 1 || first[0].Attributes["username"] != "orders_a" ||
		first[0].Secrets["password"].RevealString() != "pw-1" || first[0].Rotation.IsZero() || first[0].PublishedAt.IsZero() {
		t.Fatalf("first assignment: %+v", first)
	}
	v2 := srv.Set(clienttest.Login(orders, "orders_b", "pw-2"))
	if second := p.next(10 * time.Second); second[0].Version != v2 || second[0].Secrets["password"].RevealString() != "pw-2" {
		t.Fatalf("second assignment: %+v", second)
	}
	if ack := srv.WaitAck(soon(t), orders, v2); ack.Code != client.Applied || ack.Using != v2 || ack.Party != p.client.Party().ID {
		t.Errorf("acknowledgement: %+v", ack)
	}
}

// Pain sapcc/helm-charts#8835: what changes together must arrive together.
func TestKeysThatChangeTogetherArriveTogether(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		p := watch(t, srv.Config(), nil, client.Known{Key: orders}, client.Known{Key: cache})
		for i := range 20 {
			srv.Set(clienttest.Login(orders, "a", fmt.Sprint(i)), clienttest.Login(cache, "a", fmt.Sprint(i)))
			batch := p.next(time.Second)
			if len(batch) != 2 || batch[0].Version != batch[1].Version {
				t.Fatalf("round %d: %v", i, batch)
			}
		}
	})
}

func TestOutOfOrderEpochsAreDropped(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		p := watch(t, srv.Config(), nil, client.Known{Key: orders, Version: 4, Epoch: 10})
		srv.WaitStreams(soon(t), 1)
		push := func(version key.Version, epoch uint64) {
			srv.Push(client.Assignment{Key: orders, Version: version, Epoch: epoch})
		}
		push(3, 9)
		push(5, 12)
		push(4, 11)
		push(0, 13) // makes no sense
		srv.Push(client.Assignment{Key: "somebody/elses", Version: 1, Epoch: 99})
		p.nothing0(5, 12)
		push(math.MaxUint64, math.MaxUint64)
		p.nothing0(math.MaxUint64, math.MaxUint64)
		push(7, 13)
		p.nothing(10 * time.Second)
	})
}

// nothing0 expects exactly one assignment and then silence.
func (p *party) nothing0(version key.Version, epoch uint64) {
	p.t.Helper()
	batch := p.next(10 * time.Second)
	if len(batch) != 1 || batch[0].Version != version || batch[0].Epoch != epoch {
		p.t.Fatalf("got %+v, want version %d at epoch %d", batch, version, epoch)
	}
	p.nothing(5 * time.Second)
}

// An acknowledgement that the server lost is repeated without bothering the handler.
func TestRepeatedAssignmentIsAcknowledgedAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		p := watch(t, srv.Config(), nil, client.Known{Key: orders, Version: 4, Epoch: 10})
		srv.WaitStreams(soon(t), 1)
		same := client.Assignment{Key: orders, Version: 4, Epoch: 10}
		srv.Push(same) // the server insists: it lacks the acknowledgement
		p.nothing0(4, 10)
		srv.Push(same)
		if err := srv.Until(soon(t), func() bool { return len(srv.Acks()) == 2 }); err != nil {
			t.Fatalf("acknowledgements: %+v", srv.Acks())
		}
		p.nothing(5 * time.Second)
	})
}

// Pain setec#155: one failed key must not discard the others.
func TestFailedKeyDoesNotDiscardOthers(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		srv.Set(clienttest.Login(orders, "a", "hunter2"), clienttest.Login(cache, "a", "pw"))
		watch(t, srv.Config(), func(batch []client.Assignment) []client.Outcome {
			out := applied(batch)
			for i := range out {
				if out[i].Key == orders {
					out[i].Code, out[i].Using = client.Failed, 0
					out[i].Detail = "login as a with hunter2 failed" + strings.Repeat("ä", 2000)
				}
			}
			return append(out, client.Outcome{Key: "not/asked", Version: 1, Epoch: 1, Code: client.Applied})
		}, client.Known{Key: orders}, client.Known{Key: cache})
		failed, good := srv.WaitAck(soon(t), orders, 1), srv.WaitAck(soon(t), cache, 1)
		if failed.Code != client.Failed || good.Code != client.Applied {
			t.Errorf("outcomes: %+v, %+v", failed, good)
		}
		if strings.Contains(failed.Detail, "hunter2") || !strings.Contains(failed.Detail, secret.Redacted) || len([]rune(failed.Detail)) > 1000 {
			t.Errorf("detail: %q", failed.Detail)
		}
		if len(srv.Acks()) != 2 {
			t.Errorf("acknowledgements: %+v", srv.Acks())
		}
	})
}

func TestSlowHandlerGetsTheNewestOnly(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		release := make(chan struct{})
		srv.Set(clienttest.Login(orders, "a", "1"), clienttest.Login(cache, "a", "1"))
		p := watch(t, srv.Config(), func(batch []client.Assignment) []client.Outcome {
			<-release
			return applied(batch)
		}, client.Known{Key: orders}, client.Known{Key: cache})
		p.next(time.Second)
		for range 50 {
			srv.Rotate(orders)
			synctest.Wait()
		}
		srv.Rotate(cache)
		synctest.Wait()
		close(release)
		batch := p.next(time.Second)
		if len(batch) != 2 || batch[0].Version != 51 || batch[1].Version != 2 {
			t.Fatalf("after the slow handler: %v", batch)
		}
		srv.WaitAck(soon(t), orders, 51)
		p.nothing(time.Minute)
	})
}

func TestHalfOpenStreamIsReplaced(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		srv.Set(clienttest.Login(orders, "a", "1"))
		p := watch(t, srv.Config(), nil, client.Known{Key: orders})
		p.next(time.Second)
		time.Sleep(time.Minute) // heartbeats keep it open
		if n := srv.Calls(clienttest.RPCWatch); n != 1 {
			t.Fatalf("%d streams were opened while all was well", n)
		}
		srv.SetSilent(true)
		v2 := srv.Rotate(orders)
		time.Sleep(4 * clienttest.DefaultHeartbeat)
		srv.SetSilent(false)
		if batch := p.next(30 * time.Second); batch[0].Version != v2 {
			t.Fatalf("got %v", batch)
		}
		if !slices.ContainsFunc(p.told(), func(s client.Status) bool { return errors.Is(s.Err, client.ErrSilent) }) {
			t.Errorf("nobody was told of the silence: %+v", p.told())
		}
	})
}

func TestServerRestarts(t *testing.T) {
	for _, memory := range []bool{true, false} {
		run := func(t *testing.T, srv *clienttest.Server) {
			srv.Set(clienttest.Login(orders, "a", "1"))
			cfg := srv.Config()
			cfg.BackoffMin, cfg.BackoffMax = 20*time.Millisecond, 200*time.Millisecond
			p := watch(t, cfg, nil, client.Known{Key: orders})
			p.next(10 * time.Second)
			srv.WaitAck(soon(t), orders, 1)
			for range 5 {
				srv.Stop()
				version := srv.Rotate(orders)
				srv.Start()
				if batch := p.next(10 * time.Second); batch[0].Version != version {
					t.Fatalf("got %v, want %v", batch, version)
				}
				srv.WaitAck(soon(t), orders, version)
			}
			// An answer that the stop cut off is asked for again, so some may come twice.
			distinct := make(map[clienttest.Ack]bool)
			for _, ack := range srv.Acks() {
				distinct[ack] = true
			}
			if len(distinct) != 6 {
				t.Errorf("acknowledgements: %+v", srv.Acks())
			}
		}
		t.Run(fmt.Sprintf("memory=%v", memory), func(t *testing.T) {
			if memory {
				inBubble(t, run)
			} else {
				run(t, clienttest.New(t))
			}
		})
	}
}

func TestFallsBackToPollingAndReturns(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		srv.SetStreamsBlocked(true)
		srv.Set(clienttest.Login(orders, "a", "1"))
		p := watch(t, srv.Config(), nil, client.Known{Key: orders})
		p.next(5 * time.Second) // by the poll that runs beside the silent stream
		time.Sleep(20 * time.Second)
		if p.mode() != client.ModeLongPoll {
			t.Fatalf("mode is %v; statuses: %+v", p.mode(), p.told())
		}
		v2 := srv.Rotate(orders)
		if batch := p.next(time.Second); batch[0].Version != v2 {
			t.Fatalf("long poll brought %v", batch)
		}
		before := srv.Calls(clienttest.RPCPoll)
		time.Sleep(2 * time.Minute)
		if n := srv.Calls(clienttest.RPCPoll) - before; n > 10 {
			t.Errorf("%d long polls in 2 minutes", n)
		}

		// Held requests are cut as well: only plain polls are left.
		cut := func() {
			for range 60 {
				time.Sleep(5 * time.Second)
				srv.Disconnect()
			}
		}
		cut()
		if p.mode() != client.ModePoll {
			t.Fatalf("mode is %v; statuses: %+v", p.mode(), p.told())
		}
		v3 := srv.Rotate(orders)
		if batch := p.next(30 * time.Second); batch[0].Version != v3 {
			t.Fatalf("plain poll brought %v", batch)
		}

		srv.SetStreamsBlocked(false)
		time.Sleep(10 * time.Minute)
		if p.mode() != client.ModeStream || srv.Streams() != 1 {
			t.Fatalf("the stream was not tried again: mode %v, %d streams", p.mode(), srv.Streams())
		}
	})
}

// A server that is down is no reason to give up the stream.
func TestServerDownIsNoReasonToPoll(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		srv.Set(clienttest.Login(orders, "a", "1"))
		p := watch(t, srv.Config(), nil, client.Known{Key: orders})
		p.next(time.Second)
		srv.Stop()
		time.Sleep(time.Hour)
		if n := len(p.told()); n < 300 || n > 1200 {
			t.Errorf("%d tries in an hour with a back-off of at most 10 s", n)
		}
		srv.Start()
		time.Sleep(time.Minute)
		if p.mode() != client.ModeStream {
			t.Errorf("mode is %v", p.mode())
		}
	})
}

func TestServerRefusesStreamsOutright(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		srv.Fail(clienttest.RPCWatch, connect.NewError(connect.CodeUnimplemented, errors.New("no streams here")))
		srv.Set(clienttest.Login(orders, "a", "1"))
		p := watch(t, srv.Config(), nil, client.Known{Key: orders})
		p.next(10 * time.Second)
		if p.mode() != client.ModeLongPoll {
			t.Errorf("mode is %v", p.mode())
		}
	})
}

func TestServerLoadErrorsAreHonoured(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		busy := connect.NewError(connect.CodeResourceExhausted, errors.New("too many parties"))
		busy.Meta().Set("Retry-After", "120")
		srv.FailNext(clienttest.RPCWatch, 1, busy)
		srv.Set(clienttest.Login(orders, "a", "1"))
		began := time.Now()
		p := watch(t, srv.Config(), nil, client.Known{Key: orders})
		p.next(4 * time.Minute)
		if waited := time.Since(began); waited < 2*time.Minute || waited > 3*time.Minute {
			t.Errorf("came back after %v, asked for 2 m", waited)
		}
	})
}

func TestAcknowledgementIsRepeatedUntilDurable(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		srv.Set(clienttest.Login(orders, "a", "1"))
		srv.FailNext(clienttest.RPCAck, 6, errors.New("database is away"))
		p := watch(t, srv.Config(), nil, client.Known{Key: orders})
		p.next(time.Second)
		v2 := srv.Rotate(orders)
		p.next(time.Second)
		srv.WaitAck(soon(t), orders, v2)
		if acks := srv.Acks(); len(acks) != 1 {
			t.Errorf("of several outcomes of a key the latest counts: %+v", acks)
		}
	})
}

func TestRevokedTokenIsToldAndMended(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		path := t.TempDir() + "/token"
		writeFile(t, path, "test-token\n")
		srv.Set(clienttest.Login(orders, "a", "1"))
		cfg := srv.Config()
		cfg.Token = client.TokenFile(path)
		p := watch(t, cfg, nil, client.Known{Key: orders})
		p.next(time.Second)

		srv.SetToken("renewed")
		srv.Disconnect()
		before := srv.Calls(clienttest.RPCWatch)
		time.Sleep(10 * time.Minute)
		last := p.told()[len(p.told())-1]
		if !last.Permanent || !errors.Is(last.Err, client.ErrUnauthenticated) {
			t.Fatalf("status: %+v", last)
		}
		if n := srv.Calls(clienttest.RPCWatch) - before; n < 5 || n > 30 {
			t.Errorf("%d tries in 10 minutes, want slow ones", n)
		}
		writeFile(t, path, "")
		time.Sleep(3 * time.Minute)
		if last := p.told()[len(p.told())-1]; !last.Permanent || !errors.Is(last.Err, client.ErrToken) {
			t.Errorf("with an empty token file: %+v", last)
		}
		writeFile(t, path, "renewed")
		v2 := srv.Rotate(orders)
		if batch := p.next(3 * time.Minute); batch[0].Version != v2 {
			t.Errorf("got %v", batch)
		}
	})
}

func TestThousandKeysAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		var known []client.Known
		var values []clienttest.Value
		for i := range client.MaxKeys {
			name := key.Name(fmt.Sprintf("k/%d", i))
			known = append(known, client.Known{Key: name})
			values = append(values, clienttest.Value{Key: name, Version: key.Version(math.MaxUint64 - uint64(i)), Secrets: map[string]string{"password": strings.Repeat("x", 1000)}})
		}
		srv.Set(values...)
		p := watch(t, srv.Config(), nil, known...)
		if batch := p.next(time.Second); len(batch) != client.MaxKeys {
			t.Fatalf("got %d keys", len(batch))
		}
		if err := srv.Until(soon(t), func() bool { return len(srv.Acks()) == client.MaxKeys }); err != nil {
			t.Errorf("%d acknowledgements", len(srv.Acks()))
		}
	})
}

func TestWatchRefusesBadKeys(t *testing.T) {
	c, err := client.New(client.Config{Address: "https://127.0.0.1:1", Token: client.StaticToken(secret.NewString("t"))})
	if err != nil {
		t.Fatal(err)
	}
	for name, known := range map[string][]client.Known{
		"none": nil, "invalid": {{Key: "A"}}, "twice": {{Key: orders}, {Key: orders}}, "many": make([]client.Known, client.MaxKeys+1),
	} {
		if err := c.Watch(t.Context(), known, nil); !errors.Is(err, client.ErrConfig) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestAckOutsideWatch(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		c, err := client.New(srv.Config())
		if err != nil {
			t.Fatal(err)
		}
		good := client.Outcome{Key: orders, Version: 1, Epoch: 1, Code: client.Applied, Using: 1}
		srv.FailNext(clienttest.RPCAck, 3, errors.New("away"))
		if err := c.Ack(soon(t), []client.Outcome{good}); err != nil || len(srv.Acks()) != 1 {
			t.Errorf("got %v; %+v", err, srv.Acks())
		}
		srv.FailNext(clienttest.RPCAck, 1, connect.NewError(connect.CodeNotFound, errors.New("no such rotation")))
		if err := c.Ack(soon(t), []client.Outcome{good}); !errors.Is(err, client.ErrRequest) {
			t.Errorf("a refused outcome: got %v", err)
		}
		if err := c.Ack(soon(t), []client.Outcome{{Key: orders}}); err == nil {
			t.Error("an empty outcome was accepted")
		}
		srv.Stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := c.Ack(ctx, []client.Outcome{good}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with the server away: got %v", err)
		}
	})
}

func TestJoinReportLeave(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *clienttest.Server) {
		srv.AllowJoin("join-once")
		cfg := srv.Config()
		agent := client.Party{ID: "web-1", Kind: client.KindAgent, Region: "eu", Labels: map[string]string{"cohort": "canary"}}
		id, token, err := client.Join(t.Context(), cfg, secret.NewString("join-once"), agent)
		if err != nil || id != "web-1" || token.RevealString() != "test-token" {
			t.Fatalf("got %q, %v", id, err)
		}
		if _, _, err := client.Join(t.Context(), cfg, secret.NewString("join-once"), agent); !errors.Is(err, client.ErrUnauthenticated) || strings.Contains(err.Error(), "join-once") {
			t.Errorf("the second time: %v", err)
		}
		cfg.Token, cfg.Party = client.StaticToken(token), agent
		p := watch(t, cfg, nil, client.Known{Key: orders})
		srv.WaitStreams(soon(t), 1)
		if got := srv.Parties()["web-1"]; got.Kind != client.KindAgent || got.Region != "eu" || got.Labels["cohort"] != "canary" {
			t.Errorf("registered as %+v", got)
		}
		sample := client.Sample{Key: orders, Version: 3, Attempts: 9, AuthFailures: 2, Healthy: true, Detail: "d"}
		if err := p.client.Report(t.Context(), []client.Sample{sample}); err != nil || srv.Reports()[0].Sample != sample {
			t.Errorf("got %v, %+v", err, srv.Reports())
		}
		if err := p.client.Leave(t.Context()); err != nil || len(srv.Parties()) != 0 {
			t.Errorf("got %v, %v", err, srv.Parties())
		}
	})
}

func TestProxyAnswersForTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t, clienttest.InMemory())
		srv.Set(clienttest.Login(orders, "a", "1"))
		cfg := srv.Config()
		proxy := &fakeProxy{next: cfg.HTTPClient.Transport, busy: 1}
		cfg.HTTPClient.Transport = proxy
		began := time.Now()
		p := watch(t, cfg, nil, client.Known{Key: orders})
		p.next(5 * time.Minute)
		if waited := time.Since(began); waited < time.Minute {
			t.Errorf("came back after %v; the proxy asked for 1 m", waited)
		}
	})
}

// fakeProxy answers the first requests itself.
type fakeProxy struct {
	next http.RoundTripper
	mu   sync.Mutex
	busy int
}

func (f *fakeProxy) RoundTrip(req *http.Request) (*http.Response, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy > 0 {
		f.busy--
		return &http.Response{
			Status: "503 Service Unavailable", StatusCode: http.StatusServiceUnavailable, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{"Retry-After": {"60"}, "Content-Type": {"text/html"}}, Body: http.NoBody, Request: req,
		}, nil
	}
	return f.next.RoundTrip(req)
}
