package token_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/key"
)

func strictly(body []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	return d.Decode(into)
}

// TestFirstKeyNeedsNoWaiting: nobody can hold a set from before the first one.
func TestFirstKeyNeedsNoWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		if _, err := n.Find(publicSet); !errors.Is(err, token.ErrUnknown) {
			t.Errorf("before there is a key: %v", err)
		}
		if s := w.list(n, 1, token.Published, true); !s.Arrived {
			t.Errorf("the first key waits for %s", s.Waiting)
		}
		if list := kids(t, n, publicSet); !has(list, "v1") {
			t.Errorf("served are %v", list)
		}
	})
}

// TestPublishedArrivesWhenCachesEnd: the set for everybody has arrived when every
// cache that was filled before has ended, and not a second earlier; so has a removal.
func TestPublishedArrivesWhenCachesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		w.list(n, 1, token.Published, true)
		for _, listed := range []bool{true, false, true} {
			began := time.Now()
			s := w.list(n, 2, token.Published, listed)
			if s.Arrived || !strings.Contains(s.Waiting, "cache") || s.Until.Before(began.Add(cacheLife)) {
				t.Fatalf("listed %v: standing %+v", listed, s)
			}
			if has(kids(t, n, publicSet), "v2") != listed {
				t.Errorf("listed %v, and the set says otherwise", listed)
			}
			time.Sleep(cacheLife)
			if s = w.standing(n, 2, token.Published); s.Arrived {
				t.Errorf("listed %v: arrived without slack", listed)
			}
			time.Sleep(skew + time.Millisecond)
			if s = w.standing(n, 2, token.Published); !s.Arrived || s.Listed != listed {
				t.Errorf("listed %v: standing %+v after %v", listed, s, time.Since(began))
			}
			if s = w.list(n, 2, token.Published, listed); !s.Arrived {
				t.Error("repeating a change began it anew")
			}
		}
	})
}

// TestVerifierArrivesWhenItFetches: the fetch of a set with the change counts, that
// of an older one, of another network, or behind a shared address does not.
func TestVerifierArrivesWhenItFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		from := func(c *token.Change) { c.From = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} }
		w.list(n, 1, "api", true, from)
		older, err := n.Find(apiSet)
		if err != nil {
			t.Fatal(err)
		}
		if s := w.list(n, 2, "api", true, from); s.Arrived || !strings.Contains(s.Waiting, "verifier api") || !strings.Contains(s.Waiting, "never") {
			t.Fatalf("standing %+v", s)
		}
		newer, err := n.Find(apiSet)
		if err != nil {
			t.Fatal(err)
		}
		fetched := func(page *token.Page, address netip.Addr) token.Standing {
			time.Sleep(time.Second)
			n.Fetched(page, address)
			time.Sleep(skew / 2)
			if s := w.standing(n, 2, "api"); s.Arrived {
				t.Error("the verifier had no time to take what it fetched into use")
			}
			time.Sleep(skew)
			return w.standing(n, 2, "api")
		}
		if s := fetched(older, somewhere); s.Arrived || strings.Contains(s.Waiting, "never") {
			t.Errorf("after an older set was fetched: %+v", s)
		}
		if s := fetched(newer, netip.MustParseAddr("198.51.100.7")); s.Arrived {
			t.Error("somebody else's fetch counted")
		}
		if s := fetched(newer, netip.Addr{}); s.Arrived {
			t.Error("a fetch from nowhere counted")
		}
		if s := fetched(newer, somewhere); !s.Arrived {
			t.Errorf("fetched, and yet waiting for %s", s.Waiting)
		}
		// A verifier that got an older set after all does not have the change any more.
		if s := fetched(older, somewhere); s.Arrived {
			t.Error("a later fetch of an older set was overlooked")
		}
		shared := func(c *token.Change) { c.Shared = true }
		w.list(n, 3, "api", true, shared)
		if newer, err = n.Find(apiSet); err != nil {
			t.Fatal(err)
		}
		n.Fetched(newer, somewhere)
		time.Sleep(time.Second)
		if s := w.standing(n, 3, "api"); s.Arrived {
			t.Error("one of several readers counted for all")
		}
		time.Sleep(cacheLife + skew)
		if s := w.standing(n, 3, "api"); !s.Arrived {
			t.Errorf("standing %+v after every cache ended", s)
		}
	})
}

// TestShorterCacheLifeCountsLater: sets that were served with a longer life are held
// for that long.
func TestShorterCacheLifeCountsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		w.list(n, 1, token.Published, true)
		short := func(c *token.Change) { c.CacheLife = time.Second }
		w.list(n, 2, token.Published, true, short)
		time.Sleep(cacheLife)
		if s := w.standing(n, 2, token.Published); s.Arrived {
			t.Error("caches with the longer life were forgotten")
		}
		time.Sleep(2 * (cacheLife + outage))
		w.list(n, 3, token.Published, true, short)
		time.Sleep(time.Second + skew + time.Millisecond)
		if s := w.standing(n, 3, token.Published); !s.Arrived {
			t.Errorf("the shorter life never counts: %+v", s)
		}
	})
}

// TestEveryNodeServesBeforeItArrives: a node that is cut off from the store is waited
// for until it serves nothing any more; one that lives or has left is not.
func TestEveryNodeServesBeforeItArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two, left := w.start("one"), w.start("two"), w.start("left")
		left.stop()
		w.list(one, 1, "api", true)
		time.Sleep(2 * skew)
		if s := w.standing(one, 1, "api"); !s.Arrived {
			t.Fatalf("two nodes that live: %+v", s)
		}
		if !has(kids(t, two, apiSet), "v1") {
			t.Error("the other node does not serve it")
		}
		two.link.away.Store(true)
		began := time.Now()
		w.list(one, 2, "api", true)
		page, err := one.Find(apiSet)
		if err != nil {
			t.Fatal(err)
		}
		one.Fetched(page, somewhere)
		time.Sleep(2 * time.Second)
		if s := w.standing(one, 2, "api"); s.Arrived || !strings.Contains(s.Waiting, "node two") {
			t.Fatalf("a node that is cut off: %+v", s)
		}
		// As long as the cut-off node serves the older set, the change has not arrived.
		for waiting := true; waiting; {
			time.Sleep(time.Second)
			_, err := two.Find(apiSet)
			waiting = strings.Contains(w.standing(one, 2, "api").Waiting, "node two")
			if err == nil && !waiting {
				t.Fatalf("after %v the node still serves, and is not waited for", time.Since(began))
			}
		}
		if took := time.Since(began); took > outage+5*time.Second {
			t.Errorf("the node was waited for %v", took)
		}
		time.Sleep(time.Second)
		one.Fetched(page, somewhere)
		time.Sleep(2 * skew)
		if s := w.standing(one, 2, "api"); !s.Arrived {
			t.Errorf("standing %+v", s)
		}
		two.link.away.Store(false)
		time.Sleep(2 * time.Second)
		if list := kids(t, two, apiSet); !has(list, "v2") {
			t.Errorf("back again, the node serves %v", list)
		}
	})
}

// TestServedWhileTheStoreIsAway: sets are served from memory for the outage, then
// not at all, and again when the store is back.
func TestServedWhileTheStoreIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		w.list(n, 1, token.Published, true)
		n.link.away.Store(true)
		time.Sleep(outage / 2)
		if _, err := n.Find(publicSet); err != nil {
			t.Errorf("during an outage: %v", err)
		}
		time.Sleep(outage)
		if _, err := n.Find(publicSet); !errors.Is(err, token.ErrNotReady) {
			t.Errorf("after a long outage: %v", err)
		}
		n.link.away.Store(false)
		time.Sleep(2 * time.Second)
		if _, err := n.Find(publicSet); err != nil {
			t.Errorf("after the outage: %v", err)
		}
	})
}

// TestLateCallsAreRefused: of two calls for a version the one with the larger fence
// counts, whatever their order.
func TestLateCallsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		late := w.changed(1, "api", true)
		w.list(n, 1, "api", false)
		if _, err := n.Change(t.Context(), late); !errors.Is(err, token.ErrFenced) {
			t.Errorf("a late call: %v", err)
		}
		if s := w.standing(n, 1, "api"); s.Listed {
			t.Error("the late call counted")
		}
	})
}

// TestIssuersAreUnique: two keys under one path would publish each other's keys.
func TestIssuersAreUnique(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		w.list(n, 1, "api", true)
		other := func(c *token.Change) { c.Key, c.Issuer = "prod/other", "http://127.0.0.1/orders" }
		if _, err := n.Change(t.Context(), w.changed(2, "api", true, other)); !errors.Is(err, token.ErrTaken) {
			t.Errorf("an issuer that is taken: %v", err)
		}
		w.list(n, 1, "api", true, func(c *token.Change) { c.Issuer = "https://keys.example.com/new" })
		if list := kids(t, n, apiSet); !has(list, "v1") {
			t.Errorf("under the path of before: %v", list)
		}
		if _, err := n.Change(t.Context(), w.changed(3, "api", true, other)); !errors.Is(err, token.ErrTaken) {
			t.Errorf("an issuer whose tokens may be valid: %v", err)
		}
		time.Sleep(outage + tokenLife + 2*skew)
		if _, err := n.Find(apiSet); !errors.Is(err, token.ErrUnknown) {
			t.Errorf("the path of before, afterwards: %v", err)
		}
		if _, err := n.Change(t.Context(), w.changed(3, "api", true, other)); err != nil {
			t.Errorf("an issuer that was given up: %v", err)
		}
	})
}

// TestVerifierThatIsGone: what is taken out of the key is not served any more when
// anything is refused, so that no revoked key stays behind.
func TestVerifierThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		for _, endpoint := range []string{token.Published, "api"} {
			w.list(n, 1, endpoint, true)
		}
		w.list(n, 1, token.Published, false, func(c *token.Change) { c.Endpoints = []string{token.Published} })
		if _, err := n.Find(apiSet); !errors.Is(err, token.ErrUnknown) {
			t.Errorf("a verifier that is gone is served: %v", err)
		}
		if list := kids(t, n, publicSet); len(list) != 0 {
			t.Errorf("the last key was refused, and served are %v", list)
		}
	})
}

// TestHeldAndDropped: what is kept can be told, and forgotten once it is refused.
func TestHeldAndDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		w.list(n, 1, "api", true)
		w.list(n, 2, "api", true)
		w.list(n, 1, "api", false)
		held, err := n.Held(t.Context(), orders)
		if err != nil || len(held) != 2 || held[0].Accepted || !held[1].Accepted || held[1].Attributes["kid"] != "v2" {
			t.Errorf("held: %+v, %v", held, err)
		}
		if err := n.Drop(t.Context(), orders, 2); err == nil {
			t.Error("a published version was forgotten")
		}
		for range 2 {
			if err := n.Drop(t.Context(), orders, 1); err != nil {
				t.Errorf("drop: %v", err)
			}
		}
		w.list(n, 2, "api", false)
		if err := n.Drop(t.Context(), orders, 2); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Find(apiSet); !errors.Is(err, token.ErrUnknown) {
			t.Errorf("a key without versions is served: %v", err)
		}
		// Caches may still hold the set of before.
		if s := w.list(n, 3, "api", true); s.Arrived {
			t.Error("the caches of before were forgotten")
		}
	})
}

// TestDamagedKeysAreNotPublished: what cannot be verified with is refused.
func TestDamagedKeysAreNotPublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		private := w.mint(1).Attributes
		for what, attributes := range map[string]map[string]string{
			"nothing":         {},
			"a shared secret": {"kid": "k", "alg": "HS256", "jwk": `{"kty":"oct","k":"c2VjcmV0","kid":"k","alg":"HS256"}`},
			"no algorithm":    {"kid": "k", "alg": "none", "jwk": `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"k","alg":"none"}`},
			"another kid":     {"kid": "other", "alg": private["alg"], "jwk": private["jwk"]},
			"a private key":   {"kid": "k", "alg": "EdDSA", "jwk": `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A","kid":"k","alg":"EdDSA"}`},
		} {
			edit := func(c *token.Change) { c.Attributes = attributes }
			if _, err := n.Change(t.Context(), w.changed(key.Version(9), "api", true, edit)); err == nil {
				t.Errorf("%s was published", what)
			}
		}
	})
}

// TestRepetitionsHoldNothingUp: while calls are repeated, each with a larger fence,
// other nodes need not confirm every repetition.
func TestRepetitionsHoldNothingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		nodes := []*node{w.start("one"), w.start("two")}
		began := time.Now()
		for arrived := 0; arrived < 3; {
			arrived = 0
			for i, endpoint := range []string{token.Published, "api", "batch"} {
				if s := w.list(nodes[i%2], 1, endpoint, true); s.Arrived {
					arrived++
				}
				time.Sleep(10 * time.Millisecond)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Fatalf("after %v %d endpoints have the first key", took, arrived)
			}
		}
	})
}
