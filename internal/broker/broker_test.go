package broker_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/broker"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/internal/webtoken"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// TestEveryTokenIsCovered: a job's token has an entry of its own; those of a client
// share one for each span, and the next says how many there were. While the log
// cannot be written nothing is given that no entry covers, and no count is lost.
func TestEveryTokenIsCovered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, newStore(), nil)
		for range 3 {
			n.must(byJob(n.jobs.token(nil)))
		}
		if entries := n.count("token.issue"); len(entries) != 3 {
			t.Fatalf("%d entries for 3 jobs", len(entries))
		}
		for range 10 {
			n.must(byClient())
		}
		if entries := n.count("token.issue"); len(entries) != 4 {
			t.Errorf("%d entries for 3 jobs and a client", len(entries))
		}
		n.link.away.Store(true)
		n.must(byClient()) // covered
		n.refuses("a job without the log", byJob(n.jobs.token(nil)), broker.ErrAway)
		time.Sleep(span + time.Second)
		n.refuses("a client without the log", byClient(), broker.ErrAway)
		n.link.away.Store(false)
		for range 2 {
			n.must(byClient())
		}
		time.Sleep(3 * span)
		synctest.Wait()
		counted := 0
		for _, e := range append(n.count("token.issue"), n.count("token.issue-more")...) {
			for _, detail := range []string{"more", "times"} {
				if n, err := strconv.Atoi(e.Detail[detail]); err == nil {
					counted += n
				}
			}
		}
		if own := len(n.count("token.issue")); own != 5 || counted != 11 {
			t.Errorf("%d entries, and %d tokens that are counted, of 16", own, counted)
		}
	})
}

// TestRefusalsAreSummed: a thousand refusals are one entry, and one result.
func TestRefusalsAreSummed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, newStore(), nil)
		for range 1000 {
			n.refuses("a wrong secret", byClient(func(r *broker.Request) { r.Secret = secret.NewString("x") }), broker.ErrClient)
		}
		n.refuses("a scope", byClient(func(r *broker.Request) { r.Scopes = []string{"write"} }), broker.ErrScope)
		time.Sleep(span + time.Second)
		synctest.Wait()
		causes := map[string]string{}
		for _, e := range n.count("token.refuse") {
			causes[e.Detail["cause"]] = e.Detail["times"]
		}
		if len(causes) != 2 || causes["client"] != "1000" || causes["scope"] != "1" || n.results["client"] != 1000 {
			t.Errorf("%v, %v", causes, n.results)
		}
	})
}

// TestProofsOfNobody: a proof is remembered when its client is known, not before:
// who is nobody cannot fill what is remembered. Then it counts once.
func TestProofsOfNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, newStore(), nil)
		p := newProofs(t)
		good := p.with(n.nonce(p, ""))
		n.refuses("a proof of nobody", byClient(good, func(r *broker.Request) { r.Secret = secret.NewString("x") }), broker.ErrClient)
		issued := n.must(byClient(good))
		if cnf, _ := n.of(&issued).Claims["cnf"].(map[string]string); !issued.Bound || len(cnf["jkt"]) != 43 {
			t.Errorf("bound to %v", cnf)
		}
		n.refuses("a replay", byClient(good), broker.ErrProof)
		want := []broker.Refusal{{Key: orders, Address: "192.0.2.7"}, {Key: orders, Client: "svc-a", Address: "192.0.2.7", Replay: true}} // who lacks a nonce gets one
		if got := n.refused(); !slices.Equal(got, want) {
			t.Errorf("told of %+v, want %+v", got, want)
		}
		n.refuses("two proofs", byClient(good, func(r *broker.Request) { r.Proofs = append(r.Proofs, r.Proofs...) }), broker.ErrProof)
	})
}

// TestNoncesAreShared: the nonce that a client is given first is good at each node that
// shares the store, for two to four minutes, also where the clock is behind, and after
// a restart; at others it is none.
func TestNoncesAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := newStore()
		behind := func(c *broker.Config) { c.Now = func() time.Time { return time.Now().Add(-20 * time.Second) } }
		one, two, stranger := newNode(t, shared, nil), newNode(t, shared, behind), newNode(t, newStore(), nil)
		p := newProofs(t)
		for range 8 { // over the borders of spans
			nonce := one.nonce(p, "")
			two.must(byClient(p.with(nonce)))
			one.must(byClient(p.with(two.nonce(p, ""))))
			stranger.refuses("a nonce of another installation", byClient(p.with(nonce)), broker.ErrNonce)
			time.Sleep(35 * time.Second)
		}
		nonce := one.nonce(p, "")
		again := newNode(t, shared, nil)
		again.must(byClient(p.with(nonce)))
		time.Sleep(110 * time.Second)
		again.must(byClient(p.with(nonce)))
		time.Sleep(130 * time.Second)
		again.refuses("an old nonce", byClient(p.with(nonce)), broker.ErrNonce)
	})
}

// TestProofCountsOnceAtAllNodes: a proof by a nonce that is good at all nodes counts at
// one of them, once, also when they are asked at the same moment. The nonce that comes
// with a token is that of its node: a proof by it counts there, and needs no store; at
// another node, and after a restart, it is refused, with a nonce that is good wherever
// the client arrives next and stays so. Whatever the way, one repetition is enough.
func TestProofCountsOnceAtAllNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := newStore()
		one, two := newNode(t, shared, nil), newNode(t, shared, nil)
		p := newProofs(t)
		replayed := func(what string, n *node, proof func(*broker.Request)) {
			t.Helper()
			n.refuses(what, byClient(proof), broker.ErrProof)
			if told := n.refused(); len(told) == 0 || !told[len(told)-1].Replay {
				t.Errorf("%s: the rules are told of %+v", what, told)
			}
		}
		first := p.with(one.nonce(p, ""))
		issued := two.must(byClient(first))
		replayed("at the same node", two, first)
		replayed("at the other node", one, first)
		for range 20 {
			proof := p.with(one.nonce(p, ""))
			var good atomic.Int32
			var running sync.WaitGroup
			for _, n := range []*node{one, two, one, two} {
				running.Go(func() {
					if _, err := n.Give(t.Context(), byClient(proof)); err == nil {
						good.Add(1)
					} else if !errors.Is(err, broker.ErrProof) {
						t.Error(err)
					}
				})
			}
			if running.Wait(); good.Load() != 1 {
				t.Fatalf("a proof counted %d times", good.Load())
			}
		}

		// The nonce of the second node.
		own := p.with(issued.Nonce)
		roaming := one.nonce(p, issued.Nonce)
		one.refuses("a proof by the nonce of the other node", byClient(own), broker.ErrNonce)
		two.link.away.Store(true)
		next := two.must(byClient(own))
		replayed("without the store", two, own)
		two.refuses("one that the store would have to note", byClient(p.with(roaming)), broker.ErrAway)
		two.link.away.Store(false)
		one.refuses("the replay at the other node", byClient(own), broker.ErrNonce)
		if issued := two.must(byClient(p.with(next.Nonce))); issued.Nonce != next.Nonce {
			t.Error("the nonce of a node changes with each token")
		}

		// A client whose requests reach now this node and now that.
		for i := range 6 {
			n := []*node{one, two, one, one, two, two}[i]
			proof := p.with(roaming)
			if issued := n.must(byClient(proof)); issued.Nonce != roaming {
				t.Errorf("request %d: the nonce is another one", i)
			}
			replayed("a roaming client's proof at the same node", n, proof)
			replayed("a roaming client's proof", []*node{two, one, two, two, one, one}[i], proof)
		}
		again := newNode(t, shared, nil)
		again.must(byClient(p.with(again.nonce(p, next.Nonce))))
		again.refuses("the replay after a restart", byClient(own), broker.ErrNonce)
		if kept := marks(t, shared); kept == 0 {
			t.Error("nothing is noted in the store")
		}
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		if kept := marks(t, shared); kept != 0 {
			t.Errorf("%d proofs are kept for ever", kept)
		}
	})
}

// TestProofsOfOneNode: a node that is alone notes nothing in the store, and takes no
// proof of before its restart.
func TestProofsOfOneNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := newStore()
		alone := func(c *broker.Config) { c.Alone = true }
		n := newNode(t, shared, alone)
		p := newProofs(t)
		nonce := n.nonce(p, "")
		proof := p.with(nonce)
		if issued := n.must(byClient(proof)); issued.Nonce != nonce {
			t.Error("it has several nonces")
		}
		n.refuses("a replay", byClient(proof), broker.ErrProof)
		again := newNode(t, shared, alone)
		again.refuses("a replay after a restart", byClient(proof), broker.ErrNonce)
		again.must(byClient(p.with(again.nonce(p, nonce))))
		if kept := marks(t, shared); kept != 0 {
			t.Errorf("%d proofs are noted in the store", kept)
		}
	})
}

// marks is how many things that count once are noted in the store.
func marks(t *testing.T, s store.Store) (n int) {
	t.Helper()
	err := s.View(t.Context(), func(tx store.Tx) error {
		docs, err := tx.Index.List(t.Context(), "token-used", "", "", 1000)
		n = len(docs)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestStartWithoutTheStore: it fails and leaves nothing behind.
func TestStartWithoutTheStore(t *testing.T) {
	away := &link{Store: newStore()}
	away.away.Store(true)
	b := broker.New(broker.Config{Store: away, Keeper: glass{}, Now: time.Now})
	if err := b.Start(t.Context()); !errors.Is(err, errAway) {
		t.Error(err)
	}
	b.Stop(t.Context())
}

// TestRevocationsAreFollowed: what one node revokes the other knows when it has read;
// one that cannot read says so; what has expired is forgotten.
func TestRevocationsAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := newStore()
		start := time.Now()
		one, two := newNode(t, shared, nil), newNode(t, shared, nil)
		synctest.Wait()
		allowed := func(*token.Claims) error { return nil }
		actor := audit.Actor{ID: "op", Kind: "user"}
		revoke := func(n *node, compact string, want error) {
			t.Helper()
			if err := n.Revoke(t.Context(), orders, compact, actor, allowed); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", compact, err, want)
			}
		}
		revoke(one, "good-1", nil)
		revoke(one, "good-1", nil)
		revoke(one, "no token", nil) // RFC 7009, section 2.2
		if err := one.Revoke(t.Context(), orders, "good-2", actor, func(*token.Claims) error { return broker.ErrGrant }); !errors.Is(err, broker.ErrGrant) {
			t.Errorf("it was not allowed, and %v", err)
		}
		if _, err := one.Introspect(orders, "good-1"); !errors.Is(err, token.ErrToken) {
			t.Errorf("at the same node: %v", err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if _, err := two.Introspect(orders, "good-1"); !errors.Is(err, token.ErrToken) {
			t.Errorf("at the other one, after %v: %v", time.Since(start), err)
		}
		if _, err := two.Introspect(orders, "good-2"); err != nil {
			t.Error(err)
		}
		if entries := one.count("token.revoke"); len(entries) != 1 || one.revoked != 1 {
			t.Errorf("%d entries, %d counted", len(entries), one.revoked)
		}
		two.link.away.Store(true)
		revoke(two, "good-3", broker.ErrAway)
		time.Sleep(4 * time.Minute)
		if _, err := two.Introspect(orders, "good-2"); err != nil {
			t.Errorf("within the time that it may go on: %v", err)
		}
		time.Sleep(2 * time.Minute)
		if _, err := two.Introspect(orders, "good-2"); !errors.Is(err, broker.ErrAway) {
			t.Errorf("afterwards: %v", err)
		}
		if _, err := two.Introspect(orders, "good-1"); !errors.Is(err, token.ErrToken) {
			t.Errorf("a revoked one afterwards: %v", err)
		}
	})
}

// TestSweepOfRevocations: a revocation is deleted when its token has expired.
func TestSweepOfRevocations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := newStore()
		expires := time.Now().Add(3 * time.Minute)
		n := newNode(t, shared, func(c *broker.Config) { c.Verifier = soon{expires} })
		if err := n.Revoke(t.Context(), orders, "x", audit.Actor{ID: "op", Kind: "user"}, func(*token.Claims) error { return nil }); err != nil {
			t.Fatal(err)
		}
		kept := func() int {
			count := 0
			err := shared.View(t.Context(), func(tx store.Tx) error {
				docs, err := tx.Index.List(t.Context(), "token-revoked", "", "", 10)
				count = len(docs)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return count
		}
		time.Sleep(3 * time.Minute)
		if kept() != 1 {
			t.Error("it is forgotten before its token has expired, by whatever clock")
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if kept() != 0 {
			t.Error("it is kept for ever")
		}
	})
}

type soon struct{ expires time.Time }

func (s soon) Verify(key.Name, string, token.Expect) (token.Claims, error) {
	return token.Claims{Version: 1, Claims: webtoken.Claims{ID: "soon", Expires: s.expires}}, nil
}

// TestManyAtOnce: concurrent requests of many clients and jobs each get a token.
func TestManyAtOnce(t *testing.T) {
	n := newNode(t, newStore(), nil)
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			for range 20 {
				if _, err := n.Give(context.WithoutCancel(t.Context()), byClient()); err != nil {
					t.Error(err)
				}
				if _, err := n.Give(context.WithoutCancel(t.Context()), byJob(n.jobs.token(nil))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
	if jobs := len(n.count("token.issue")); jobs < 160 {
		t.Errorf("%d entries", jobs)
	}
}
