package token_test

import (
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/token"
)

// governed is what the key of the tests says, with other lives.
func governed(edit func(*token.Settings)) token.Settings {
	s := token.Settings{
		Issuer: issuer, TokenLife: tokenLife, CacheLife: cacheLife,
		Readers: map[string]token.Reader{token.Published: {}, "api": {}, "batch": {}},
	}
	edit(&s)
	return s
}

func (w *world) govern(n *node, edit func(*token.Settings)) {
	w.t.Helper()
	if err := n.Govern(w.t.Context(), orders, governed(edit)); err != nil {
		w.t.Fatal(err)
	}
}

// TestGovernCountsAtOnce: what the config says counts at every node without a change
// of a version, and no call that began before takes it back. Sets that were served
// with a longer life are held for that long all the same.
func TestGovernCountsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.start("one"), w.start("two")
		w.govern(one, func(s *token.Settings) { s.CacheLife = time.Hour }) // nothing is published
		for _, endpoint := range []string{token.Published, "api", "batch"} {
			w.list(one, 1, endpoint, true)
		}
		life := func(n *node, want time.Duration) {
			t.Helper()
			if page, err := n.Find(publicSet); err != nil || page.Life != want {
				t.Errorf("%+v, %v, want %v", page, err, want)
			}
		}
		life(one, cacheLife)
		network := netip.MustParsePrefix("10.0.0.0/8")
		shorter := func(s *token.Settings) {
			s.CacheLife = time.Minute
			s.Readers = map[string]token.Reader{token.Published: {}, "api": {From: []netip.Prefix{network}}}
		}
		w.govern(one, shorter)
		life(one, time.Minute)
		time.Sleep(2 * time.Second)
		life(two, time.Minute)
		if _, err := two.Find("/orders/.well-known/jwks/batch.json"); !errors.Is(err, token.ErrUnknown) {
			t.Errorf("a verifier that is taken out: %v", err)
		}
		w.list(two, 2, "api", true)
		time.Sleep(2 * time.Second)
		if s := w.standing(two, 2, "api"); s.Arrived || s.Until.Before(time.Now().Add(cacheLife)) {
			t.Errorf("caches with the longer life are forgotten: %+v", s)
		}
		life(two, time.Minute)
		page, err := two.Find(apiSet)
		if err != nil {
			t.Fatal(err)
		}
		two.Fetched(page, somewhere) // which is no network of the verifier
		time.Sleep(5 * time.Second)
		if s := w.standing(two, 2, "api"); s.Arrived {
			t.Error("a fetch from anywhere counts")
		}
		two.Fetched(page, netip.MustParseAddr("10.1.2.3"))
		time.Sleep(5 * time.Second)
		if s := w.standing(two, 2, "api"); !s.Arrived {
			t.Errorf("a fetch of the verifier does not count: %+v", s)
		}
	})
}

// TestFormerIssuer: a key gets another issuer. The sets of the one before are served,
// its endpoints answer and its tokens are good until the last has expired; then
// another key may have it, and not before.
func TestFormerIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		w.list(n, 1, token.Published, true)
		w.tell(n, 1)
		synctest.Wait()
		sign := func() token.Token {
			t.Helper()
			signed, err := n.Sign(t.Context(), token.Request{Key: orders})
			if err != nil {
				t.Fatal(err)
			}
			return signed
		}
		before := sign()
		const next = "https://keys.example.com/next"
		w.govern(n, func(s *token.Settings) { s.Issuer = next })
		after := sign()
		if before.Issuer != issuer || after.Issuer != next {
			t.Errorf("issuers are %q and %q", before.Issuer, after.Issuer)
		}
		for _, signed := range []token.Token{before, after} {
			if _, err := n.Verify(orders, signed.Compact.RevealString(), token.Expect{}); err != nil {
				t.Errorf("a token of %s: %v", signed.Issuer, err)
			}
		}
		for path, want := range map[string]string{"/orders": issuer, "/next": next} {
			if name, of, err := n.Issuer(path); err != nil || name != orders || of != want {
				t.Errorf("%s: %s %s %v", path, name, of, err)
			}
			if list := kids(t, n, path+"/.well-known/jwks.json"); !has(list, "v1") {
				t.Errorf("%s: %v", path, list)
			}
		}
		taken := func() error {
			c := w.changed(2, token.Published, true)
			c.Key = "prod/other"
			_, err := n.Change(t.Context(), c)
			return err
		}
		if err := taken(); !errors.Is(err, token.ErrTaken) {
			t.Errorf("another key, meanwhile: %v", err)
		}
		time.Sleep(outage + tokenLife + 2*skew)
		if _, _, err := n.Issuer("/orders"); !errors.Is(err, token.ErrUnknown) {
			t.Errorf("afterwards: %v", err)
		}
		if _, err := n.Find(publicSet); !errors.Is(err, token.ErrUnknown) {
			t.Errorf("afterwards: %v", err)
		}
		if err := taken(); err != nil {
			t.Errorf("another key, afterwards: %v", err)
		}
		w.govern(n, func(s *token.Settings) { s.Issuer = next })
		if list := kids(t, n, publicSet); !has(list, "v2") {
			t.Errorf("that of the other key: %v", list)
		}
	})
}

// TestRestoreForgetsTokens: what was written after the backup is missing. Use is
// unknown, and not zero, until the longest token of before has expired.
func TestRestoreForgetsTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.start("one")
		w.list(n, 1, token.Published, true)
		w.govern(n, func(s *token.Settings) { s.TokenLife = time.Hour })
		w.govern(n, func(*token.Settings) {}) // an hour is forgotten, and its tokens live
		if w.use(n, 1) != 0 {
			t.Error("tokens are counted that nobody has signed")
		}
		w.restored = time.Now()
		for range 4 {
			if w.use(n, 1) == 0 {
				t.Fatalf("after a restore nobody knows, and %v later use is said to be zero", time.Since(w.restored))
			}
			time.Sleep(15 * time.Minute)
		}
		if w.use(n, 1) == 0 {
			t.Error("a node that was cut off is forgotten")
		}
		time.Sleep(outage + skew)
		if use := w.use(n, 1); use != 0 {
			t.Errorf("%d tokens are held to be there for ever", use)
		}
	})
}
