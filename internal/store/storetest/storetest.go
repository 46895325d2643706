// Package storetest is the suite that every implementation of package store
// runs. Each sentence of that package's contract has a test here; where the
// contract leaves a choice, the suite accepts every choice.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// Reopener is implemented by stores that can be closed and opened again: the
// suite then checks that what was committed is still there.
type Reopener interface {
	// Reopen ends the store without warning as far as it can, and opens it again.
	Reopen(t *testing.T) store.Store
}

// Run runs the suite. open returns an empty store and arranges for it to be
// closed when the test ends.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, s store.Store)
	}{
		{"update/atomic", testUpdateIsAtomic},
		{"update/panic", testUpdateSurvivesPanic},
		{"update/serialisable", testUpdateIsSerialisable},
		{"update/neighbours", testFailingUpdateHarmsNoOther},
		{"update/context", testContext},
		{"tx/ends", testTxEnds},
		{"view/read-only", testViewIsReadOnly},
		{"view/snapshot", testViewIsOneSnapshot},
		{"view/own-writes", testUpdateSeesItsWrites},
		{"watch", testWatch},
		{"watch/rolled-back", testWatchIgnoresRolledBack},
		{"durable", testReopen},
		{"docs", testDocs},
		{"docs/together", testGetAll},
		{"docs/revisions", testRevisions},
		{"docs/limits", testDocLimits},
		{"docs/model", testDocsModel},
		{"index/list", testList},
		{"index/due", testDue},
		{"index/since", testSince},
		{"index/limits", testLimits},
		{"events", testEvents},
		{"events/rotation", testEventsOfRotation},
		{"jobs/enqueue", testEnqueue},
		{"jobs/order", testClaimOrder},
		{"jobs/lanes", testLanes},
		{"jobs/bulkheads", testBulkheads},
		{"jobs/fairness", testFairness},
		{"jobs/fences", testFences},
		{"jobs/jump", testJump},
		{"jobs/limits", testJobLimits},
		{"jobs/model", testJobsModel},
		{"jobs/workers", testWorkers},
		{"log", testLog},
		{"materials", testMaterials},
		{"times", testTimes},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

// patience is how long something that must happen is waited for.
const patience = 20 * time.Second

var epoch = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

func update(t testing.TB, s store.Store, fn func(tx store.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), fn); err != nil {
		t.Fatalf("Update: %v", err)
	}
}

func view(t testing.TB, s store.Store, fn func(tx store.Tx) error) {
	t.Helper()
	if err := s.View(t.Context(), fn); err != nil {
		t.Fatalf("View: %v", err)
	}
}

func put(t testing.TB, s store.Store, doc store.Doc) uint64 {
	t.Helper()
	var rev uint64
	update(t, s, func(tx store.Tx) (err error) {
		rev, err = tx.Docs.Put(t.Context(), doc)
		return err
	})
	return rev
}

func get(t testing.TB, s store.Store, kind, name string) (doc store.Doc, found bool) {
	t.Helper()
	err := s.View(t.Context(), func(tx store.Tx) (err error) {
		doc, err = tx.Docs.Get(t.Context(), kind, name)
		return err
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("Get(%s, %s): %v", kind, name, err)
	}
	return doc, err == nil
}

func wantError(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got %v, want an error that wraps %q", what, got, want)
	}
}

func testUpdateIsAtomic(t *testing.T, s store.Store) {
	boom := errors.New("boom")
	name := key.Name("prod/db")
	err := s.Update(t.Context(), func(tx store.Tx) error {
		ctx := t.Context()
		_, err := tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "a"})
		err = errors.Join(err,
			tx.Events.Append(ctx, store.Event{Key: name, Seq: 1, Type: "e", At: epoch}),
			tx.Queue.Enqueue(ctx, store.Job{ID: "j", Lane: "l", Target: "t", Key: name, RunAt: epoch}),
			tx.Log.Append(ctx, 0, [][]byte{[]byte("r")}, 0, []store.Hash{{1}}),
			tx.Materials.Put(ctx, name, 1, []byte("sealed")))
		if err != nil {
			t.Errorf("write: %v", err)
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatalf("Update returned %v, want the function's own error", err)
	}
	view(t, s, func(tx store.Tx) error {
		ctx := t.Context()
		_, err := tx.Docs.Get(ctx, "k", "a")
		wantError(t, "document", err, store.ErrNotFound)
		events, err := tx.Events.Load(ctx, name, 0, 1)
		if len(events) > 0 || err != nil {
			t.Errorf("events: %v, %v", events, err)
		}
		jobs, err := tx.Queue.Pending(ctx, name)
		if len(jobs) > 0 || err != nil {
			t.Errorf("jobs: %v, %v", jobs, err)
		}
		_, size, err := tx.Log.Records(ctx, 0, 1)
		if size > 0 || err != nil {
			t.Errorf("log: %d, %v", size, err)
		}
		_, err = tx.Log.Hashes(ctx, []uint64{0})
		wantError(t, "hash", err, store.ErrNotFound)
		_, err = tx.Materials.Get(ctx, name, 1)
		wantError(t, "material", err, store.ErrNotFound)
		return nil
	})
}

func testUpdateSurvivesPanic(t *testing.T, s store.Store) {
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_ = s.Update(t.Context(), func(tx store.Tx) error {
			_, _ = tx.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: "panicked"})
			panic("boom")
		})
	}()
	put(t, s, store.Doc{Kind: "k", Name: "after"})
	if _, found := get(t, s, "k", "panicked"); found {
		t.Error("an Update that panicked was committed")
	}
}

// testUpdateIsSerialisable increments one number from many goroutines: a lost
// update shows as a smaller sum.
func testUpdateIsSerialisable(t *testing.T, s store.Store) {
	const workers, rounds = 8, 25
	put(t, s, store.Doc{Kind: "k", Name: "n", Body: []byte{0, 0}})
	done := make(chan error, workers)
	for range workers {
		go func() {
			for range rounds {
				err := s.Update(t.Context(), func(tx store.Tx) error {
					doc, err := tx.Docs.Get(t.Context(), "k", "n")
					if err != nil {
						return err
					}
					n := int(doc.Body[0])<<8 + int(doc.Body[1]) + 1
					doc.Body = []byte{byte(n >> 8), byte(n)}
					_, err = tx.Docs.Put(t.Context(), doc)
					return err
				})
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range workers {
		if err := <-done; err != nil {
			t.Errorf("Update: %v", err)
		}
	}
	doc, _ := get(t, s, "k", "n")
	if n := int(doc.Body[0])<<8 + int(doc.Body[1]); n != workers*rounds {
		t.Errorf("counted to %d, want %d", n, workers*rounds)
	}
}

// testFailingUpdateHarmsNoOther: stores may commit several Updates together.
func testFailingUpdateHarmsNoOther(t *testing.T, s store.Store) {
	const n = 200
	boom := errors.New("boom")
	type outcome struct {
		i   int
		err error
	}
	outcomes := make(chan outcome, n)
	for i := range n {
		go func() {
			defer func() { _ = recover() }()
			var err error
			defer func() { outcomes <- outcome{i, err} }()
			err = boom // what a panic leaves behind
			err = s.Update(t.Context(), func(tx store.Tx) error {
				if _, err := tx.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: fmt.Sprint(i)}); err != nil {
					return err
				}
				switch i % 4 {
				case 1:
					return boom
				case 3:
					panic("boom")
				}
				return nil
			})
		}()
	}
	for range n {
		o := <-outcomes
		if fails := o.i%2 == 1; fails != (o.err != nil) || (fails && !errors.Is(o.err, boom)) {
			t.Errorf("Update %d returned %v", o.i, o.err)
		}
		if _, found := get(t, s, "k", fmt.Sprint(o.i)); found != (o.i%2 == 0) {
			t.Errorf("document %d: present is %v", o.i, found)
		}
	}
}

func testContext(t *testing.T, s store.Store) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	nothing := func(store.Tx) error { t.Error("the function was called"); return nil }
	wantError(t, "Update", s.Update(ended, nothing), context.Canceled)
	wantError(t, "View", s.View(ended, nothing), context.Canceled)

	// One that ends inside the function fails the operation and nothing else.
	during, cancel := context.WithCancel(t.Context())
	err := s.Update(during, func(tx store.Tx) error {
		cancel()
		_, err := tx.Docs.Put(during, store.Doc{Kind: "k", Name: "a"})
		return err
	})
	wantError(t, "Update whose context ends", err, context.Canceled)

	// One that ends while it waits for its turn takes no turn away.
	waiting, cancel := context.WithCancel(t.Context())
	inside, result := make(chan struct{}), make(chan error, 1)
	update(t, s, func(store.Tx) error {
		go func() {
			close(inside)
			result <- s.Update(waiting, func(store.Tx) error { return nil })
		}()
		<-inside
		cancel()
		return nil
	})
	if err := <-result; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Update that waited: %v", err)
	}
	put(t, s, store.Doc{Kind: "k", Name: "a"})
}

func testTxEnds(t *testing.T, s store.Store) {
	var kept store.Tx
	update(t, s, func(tx store.Tx) error { kept = tx; return nil })
	_, err := kept.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: "late"})
	wantError(t, "write after Update", err, store.ErrTxDone)
	view(t, s, func(tx store.Tx) error { kept = tx; return nil })
	_, err = kept.Docs.Get(t.Context(), "k", "late")
	wantError(t, "read after View", err, store.ErrTxDone)
	if _, found := get(t, s, "k", "late"); found {
		t.Error("a write after the end of its transaction was stored")
	}
}

func testViewIsReadOnly(t *testing.T, s store.Store) {
	ctx, name := t.Context(), key.Name("a")
	for what, write := range map[string]func(store.Tx) error{
		"Docs.Put":         func(tx store.Tx) error { _, err := tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "a"}); return err },
		"Docs.Delete":      func(tx store.Tx) error { return tx.Docs.Delete(ctx, "k", "a", 1) },
		"Events.Append":    func(tx store.Tx) error { return tx.Events.Append(ctx, store.Event{Key: name, Seq: 1, Type: "e"}) },
		"Queue.Enqueue":    func(tx store.Tx) error { return tx.Queue.Enqueue(ctx, job("j", "l", "t")) },
		"Queue.Drop":       func(tx store.Tx) error { return tx.Queue.Drop(ctx, "l") },
		"Leases.Claim":     func(tx store.Tx) error { _, err := tx.Leases.Claim(ctx, claim(epoch)); return err },
		"Leases.Renew":     func(tx store.Tx) error { return tx.Leases.Renew(ctx, "j", 1, epoch) },
		"Leases.Settle":    func(tx store.Tx) error { return tx.Leases.Settle(ctx, "j", 1, epoch) },
		"Log.Append":       func(tx store.Tx) error { return tx.Log.Append(ctx, 0, [][]byte{nil}, 0, nil) },
		"Materials.Put":    func(tx store.Tx) error { return tx.Materials.Put(ctx, name, 1, nil) },
		"Materials.Delete": func(tx store.Tx) error { return tx.Materials.Delete(ctx, name, 1) },
	} {
		wantError(t, what+" in a View", s.View(ctx, write), store.ErrReadOnly)
	}
}

// testViewIsOneSnapshot moves a token between two documents: a View that reads
// both, with commits in between, sees exactly one.
func testViewIsOneSnapshot(t *testing.T, s store.Store) {
	a, b := put(t, s, store.Doc{Kind: "k", Name: "a", Body: []byte("x")}), put(t, s, store.Doc{Kind: "k", Name: "b"})
	view(t, s, func(tx store.Tx) error {
		first, err := tx.Docs.Get(t.Context(), "k", "a")
		if err != nil {
			return err
		}
		update(t, s, func(w store.Tx) error { // a View blocks no Update
			_, err := w.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: "a", Rev: a})
			if err == nil {
				_, err = w.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: "b", Rev: b, Body: []byte("x")})
			}
			return err
		})
		second, err := tx.Docs.Get(t.Context(), "k", "b")
		if err != nil {
			return err
		}
		if len(first.Body)+len(second.Body) != 1 {
			t.Errorf("one View read %q and %q", first.Body, second.Body)
		}
		all, err := tx.Index.Since(t.Context(), "k", b, 10)
		if len(all) > 0 || err != nil {
			t.Errorf("a View found later writes: %v, %v", all, err)
		}
		return nil
	})
	if doc, _ := get(t, s, "k", "b"); string(doc.Body) != "x" {
		t.Error("a later View does not see the commit")
	}
}

func testUpdateSeesItsWrites(t *testing.T, s store.Store) {
	update(t, s, func(tx store.Tx) error {
		rev, err := tx.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: "a", Body: []byte("1")})
		if err != nil {
			return err
		}
		doc, err := tx.Docs.Get(t.Context(), "k", "a")
		if err != nil || doc.Rev != rev || string(doc.Body) != "1" {
			t.Errorf("own write: %+v, %v", doc, err)
		}
		if _, found := get(t, s, "k", "a"); found {
			t.Error("a View sees what is not committed")
		}
		return nil
	})
}

func testWatch(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	watched := map[store.Topic]<-chan struct{}{}
	for _, topic := range []store.Topic{store.TopicDocs, store.TopicJobs, store.TopicLog} {
		watched[topic] = s.Watch(ctx, topic)
	}
	for topic, write := range map[store.Topic]func(store.Tx) error{
		store.TopicDocs: func(tx store.Tx) error { _, err := tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "a"}); return err },
		store.TopicJobs: func(tx store.Tx) error { return tx.Queue.Enqueue(ctx, job("j", "l", "t")) },
		store.TopicLog:  func(tx store.Tx) error { return tx.Log.Append(ctx, 0, [][]byte{{1}}, 0, nil) },
	} {
		update(t, s, write)
		wantWake(t, watched[topic], fmt.Sprintf("topic %d", topic))
	}
	update(t, s, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, "k", "a")
		if err != nil {
			return err
		}
		return tx.Docs.Delete(ctx, "k", "a", doc.Rev)
	})
	wantWake(t, watched[store.TopicDocs], "deletion")
	cancel()
	for topic, c := range watched {
		deadline := time.After(patience)
		for open := true; open; {
			select {
			case _, open = <-c: // wake-ups may be spurious
			case <-deadline:
				t.Fatalf("topic %d: the channel is not closed", topic)
			}
		}
	}
	put(t, s, store.Doc{Kind: "k", Name: "b"}) // does not send on a closed channel
}

func wantWake(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case _, open := <-c:
		if !open {
			t.Errorf("%s: the channel is closed", what)
		}
	case <-time.After(patience):
		t.Errorf("%s: no wake-up", what)
	}
}

// testWatchIgnoresRolledBack: spurious wake-ups are allowed, so this only says
// that one that counts follows a roll-back.
func testWatchIgnoresRolledBack(t *testing.T, s store.Store) {
	c := s.Watch(t.Context(), store.TopicDocs)
	_ = s.Update(t.Context(), func(tx store.Tx) error {
		_, _ = tx.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: "a"})
		return errors.New("boom")
	})
	for range 3 { // coalesced: the reader is never more than one behind
		update(t, s, func(tx store.Tx) error {
			_, err := tx.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: fmt.Sprint(rand.Int64())})
			return err
		})
	}
	wantWake(t, c, "commit")
}

func testReopen(t *testing.T, s store.Store) {
	reopener, ok := s.(Reopener)
	if !ok {
		return // nothing to say about a store that cannot be opened again
	}
	ctx, name := t.Context(), key.Name("prod/db")
	rev := put(t, s, store.Doc{Kind: "k", Name: "a", Due: epoch, Body: []byte("body")})
	var claimed []store.Job
	update(t, s, func(tx store.Tx) (err error) {
		err = errors.Join(
			tx.Events.Append(ctx, store.Event{Key: name, Seq: 1, Type: "e", At: epoch, Rotation: key.RotationID{1}}),
			tx.Queue.Enqueue(ctx, job("j", "l", "t")),
			tx.Log.Append(ctx, 0, [][]byte{[]byte("r")}, 0, []store.Hash{{7}}),
			tx.Materials.Put(ctx, name, 1, []byte("sealed")))
		if err != nil {
			return err
		}
		claimed, err = tx.Leases.Claim(ctx, claim(epoch))
		return err
	})
	s = reopener.Reopen(t)
	if doc, found := get(t, s, "k", "a"); !found || doc.Rev != rev || !doc.Due.Equal(epoch) || string(doc.Body) != "body" {
		t.Errorf("document: %+v", doc)
	}
	update(t, s, func(tx store.Tx) error {
		events, err := tx.Events.Load(ctx, name, 0, 10)
		if len(events) != 1 || events[0].Rotation != (key.RotationID{1}) || err != nil {
			t.Errorf("events: %v, %v", events, err)
		}
		records, size, err := tx.Log.Records(ctx, 0, 10)
		if size != 1 || len(records) != 1 || err != nil {
			t.Errorf("log: %q, %d, %v", records, size, err)
		}
		hashes, err := tx.Log.Hashes(ctx, []uint64{0})
		if err != nil || hashes[0] != (store.Hash{7}) {
			t.Errorf("hashes: %v, %v", hashes, err)
		}
		sealed, err := tx.Materials.Get(ctx, name, 1)
		if string(sealed) != "sealed" || err != nil {
			t.Errorf("material: %q, %v", sealed, err)
		}
		if err := tx.Leases.Settle(ctx, "j", claimed[0].Fence, time.Time{}); err != nil {
			t.Errorf("the lease is gone: %v", err)
		}
		next, err := tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "b"})
		if next <= rev || err != nil {
			t.Errorf("revision %d follows %d, %v", next, rev, err)
		}
		if err := tx.Queue.Enqueue(ctx, job("j2", "l", "t")); err != nil {
			return err
		}
		again, err := tx.Leases.Claim(ctx, claim(epoch))
		if err != nil || len(again) != 1 || again[0].Fence <= claimed[0].Fence {
			t.Errorf("fence after reopening: %+v, %v; before: %d", again, err, claimed[0].Fence)
		}
		return nil
	})
}

func testTimes(t *testing.T, s store.Store) {
	zone := time.FixedZone("east", 3*3600)
	for i, at := range []time.Time{
		time.Date(2026, 11, 23, 1, 2, 3, 456_789_999, zone),
		time.Date(1969, 7, 20, 20, 17, 40, 1_000, time.UTC),
		time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		time.Now(), // its monotonic part must not matter
	} {
		name := fmt.Sprint(i)
		put(t, s, store.Doc{Kind: "times", Name: name, Due: at})
		doc, _ := get(t, s, "times", name)
		if want := at.UTC().Truncate(time.Microsecond); doc.Due != want.Round(0) || doc.Due.Location() != time.UTC {
			t.Errorf("%v came back as %v, want %v", at, doc.Due, want)
		}
	}
	put(t, s, store.Doc{Kind: "times", Name: "never"})
	if doc, _ := get(t, s, "times", "never"); !doc.Due.IsZero() {
		t.Errorf("no due time came back as %v", doc.Due)
	}
}

func testLog(t *testing.T, s store.Store) {
	ctx := t.Context()
	update(t, s, func(tx store.Tx) error {
		return tx.Log.Append(ctx, 0, [][]byte{[]byte("r0"), {}, []byte("r2")}, 0, []store.Hash{{1}, {2}})
	})
	for _, bad := range []struct{ first, firstHash uint64 }{{0, 2}, {2, 2}, {4, 2}, {3, 0}, {3, 1}, {3, 3}} {
		err := s.Update(ctx, func(tx store.Tx) error {
			err := tx.Log.Append(ctx, bad.first, [][]byte{[]byte("x")}, bad.firstHash, []store.Hash{{9}})
			wantError(t, fmt.Sprintf("append at %d, %d", bad.first, bad.firstHash), err, store.ErrConflict)
			return nil // it had no effect
		})
		if err != nil {
			t.Error(err)
		}
	}
	update(t, s, func(tx store.Tx) error { return tx.Log.Append(ctx, 3, [][]byte{[]byte("r3")}, 2, nil) })
	update(t, s, func(tx store.Tx) error { return tx.Log.Append(ctx, 4, nil, 2, []store.Hash{{3}}) })
	view(t, s, func(tx store.Tx) error {
		for _, test := range []struct {
			from  uint64
			limit int
			want  string
		}{{0, 100, "r0||r2|r3"}, {0, 2, "r0|"}, {2, 1, "r2"}, {3, 5, "r3"}, {4, 5, ""}, {1 << 63, 5, ""}} {
			records, size, err := tx.Log.Records(ctx, test.from, test.limit)
			if got := string(bytes.Join(records, []byte("|"))); got != test.want || size != 4 || err != nil {
				t.Errorf("Records(%d, %d) = %q, %d, %v; want %q", test.from, test.limit, got, size, err, test.want)
			}
		}
		hashes, err := tx.Log.Hashes(ctx, []uint64{2, 0, 2})
		if !slices.Equal(hashes, []store.Hash{{3}, {1}, {3}}) || err != nil {
			t.Errorf("hashes: %v, %v", hashes, err)
		}
		_, err = tx.Log.Hashes(ctx, []uint64{0, 3})
		wantError(t, "missing hash", err, store.ErrNotFound)
		return nil
	})
}

func testMaterials(t *testing.T, s store.Store) {
	ctx, name := t.Context(), key.Name("prod/db")
	sealed := []byte(strings.Repeat("sealed", 5000))
	update(t, s, func(tx store.Tx) error { return tx.Materials.Put(ctx, name, 1, sealed) })
	update(t, s, func(tx store.Tx) error {
		wantError(t, "second Put", tx.Materials.Put(ctx, name, 1, []byte("other")), store.ErrConflict)
		got, err := tx.Materials.Get(ctx, name, 1)
		if !bytes.Equal(got, sealed) || err != nil {
			t.Errorf("material: %d bytes, %v", len(got), err)
		}
		_, err = tx.Materials.Get(ctx, name, 2)
		wantError(t, "other version", err, store.ErrNotFound)
		_, err = tx.Materials.Get(ctx, "prod", 1)
		wantError(t, "other key", err, store.ErrNotFound)
		wantError(t, "version 0", tx.Materials.Put(ctx, name, 0, nil), store.ErrInvalid)
		wantError(t, "too long", tx.Materials.Put(ctx, name, 3, make([]byte, store.MaxBody+1)), store.ErrInvalid)
		return nil
	})
	update(t, s, func(tx store.Tx) error { // what is rewrapped is replaced
		return errors.Join(tx.Materials.Delete(ctx, name, 1), tx.Materials.Put(ctx, name, 1, []byte("another")))
	})
	view(t, s, func(tx store.Tx) error {
		if got, err := tx.Materials.Get(ctx, name, 1); string(got) != "another" || err != nil {
			t.Errorf("replaced material: %d bytes, %v", len(got), err)
		}
		return nil
	})
	for range 2 { // deleting what is absent succeeds
		update(t, s, func(tx store.Tx) error { return tx.Materials.Delete(ctx, name, 1) })
	}
	view(t, s, func(tx store.Tx) error {
		_, err := tx.Materials.Get(ctx, name, 1)
		wantError(t, "deleted", err, store.ErrNotFound)
		return nil
	})
}
