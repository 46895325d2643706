package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/sim/memstore"
	"github.com/keyturn/keyturn/internal/store"
)

// put writes a new document.
func put(t *testing.T, s store.Store, kind, name string) {
	t.Helper()
	err := s.Update(t.Context(), func(tx store.Tx) error {
		_, err := tx.Docs.Put(t.Context(), store.Doc{Kind: kind, Name: name})
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// looks are the times of looks since the follower began.
type looks struct {
	began time.Time

	mu  sync.Mutex
	all []time.Duration
}

func (l *looks) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, time.Since(l.began))
}

func (l *looks) at() []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

// following runs a follower whose looks take a while, and returns what ends it.
func following(t *testing.T, f *store.Follower, look func() error) (*looks, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &looks{began: time.Now()}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.Run(ctx, func(context.Context) error {
			l.look()
			return look()
		})
	}()
	synctest.Wait()
	return l, func() {
		cancel()
		<-ended
	}
}

func passed() error { return nil }

// pass lets simulated time pass, and all that happens in it end.
func pass(d time.Duration) {
	<-time.NewTimer(d).C
	synctest.Wait()
}

// TestFollower: a look answers all that was committed before it began, and none is
// missed, whether it was committed while nobody looked, during a look, or in the pause.
func TestFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		const takes = 30 * time.Millisecond
		l, end := following(t, &store.Follower{Store: s, Topic: store.TopicDocs, Pause: 10 * time.Millisecond, Poll: 10 * time.Second}, func() error {
			time.Sleep(takes)
			return nil
		})
		at := func(d time.Duration, name string) {
			time.Sleep(d - time.Since(l.began))
			put(t, s, "k", name)
		}
		at(time.Second, "woken")                                // a look at 1,010
		at(time.Second+5*time.Millisecond, "in the pause")      // the same
		at(time.Second+20*time.Millisecond, "during the look")  // another, at 1,050
		at(time.Second+21*time.Millisecond, "during it too")    // the same
		at(time.Second+45*time.Millisecond, "in the new pause") // the same
		pass(12 * time.Second)                                  // then by itself
		want := []time.Duration{0, 1010 * time.Millisecond, 1050 * time.Millisecond, 10_010 * time.Millisecond}
		if !slices.Equal(l.at(), want) {
			t.Errorf("looked at %v, want %v", l.at(), want)
		}
		end()
		seen := len(l.at())
		put(t, s, "k", "after the end")
		pass(time.Minute)
		if len(l.at()) != seen {
			t.Error("it looks after its end")
		}
	})
}

// TestFollowerFails: a look that fails is repeated, with the poll if nothing wakes it,
// and the first failure of several in a row is told.
func TestFollowerFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		down := errors.New("down")
		var fails atomic.Bool
		told := 0
		l, end := following(t, &store.Follower{
			Store: s, Topic: store.TopicDocs, Poll: time.Second, Failed: func(_ context.Context, err error) {
				if told++; !errors.Is(err, down) {
					t.Error(err)
				}
			},
		}, func() error {
			if fails.Load() {
				return down
			}
			return nil
		})
		fails.Store(true)
		pass(3500 * time.Millisecond)
		if len(l.at()) != 4 || told != 1 {
			t.Errorf("%d looks, told %d times", len(l.at()), told)
		}
		fails.Store(false)
		put(t, s, "k", "woken")
		synctest.Wait()
		fails.Store(true)
		pass(time.Second)
		if len(l.at()) != 6 || told != 2 {
			t.Errorf("%d looks, told %d times", len(l.at()), told)
		}
		end()
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := store.Follower{Store: memstore.New(), Topic: store.TopicDocs, Poll: time.Second, Failed: func(_ context.Context, err error) {
			t.Errorf("the end is told as a failure: %v", err)
		}}
		f.Run(ctx, func(ctx context.Context) error {
			cancel()
			return ctx.Err()
		})
	})
}

// TestFollowerIsWoken: by others than the store, after a time that it says, and not by
// topics that it does not follow.
func TestFollowerIsWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		wake := make(chan struct{}, 1)
		var soon atomic.Int64
		l, end := following(t, &store.Follower{
			Store: s, Topic: store.TopicJobs, Pause: time.Millisecond, Poll: time.Minute, Later: true, Wake: wake, Soon: func() time.Duration { return time.Duration(soon.Load()) },
		}, passed)
		defer end()
		if len(l.at()) != 0 {
			t.Errorf("looked at %v", l.at())
		}
		time.Sleep(time.Second)
		put(t, s, "k", "of another topic")
		time.Sleep(time.Second)
		soon.Store(int64(5 * time.Second))
		wake <- struct{}{} // 2,001
		time.Sleep(time.Second)
		soon.Store(0) // it was asked before: 7,002, and no more
		pass(30 * time.Second)
		want := []time.Duration{time.Millisecond, 2001 * time.Millisecond, 7002 * time.Millisecond}
		if !slices.Equal(l.at(), want) {
			t.Errorf("looked at %v, want %v", l.at(), want)
		}
	})
}

// TestNewer: every document once, in order, and none twice after a failure.
func TestNewer(t *testing.T) {
	s := memstore.New()
	const all = 1300
	err := s.Update(t.Context(), func(tx store.Tx) error {
		for i := range all {
			if _, err := tx.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: fmt.Sprintf("%04d", i)}); err != nil {
				return err
			}
		}
		_, err := tx.Docs.Put(t.Context(), store.Doc{Kind: "other", Name: "x"})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	stop := errors.New("stop")
	take := func(doc *store.Doc) error {
		if len(names) == 700 && doc.Name == "0700" {
			names = append(names, "failed")
			return stop
		}
		names = append(names, doc.Name)
		return nil
	}
	rev, err := store.Newer(t.Context(), s, "k", 0, take)
	if !errors.Is(err, stop) || len(names) != 701 {
		t.Fatalf("%d names, %v", len(names), err)
	}
	names = names[:700]
	take2 := func(doc *store.Doc) error { names = append(names, doc.Name); return nil }
	if rev, err = store.Newer(t.Context(), s, "k", rev, take2); err != nil || len(names) != all || !slices.IsSorted(names) || len(slices.Compact(names)) != all {
		t.Fatalf("%d names, %v", len(names), err)
	}
	if again, err := store.Newer(t.Context(), s, "k", rev, take2); err != nil || again != rev || len(names) != all {
		t.Errorf("again from %d to %d, %v", rev, again, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if at, err := store.Newer(ctx, s, "k", 7, take2); !errors.Is(err, context.Canceled) || at != 7 {
		t.Errorf("at %d, %v", at, err)
	}
}

// TestSweep: what is due goes, however much it is, and what is not stays; with an end
// of its own it is written again. One that fails ends none of its batch.
func TestSweep(t *testing.T) {
	s := memstore.New()
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	const due = 600
	err := s.Update(t.Context(), func(tx store.Tx) error {
		for i := range due {
			if _, err := tx.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: fmt.Sprintf("%04d", i), Due: now.Add(-time.Duration(i) * time.Second)}); err != nil {
				return err
			}
		}
		for name, at := range map[string]time.Time{"later": now.Add(time.Second), "never": {}} {
			if _, err := tx.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: name, Due: at}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	count := func() (n int) {
		_ = s.View(t.Context(), func(tx store.Tx) error {
			docs, err := tx.Index.List(t.Context(), "k", "", "", 10_000)
			n = len(docs)
			return err
		})
		return n
	}
	clock := func() time.Time { return now }
	stop := errors.New("stop")
	seen := 0
	err = store.Sweep(t.Context(), s, "k", clock, func(tx store.Tx, doc store.Doc) error {
		if seen++; seen == 300 {
			return stop
		}
		return tx.Docs.Delete(t.Context(), doc.Kind, doc.Name, doc.Rev)
	})
	if !errors.Is(err, stop) || count() != due+2-256 {
		t.Errorf("%v, %d are left", err, count())
	}
	if err := store.Sweep(t.Context(), s, "k", clock, nil); err != nil || count() != 2 {
		t.Errorf("%v, %d are left", err, count())
	}
	now = now.Add(time.Minute)
	err = store.Sweep(t.Context(), s, "k", clock, func(tx store.Tx, doc store.Doc) error {
		doc.Due = time.Time{}
		_, err := tx.Docs.Put(t.Context(), doc)
		return err
	})
	if err != nil || count() != 2 {
		t.Errorf("%v, %d are left", err, count())
	}
}
