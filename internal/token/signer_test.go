package token_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/key"
)

func (w *world) tell(n *node, v key.Version) { n.hub.tell(v, w.mint(v)) }

// use counts the tokens of a version.
func (w *world) use(n *node, v key.Version) int {
	w.t.Helper()
	usage, err := n.Tokens(w.t.Context(), orders, v)
	if err != nil {
		w.t.Fatalf("usage: %v", err)
	}
	for _, h := range usage.Holders {
		if h.Application == "" || h.Sessions < 1 {
			w.t.Errorf("nobody is named: %+v", h)
		}
	}
	if (usage.Sessions == 0) != (len(usage.Holders) == 0) {
		w.t.Errorf("usage contradicts itself: %+v", usage)
	}
	return usage.Sessions
}

// TestSignsWithWhatItWasTold: nothing before, the told version afterwards, another
// one only when that was acknowledged, and nothing after Stop.
func TestSignsWithWhatItWasTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		if _, err := n.Sign(t.Context(), token.Request{Key: orders}); !errors.Is(err, token.ErrUnknown) {
			t.Errorf("an unknown key: %v", err)
		}
		w.list(n, 1, token.Published, true)
		w.list(n, 2, token.Published, true)
		time.Sleep(time.Second)
		if _, err := n.Sign(t.Context(), token.Request{Key: orders}); !errors.Is(err, token.ErrNotReady) {
			t.Errorf("before it was told anything: %v", err)
		}
		for _, v := range []key.Version{1, 2, 1} {
			w.tell(n, v)
			time.Sleep(time.Second)
			if o, ok := n.hub.last(); !ok || !o.OK || o.Using != v {
				t.Fatalf("told %v: %+v", v, o)
			}
			signed, err := n.Sign(t.Context(), token.Request{Key: orders, Subject: "alice", Audience: []string{"orders"}, Claims: map[string]any{"scope": "read"}})
			if err != nil || signed.Version != v || signed.KeyID != v.String() {
				t.Fatalf("told %v: %+v, %v", v, signed, err)
			}
			claims, err := n.Verify(orders, signed.Compact.RevealString(), token.Expect{Audience: "orders", Type: token.JWT})
			if err != nil {
				t.Fatal(err)
			}
			if claims.Subject != "alice" || claims.ID != signed.ID || claims.Version != v || string(claims.All["scope"]) != `"read"` ||
				claims.Issuer != issuer || claims.Expires.Sub(claims.Issued) != tokenLife || !claims.Expires.Equal(signed.Expires) {
				t.Errorf("claims %+v", claims)
			}
		}
		n.stop()
		if _, err := n.Sign(t.Context(), token.Request{Key: orders}); !errors.Is(err, token.ErrNotReady) {
			t.Errorf("after it was stopped: %v", err)
		}
	})
}

// TestUseEndsWithTheLastToken: use of a version that is signed with no more becomes
// zero when its last token has expired, and not before; also when the node was killed.
func TestUseEndsWithTheLastToken(t *testing.T) {
	for _, killed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			n, other := w.start("one"), w.start("other")
			w.list(n, 1, token.Published, true)
			w.list(n, 2, token.Published, true)
			time.Sleep(2 * time.Second)
			w.tell(n, 1)
			time.Sleep(time.Second)
			if w.use(other, 2) != 0 {
				t.Error("a version that was never signed with is in use")
			}
			var last token.Token
			for range 3 {
				time.Sleep(time.Second)
				var err error
				if last, err = n.Sign(t.Context(), token.Request{Key: orders}); err != nil {
					t.Fatal(err)
				}
			}
			most := tokenLife + skew + time.Second
			if killed {
				n.kill()
				most += outage
			} else {
				w.tell(n, 2)
				time.Sleep(time.Second)
				if used := w.use(other, 1); used != 3 {
					t.Errorf("%d tokens are counted, 3 were signed", used)
				}
			}
			for !time.Now().After(last.Expires) {
				if w.use(other, 1) == 0 {
					t.Fatalf("use is zero %v before the last token expires", time.Until(last.Expires))
				}
				time.Sleep(time.Second)
			}
			for w.use(other, 1) > 0 {
				time.Sleep(time.Second)
			}
			if took := time.Since(last.Issued); took > most+2*time.Second {
				t.Errorf("killed %v: use ended after %v", killed, took)
			}
		})
	}
}

// TestSignsWhileTheStoreIsAway: tokens keep their full life for the outage, then
// become shorter, and end with what was written before; afterwards all is well.
func TestSignsWhileTheStoreIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		w.list(n, 1, token.Published, true)
		time.Sleep(time.Second)
		w.tell(n, 1)
		time.Sleep(time.Minute)
		began := time.Now()
		n.link.away.Store(true)
		shortened := false
		for {
			signed, err := n.Sign(t.Context(), token.Request{Key: orders})
			if err != nil {
				if !errors.Is(err, token.ErrNotReady) || !shortened {
					t.Errorf("after %v: %v", time.Since(began), err)
				}
				break
			}
			if signed.Expires.Sub(signed.Issued) < tokenLife-time.Second {
				shortened = true
				if gone := time.Since(began); gone < outage/2 {
					t.Fatalf("tokens were shortened after %v", gone)
				}
			}
			if time.Since(began) > outage+tokenLife {
				t.Fatal("tokens are signed for ever")
			}
			time.Sleep(time.Second)
		}
		n.link.away.Store(false)
		time.Sleep(20 * time.Second)
		if signed, err := n.Sign(t.Context(), token.Request{Key: orders}); err != nil || signed.Expires.Sub(signed.Issued) < tokenLife-time.Second {
			t.Errorf("after the outage: %+v, %v", signed, err)
		}
	})
}

// TestNothingIsSignedBeforeItIsWritten: while it cannot be written that a version
// may have tokens it is not signed with, and not acknowledged.
func TestNothingIsSignedBeforeItIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		w.list(n, 1, token.Published, true)
		time.Sleep(time.Second)
		w.tell(n, 1)
		time.Sleep(time.Second)
		n.link.away.Store(true)
		w.tell(n, 2)
		time.Sleep(10 * time.Second)
		if o, _ := n.hub.last(); o.Using != 1 {
			t.Errorf("it acknowledged %+v", o)
		}
		if signed, err := n.Sign(t.Context(), token.Request{Key: orders}); err != nil || signed.Version != 1 {
			t.Errorf("it signs with %v: %v", signed.Version, err)
		}
		n.link.away.Store(false)
		time.Sleep(10 * time.Second)
		if o, _ := n.hub.last(); o.Using != 2 || !o.OK {
			t.Errorf("back again, it acknowledged %+v", o)
		}
	})
}

// TestBadMaterialIsNotTakenIntoUse: the old version stays, and the answer says why.
func TestBadMaterialIsNotTakenIntoUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		w.list(n, 1, token.Published, true)
		time.Sleep(time.Second)
		w.tell(n, 1)
		time.Sleep(time.Second)
		damaged := w.mint(2)
		damaged.Secrets = w.mint(3).Secrets
		n.hub.tell(2, damaged)
		time.Sleep(time.Second)
		if o, _ := n.hub.last(); o.OK || o.Using != 1 || !strings.Contains(o.Detail, "private key") {
			t.Errorf("it acknowledged %+v", o)
		}
		if signed, err := n.Sign(t.Context(), token.Request{Key: orders}); err != nil || signed.Version != 1 {
			t.Errorf("it signs with %v: %v", signed.Version, err)
		}
	})
}

// TestRequestsThatCannotBeSigned are told what is wrong, and count as nothing.
func TestRequestsThatCannotBeSigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		w.list(n, 1, token.Published, true)
		time.Sleep(time.Second)
		w.tell(n, 1)
		time.Sleep(time.Second)
		for what, request := range map[string]token.Request{
			"registered claim":           {Claims: map[string]any{"exp": 1 << 40}},
			"registered claim, disguise": {Claims: map[string]any{"Exp": 1 << 40}},
			"unencodable claim":          {Claims: map[string]any{"f": func() {}}},
			"huge claims":                {Claims: map[string]any{"x": strings.Repeat("x", token.MaxClaims)}},
			"negative life":              {Life: -time.Second},
			"tiny life":                  {Life: time.Millisecond},
			"unknown type":               {Type: 9},
		} {
			request.Key = orders
			if _, err := n.Sign(t.Context(), request); !errors.Is(err, token.ErrRequest) {
				t.Errorf("%s: %v", what, err)
			}
		}
		w.tell(n, 2)
		time.Sleep(time.Second)
		if used := w.use(n, 1); used != 0 {
			t.Errorf("%d tokens are counted, none was signed", used)
		}
	})
}

// TestUseIsNeverCountedTooEarlyAsZero draws histories: nodes sign, are told other
// versions, lose the store, are killed and start again. As long as any token of a
// version is valid its use is not zero, and when none is it becomes zero.
func TestUseIsNeverCountedTooEarlyAsZero(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { drawHistory(t, rand.New(rand.NewPCG(seed, 1)), time.Sleep) })
		})
	}
}

// drawHistory runs in a bubble, whose time sleep lets pass.
func drawHistory(t *testing.T, r *rand.Rand, sleep func(time.Duration)) {
	w := newWorld(t)
	watcher := w.start("watcher")
	for v := key.Version(1); v <= 3; v++ {
		w.list(watcher, v, token.Published, true)
	}
	nodes := map[string]*node{}
	expires := map[key.Version]time.Time{}
	told := key.Version(1)
	for range 300 {
		name := fmt.Sprint("n", r.IntN(3))
		n := nodes[name]
		switch choice := r.IntN(20); {
		case n == nil:
			nodes[name] = w.start(name)
			w.tell(nodes[name], told)
		case choice < 10:
			if signed, err := n.Sign(t.Context(), token.Request{Key: orders, Life: time.Duration(r.IntN(60)) * time.Second}); err == nil {
				if signed.Expires.After(expires[signed.Version]) {
					expires[signed.Version] = signed.Expires
				}
			}
		case choice < 14:
			told = key.Version(r.IntN(3) + 1)
			for _, name := range []string{"n0", "n1", "n2"} {
				if nodes[name] != nil && r.IntN(4) > 0 {
					w.tell(nodes[name], told)
				}
			}
		case choice < 16:
			n.link.away.Store(!n.link.away.Load())
		case choice < 17:
			n.kill()
			delete(nodes, name)
		case choice < 18:
			n.link.away.Store(false)
			n.stop()
			delete(nodes, name)
		default:
			sleep(time.Duration(r.IntN(40_000)) * time.Millisecond)
		}
		sleep(time.Duration(r.IntN(500)) * time.Millisecond)
		for v, last := range expires {
			if time.Now().Before(last) && w.use(watcher, v) == 0 {
				t.Fatalf("use of %v is zero, and a token is valid for %v", v, time.Until(last))
			}
		}
	}
	for n := range maps.Values(nodes) {
		n.kill()
	}
	sleep(outage + tokenLife + 2*skew)
	for v := range expires {
		if used := w.use(watcher, v); used != 0 {
			t.Errorf("%d tokens of %v are counted when none can be valid", used, v)
		}
	}
}

// TestClaimsAreOneObject: what is encoded is what is read, whatever the claims.
func TestClaimsAreOneObject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		w.list(n, 1, token.Published, true)
		time.Sleep(time.Second)
		w.tell(n, 1)
		time.Sleep(time.Second)
		claims := map[string]any{"a\"b": []any{"x", 1.5, nil}, "<&>": "é\u2028", "nested": map[string]any{"exp": 1}}
		signed, err := n.Sign(t.Context(), token.Request{Key: orders, Type: token.AccessToken, Audience: []string{"a", "b"}, ID: "chosen", Claims: claims})
		if err != nil {
			t.Fatal(err)
		}
		got, err := n.Verify(orders, signed.Compact.RevealString(), token.Expect{Audience: "b", Type: token.AccessToken})
		if err != nil || got.ID != "chosen" || len(got.Audience) != 2 {
			t.Fatalf("%+v, %v", got, err)
		}
		for name, want := range claims {
			var value any
			if err := json.Unmarshal(got.All[name], &value); err != nil {
				t.Errorf("claim %q: %v", name, err)
			}
			if want, got := fmt.Sprint(want), fmt.Sprint(value); want != got {
				t.Errorf("claim %q is %s, want %s", name, got, want)
			}
		}
	})
}

// TestSignersReportHowTheyFare: every few seconds, of what is published; of what is
// not there is nothing to tell.
func TestSignersReportHowTheyFare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		w.list(n, 1, token.Published, true)
		w.list(n, 2, "api", true) // and nowhere else
		time.Sleep(time.Second)
		w.tell(n, 1)
		time.Sleep(time.Minute)
		n.hub.mu.Lock()
		if n.hub.reported[1] < 10 || len(n.hub.failed) > 0 {
			t.Errorf("%d reports in a minute, %v", n.hub.reported[1], n.hub.failed)
		}
		n.hub.mu.Unlock()
		w.tell(n, 2)
		time.Sleep(time.Minute)
		n.hub.mu.Lock()
		defer n.hub.mu.Unlock()
		if n.hub.reported[2] > 0 || len(n.hub.failed) > 0 {
			t.Errorf("%d reports of what is not published, %v", n.hub.reported[2], n.hub.failed)
		}
	})
}
