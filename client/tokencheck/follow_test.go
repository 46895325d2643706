package tokencheck_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/client/tokencheck"
)

// accepts reports the outcome of a good token of a key, made now.
func accepts(t *testing.T, c *tokencheck.Checker, s signer) error {
	t.Helper()
	_, err := c.Check(t.Context(), bearer(s.sign(t, claimsOf(time.Now()), nil)))
	return err
}

// TestSetIsFetchedTwiceInItsLife, with the tag of the one that is held; a key that is
// withdrawn is refused within the life of the set.
func TestSetIsFetchedTwiceInItsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next := edSigner(t, "old"), edSigner(t, "next")
		b := newBoard(old, next)
		c := b.open(t, nil)
		time.Sleep(time.Hour)
		if n := b.count(); n < 24 || n > 34 || b.matched != n-1 {
			t.Errorf("%d fetches in an hour, %d with the tag", n, b.matched)
		}
		b.publish(next)
		time.Sleep(150*time.Second + time.Second)
		if err := accepts(t, c, old); !errors.Is(err, tokencheck.ErrRefused) {
			t.Errorf("a withdrawn key: %v", err)
		}
		if err := accepts(t, c, next); err != nil {
			t.Error(err)
		}
	})
}

// TestServerIsDown: for MaxAge nothing changes for known keys; an unknown one may be new;
// afterwards nothing is known, and nothing refused; then it is as before.
func TestServerIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		known, fresh := edSigner(t, "known"), edSigner(t, "fresh")
		b := newBoard(known)
		c := b.open(t, nil)
		b.set(func(b *board) { b.down = true })
		for c.Age() < 10*time.Minute-time.Second {
			if err := accepts(t, c, known); err != nil {
				t.Fatalf("at an age of %v: %v", c.Age(), err)
			}
			time.Sleep(time.Second)
		}
		if err := accepts(t, c, fresh); !errors.Is(err, tokencheck.ErrUnsure) || errors.Is(err, tokencheck.ErrRefused) {
			t.Errorf("a kid that may be new: %v", err)
		}
		time.Sleep(10 * time.Second)
		if err := accepts(t, c, known); !errors.Is(err, tokencheck.ErrUnsure) || errors.Is(err, tokencheck.ErrRefused) {
			t.Errorf("at an age of %v: %v", c.Age(), err)
		}
		if n := b.count(); n > 100 {
			t.Errorf("%d fetches within %v", n, c.Age())
		}
		b.publish(known, fresh)
		b.set(func(b *board) { b.down = false })
		time.Sleep(16 * time.Second)
		if err := errors.Join(accepts(t, c, known), accepts(t, c, fresh)); err != nil {
			t.Error(err)
		}
	})
}

// TestUnknownKidsCostOneFetch: a key that signs too early is found by one fetch; a flood
// of tokens with made-up kids costs one in five seconds, and good tokens nothing.
func TestUnknownKidsCostOneFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		known, fresh := edSigner(t, "known"), edSigner(t, "fresh")
		b := newBoard(known)
		c := b.open(t, nil)
		time.Sleep(10 * time.Second)
		b.publish(known, fresh)
		var all sync.WaitGroup
		var failed atomic.Int64
		for range 100 {
			all.Go(func() {
				if accepts(t, c, fresh) != nil {
					failed.Add(1)
				}
			})
		}
		all.Wait()
		if n := b.count(); n != 2 || failed.Load() > 0 {
			t.Errorf("%d fetches, %d failed", n, failed.Load())
		}
		before := b.count()
		for n := range 1000 {
			if err := accepts(t, c, edSigner(t, fmt.Sprint("made-up-", n))); !errors.Is(err, tokencheck.ErrRefused) {
				t.Fatal(err)
			}
			if err := accepts(t, c, known); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := b.count() - before; n < 15 || n > 22 {
			t.Errorf("%d fetches in 100 s", n)
		}
		// A server that hangs holds nobody up for long, and known keys not at all.
		b.set(func(b *board) { b.hangs = true })
		time.Sleep(20 * time.Second)
		began := time.Now()
		if err := accepts(t, c, known); err != nil || time.Since(began) != 0 {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		if err := accepts(t, c, edSigner(t, "x")); !errors.Is(err, tokencheck.ErrUnsure) || time.Since(began) > 3*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		if _, err := c.Check(ctx, bearer(edSigner(t, "y").sign(t, claimsOf(time.Now()), nil))); !errors.Is(err, tokencheck.ErrUnsure) || time.Since(began) > time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// TestFrozenVerifier: after hours in which the process did not run, an old set is not
// taken for a new one.
func TestFrozenVerifier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		known, withdrawn := edSigner(t, "known"), edSigner(t, "withdrawn")
		b := newBoard(known, withdrawn)
		var slept atomic.Int64
		now := func() time.Time { return time.Now().Add(time.Duration(slept.Load())) }
		c := b.open(t, func(c *tokencheck.Config) { c.Now = now })
		b.publish(known)
		slept.Store(int64(3 * time.Hour))
		for s, want := range map[*signer]error{&withdrawn: tokencheck.ErrRefused, &known: nil} {
			if _, err := c.Check(t.Context(), bearer(s.sign(t, claimsOf(now()), nil))); !errors.Is(err, want) {
				t.Errorf("%s: %v", s.kid, err)
			}
		}
	})
}

// TestOpenWaitsForTheFirstSet, and says why there is none.
func TestOpenWaitsForTheFirstSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		known := edSigner(t, "known")
		b := newBoard(known)
		b.down = true
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := tokencheck.Open(ctx, b.config()); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		time.AfterFunc(20*time.Second, func() { b.set(func(b *board) { b.down = false }) })
		c := b.open(t, nil)
		if err := accepts(t, c, known); err != nil {
			t.Error(err)
		}
	})
}
