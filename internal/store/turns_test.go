package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

// batches is what takes turns in these tests: it notes who shares a batch.
type batches struct {
	store.Turns
	most int

	// The holder of the turn uses what follows.
	held  bool
	open  []string
	alone bool
	ended [][]string
}

func newBatches(most int) *batches {
	b := &batches{most: most}
	b.Ends = func(alone bool) bool { return len(b.open) > 0 && (alone || b.alone || len(b.open) >= b.most) }
	b.End = func() {
		if len(b.open) > 0 {
			<-time.After(time.Millisecond) // it takes a while to flush
			b.ended = append(b.ended, b.open)
			b.open, b.alone = nil, false
		}
	}
	return b
}

// work takes the turn, takes part for a while, and passes it on.
func (b *batches) work(ctx context.Context, t *testing.T, name string, alone bool, d time.Duration) error {
	if err := b.Take(ctx, alone); err != nil {
		return err
	}
	if b.held {
		t.Error("two have the turn")
	}
	b.held = true
	if b.alone || alone && len(b.open) > 0 {
		t.Errorf("%s is in a batch with %v, and one of them is to be alone", name, b.open)
	}
	b.open, b.alone = append(b.open, name), alone
	<-time.After(d)
	b.held = false
	b.Pass()
	return nil
}

// TestTurns: in the order of arrival, in shared batches of bounded size, alone who
// wants to be.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBatches(3)
		for i := range 8 {
			name := fmt.Sprint(i)
			go func() {
				if err := b.work(t.Context(), t, name, i == 5, time.Second); err != nil {
					t.Error(err)
				}
			}()
			synctest.Wait() // in order
		}
		if n := b.Waiting(); n != 7 {
			t.Errorf("%d wait", n)
		}
		pass(time.Minute)
		want := [][]string{{"0", "1", "2"}, {"3", "4"}, {"5"}, {"6", "7"}}
		if !slices.EqualFunc(b.ended, want, slices.Equal[[]string]) {
			t.Errorf("the batches were %v, want %v", b.ended, want)
		}
	})
}

// TestTurnsGivenUp: the batch ends although the only one for which it would have
// stayed open gives up, before it has the turn or at the moment at which that comes.
func TestTurnsGivenUp(t *testing.T) {
	for _, after := range []time.Duration{time.Second / 2, time.Second} {
		for range 20 { // at one moment either may come first
			synctest.Test(t, func(t *testing.T) {
				b := newBatches(3)
				go func() { _ = b.work(t.Context(), t, "first", false, time.Second) }()
				synctest.Wait()
				ctx, cancel := context.WithTimeout(t.Context(), after)
				defer cancel()
				err := b.work(ctx, t, "second", false, 0)
				pass(time.Minute)
				taken := 2
				if err != nil {
					taken = 1
				}
				if len(b.open) > 0 || len(b.ended) != 1 || len(b.ended[0]) != taken || err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("after %v: %v is open, %v has ended; the second got %v", after, b.open, b.ended, err)
				}
				if err := b.work(t.Context(), t, "third", false, 0); err != nil || len(b.open) > 0 {
					t.Errorf("after that: %v, %v is open", err, b.open)
				}
			})
		}
	}
}

// TestTurnsGivenUpMeanwhile: the one for which the batch is kept open gives up while
// that is decided. It has the turn all the same, and ends the batch.
func TestTurnsGivenUpMeanwhile(t *testing.T) {
	for range 10 {
		synctest.Test(t, func(t *testing.T) {
			b := newBatches(3)
			ctx, cancel := context.WithCancel(t.Context())
			ends := b.Ends
			b.Ends = func(alone bool) bool {
				cancel()
				// Long enough for the one that gives up to wait for the lock, and to be
				// the next to get it.
				for range 20_000 {
					runtime.Gosched()
				}
				return ends(alone)
			}
			go func() { _ = b.work(t.Context(), t, "first", false, time.Second) }()
			synctest.Wait()
			err := b.work(ctx, t, "second", false, 0)
			synctest.Wait()
			if !errors.Is(err, context.Canceled) || len(b.open) > 0 || len(b.ended) != 1 {
				t.Errorf("%v is open, %v has ended; the second got %v", b.open, b.ended, err)
			}
			if err := b.work(t.Context(), t, "third", false, 0); err != nil || len(b.open) > 0 {
				t.Errorf("after that: %v, %v is open", err, b.open)
			}
		})
	}
}

// TestTurnsUnderLoad: however many come and give up, whoever took part is in one
// batch that has ended, and nothing stays open.
func TestTurnsUnderLoad(t *testing.T) {
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			b := newBatches(4)
			var mu sync.Mutex
			var took []string
			for i := range 200 {
				name := fmt.Sprint(i)
				// Whole milliseconds, so that much happens at one moment.
				patience, d := time.Duration(random.IntN(40))*time.Millisecond, time.Duration(random.IntN(3))*time.Millisecond
				alone := random.IntN(10) == 0
				go func() {
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					if b.work(ctx, t, name, alone, d) == nil {
						mu.Lock()
						defer mu.Unlock()
						took = append(took, name)
					}
				}()
				time.Sleep(time.Duration(random.IntN(3)) * time.Millisecond)
			}
			pass(time.Minute)
			ended := slices.Concat(b.ended...)
			slices.Sort(ended)
			slices.Sort(took)
			if len(b.open) > 0 || b.Waiting() > 0 || !slices.Equal(took, ended) || len(took) == 0 || len(took) == 200 {
				t.Errorf("seed %d: %v is open, %d wait, %d took part and %d are in batches", seed, b.open, b.Waiting(), len(took), len(ended))
			}
		})
	}
}
