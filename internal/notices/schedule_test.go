package notices_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/notices"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/key"
)

// watched is a store with documents of kind "thing" that stand for keys, and what was
// planned of them.
type watched struct {
	store   store.Store
	now     time.Time
	read    int
	planned []key.Name
	next    map[key.Name]time.Time
	broken  map[key.Name]bool
}

func (w *watched) touch(t testing.TB, names ...string) {
	t.Helper()
	if err := w.store.Update(t.Context(), func(tx store.Tx) error {
		for _, name := range names {
			doc, err := store.Revision(t.Context(), tx.Docs, "thing", name)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			if _, err := tx.Docs.Put(t.Context(), store.Doc{Kind: "thing", Name: name, Rev: doc.Rev}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func (w *watched) schedule() *notices.Schedule {
	return notices.NewSchedule(notices.ScheduleConfig{
		Store: w.store, Now: func() time.Time { return w.now },
		Changed: func(ctx context.Context, after uint64, limit int) (names []key.Name, next uint64, err error) {
			err = w.store.View(ctx, func(tx store.Tx) error {
				names, next = nil, after
				docs, err := tx.Index.Since(ctx, "thing", after, limit)
				for _, doc := range docs {
					names, next = append(names, key.Name(doc.Name)), doc.Rev
				}
				w.read += len(docs)
				return err
			})
			return names, next, err
		},
		Plan: func(_ context.Context, name key.Name) (time.Time, error) {
			w.planned = append(w.planned, name)
			if w.broken[name] {
				return time.Time{}, errors.New("damaged")
			}
			return w.next[name], nil
		},
	})
}

func newWatched(t testing.TB) *watched {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(t.TempDir(), "keyturn.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() }) // the test ends
	return &watched{store: s, now: began(), next: map[key.Name]time.Time{}, broken: map[key.Name]bool{}}
}

// look looks at two nodes and says how many keys were planned.
func (w *watched) look(t testing.TB, nodes ...*notices.Schedule) (planned int, err error) {
	t.Helper()
	w.planned = nil
	for _, node := range nodes {
		err = errors.Join(err, node.Look(t.Context()))
	}
	return len(w.planned), err
}

// TestScheduleFindsWhatIsDue: a key is looked at when it has changed and when its time
// comes, by one of the nodes, and not in between; one that is broken stands back, and
// keeps no other one waiting; a node that starts anew goes on where the others are.
func TestScheduleFindsWhatIsDue(t *testing.T) {
	w := newWatched(t)
	var names []string
	for i := range 1200 { // several batches
		names = append(names, fmt.Sprintf("partners/%04d", i))
	}
	w.touch(t, names...)
	w.next["partners/0007"], w.next["partners/0008"] = began().Add(day), began().Add(2*day)
	w.broken["partners/0009"] = true
	a, b := w.schedule(), w.schedule()
	if n, err := w.look(t, a, b); n != 1200 || err == nil {
		t.Fatalf("at first: %d were planned, %v", n, err)
	}
	want := func(what string, expected ...string) {
		t.Helper()
		read := w.read
		_, err := w.look(t, b, w.schedule(), a)
		if fmt.Sprint(w.planned) != fmt.Sprint(expected) || (err != nil) != w.broken["partners/0009"] && len(expected) > 0 {
			t.Errorf("%s: planned %v, %v; want %v", what, w.planned, err, expected)
		}
		if w.read-read > 1 {
			t.Errorf("%s: %d keys were read", what, w.read-read)
		}
	}
	want("at once")
	w.broken["partners/0009"] = false
	w.now = began().Add(10 * time.Minute)
	want("what was broken", "partners/0009")
	w.now = began().Add(day - time.Second)
	want("before the first one's time")
	w.now = began().Add(day)
	w.next["partners/0007"] = time.Time{}
	want("at the first one's time", "partners/0007")
	w.next["partners/0008"] = began().Add(5 * day)
	w.touch(t, "partners/0008")
	want("when it changes", "partners/0008")
	w.now = began().Add(3 * day)
	want("at the time that does not count any more")
	w.now = began().Add(5 * day)
	w.next["partners/0008"] = began() // a plan that is due for ever must not spin
	want("at the second one's time", "partners/0008")
	want("a plan that is always due")
}

// BenchmarkSchedule measures a look when nothing is due, and when ten of all keys are.
func BenchmarkSchedule(b *testing.B) {
	for _, n := range []int{1_000, 50_000} {
		w := newWatched(b)
		for from := 0; from < n; from += 1000 {
			var names []string
			for i := range 1000 {
				name := fmt.Sprintf("partners/%07d", from+i)
				names = append(names, name)
				w.next[key.Name(name)] = began().Add(365 * day)
			}
			w.touch(b, names...)
		}
		node := w.schedule()
		for planned := 1; planned > 0; {
			planned, _ = w.look(b, node)
		}
		b.Run(fmt.Sprintf("%d keys, none due", n), func(b *testing.B) {
			for b.Loop() {
				if planned, err := w.look(b, node); planned > 0 || err != nil {
					b.Fatal(planned, err)
				}
			}
		})
		b.Run(fmt.Sprintf("%d keys, 10 due", n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				var names []string
				for i := range 10 {
					names = append(names, fmt.Sprintf("partners/%07d", i*n/10))
				}
				w.touch(b, names...)
				b.StartTimer()
				if planned, err := w.look(b, node); planned != 10 || err != nil {
					b.Fatal(planned, err)
				}
			}
		})
	}
}
