package broker_test

import (
	"encoding/base64"
	"errors"
	"maps"
	"math/big"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/broker"
	"github.com/keyturn/keyturn/internal/store/sqlite"
)

// once asks for an audience with the token of a job that may be exchanged once.
func once(compact, audience string) *broker.Request {
	r := byJob(compact)
	r.Audiences, r.Address = []string{audience}, "192.0.2.9"
	return r
}

// respelled is the same token with another signature that verifies as well: s of ECDSA
// is as good as n-s.
func respelled(t *testing.T, compact string) string {
	t.Helper()
	signed, signature, _ := cutLast(compact)
	raw, err := base64.RawURLEncoding.DecodeString(signature)
	if err != nil || len(raw) != 64 {
		t.Fatal(len(raw), err)
	}
	order, _ := new(big.Int).SetString("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)
	s := new(big.Int).Sub(order, new(big.Int).SetBytes(raw[32:]))
	s.FillBytes(raw[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(raw)
}

func cutLast(compact string) (signed, signature string, ok bool) {
	i := strings.LastIndexByte(compact, '.')
	return compact[:i], compact[i+1:], true
}

// TestSubjectTokenOnce: under a rule that says so a job's token is exchanged once, at
// whichever node, for one audience or several together; the second exchange is refused,
// told to the rules, and entered once, with the token that was given first. Other rules
// and other keys are not concerned, nor is a request that is refused for another reason.
func TestSubjectTokenOnce(t *testing.T) {
	for what, edit := range map[string]map[string]any{"with a jti": {}, "without": {"jti": nil}} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				shared := newStore()
				one, two := newNode(t, shared, nil), newNode(t, shared, nil)
				two.jobs = one.jobs
				claims := map[string]any{"repository": "once/orders"}
				maps.Copy(claims, edit)
				claims["run"] = 1
				compact := one.jobs.token(claims)
				one.refuses("a scope that no rule grants", func() *broker.Request { r := once(compact, "orders"); r.Scopes = []string{"admin"}; return r }(), broker.ErrTarget)
				both := once(compact, "orders")
				both.Audiences = []string{"orders", "billing"}
				first := one.must(both)
				for _, again := range []*broker.Request{once(compact, "orders"), once(compact, "billing"), once(compact, "stock"), once(respelled(t, compact), "orders")} {
					for _, n := range []*node{one, two} {
						n.refuses("a replay", again, broker.ErrReplay)
					}
				}
				if got := two.refused(); len(got) != 4 || got[0] != (broker.Refusal{Key: orders, Client: "repo:acme/orders", Address: "192.0.2.9", Replay: true}) {
					t.Errorf("the rules were told %+v", got)
				}
				entries := append(one.count("token.replay"), two.count("token.replay")...)
				if len(entries) != 1 || entries[0].Detail["first-jti"] != first.ID || entries[0].Key != orders || entries[0].Target != "release" || entries[0].Version != 0 {
					t.Errorf("entries: %+v", entries)
				}
				if one.results["replay"] != 4 || len(one.count("token.issue")) != 1 || len(two.count("token.issue")) != 0 {
					t.Errorf("results: %v, %d and %d tokens", one.results, len(one.count("token.issue")), len(two.count("token.issue")))
				}
				two.must(once(compact, "reports"))
				two.must(once(compact, "reports"))
				elsewhere := once(compact, "orders")
				elsewhere.Key = others
				two.must(elsewhere)
				claims["run"] = 2
				if claims["jti"] == nil {
					two.must(once(one.jobs.token(claims), "orders")) // another token of the same second
				}
				time.Sleep(time.Hour + 3*time.Minute)
				synctest.Wait()
				if kept := marks(t, shared); kept != 0 {
					t.Errorf("%d tokens are remembered after they have expired", kept)
				}
			})
		})
	}
}

// BenchmarkBoundTokens compares tokens that are bound by proofs that one node remembers
// with those by proofs that are noted in the store, for 64 clients at a time.
func BenchmarkBoundTokens(b *testing.B) {
	for what, noted := range map[string]bool{"remembered": false, "noted": true} {
		b.Run(what, func(b *testing.B) {
			shared, err := sqlite.Open(b.Context(), sqlite.Config{Path: filepath.Join(b.TempDir(), "keyturn.db")})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = shared.Stop() }() // it ends
			n := newNode(b, shared, func(c *broker.Config) { c.Alone = !noted })
			p := newProofs(b)
			nonce := n.nonce(p, "")
			var used [2]syscall.Rusage
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &used[0]) // it does not fail for this process
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := n.Give(b.Context(), byClient(p.with(nonce))); err != nil {
						b.Error(err)
					}
				}
			})
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &used[1])
			cpu := time.Duration(used[1].Utime.Nano() + used[1].Stime.Nano() - used[0].Utime.Nano() - used[0].Stime.Nano())
			b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

// TestSubjectTokenOnceAtTheSameMoment: of exchanges at several nodes at once one is
// good. While the store is away none is, and the token can be exchanged afterwards.
func TestSubjectTokenOnceAtTheSameMoment(t *testing.T) {
	shared := newStore()
	nodes := []*node{newNode(t, shared, nil), newNode(t, shared, nil), newNode(t, shared, nil)}
	for _, n := range nodes {
		n.jobs = nodes[0].jobs
	}
	for range 30 {
		compact := nodes[0].jobs.token(map[string]any{"repository": "once/orders"})
		for _, n := range nodes {
			n.link.away.Store(true)
			n.refuses("without the store", once(compact, "orders"), broker.ErrAway)
			n.link.away.Store(false)
		}
		var good atomic.Int32
		var running sync.WaitGroup
		for i := range 9 {
			running.Go(func() {
				_, err := nodes[i%3].Give(t.Context(), once(compact, "orders"))
				if err == nil {
					good.Add(1)
				} else if !errors.Is(err, broker.ErrReplay) {
					t.Error(err)
				}
			})
		}
		if running.Wait(); good.Load() != 1 {
			t.Fatalf("a token was exchanged %d times", good.Load())
		}
	}
}
