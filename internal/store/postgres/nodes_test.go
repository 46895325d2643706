package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/postgres"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/test/pgtest"
)

var epoch = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

// increment adds one to the number in a document.
func increment(ctx context.Context, tx store.Tx, name string) (n int, err error) {
	doc, err := tx.Docs.Get(ctx, "counter", name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return 0, err
	}
	if len(doc.Body) > 0 {
		if n, err = strconv.Atoi(string(doc.Body)); err != nil {
			return 0, err
		}
	}
	n++
	doc.Kind, doc.Name, doc.Body = "counter", name, strconv.AppendInt(nil, int64(n), 10)
	_, err = tx.Docs.Put(ctx, doc)
	return n, err
}

func counted(t testing.TB, s store.Store, name string) (n int) {
	t.Helper()
	err := s.View(t.Context(), func(tx store.Tx) error {
		doc, err := tx.Docs.Get(t.Context(), "counter", name)
		if err != nil {
			return err
		}
		n, err = strconv.Atoi(string(doc.Body))
		return err
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	return n
}

// TestNodesAreSerialisable counts in one document, appends to one key's events
// and to the log, and claims jobs, from three nodes at once. A fact that one node
// believed though another had written would show as a conflict or a lost update.
func TestNodesAreSerialisable(t *testing.T) {
	const nodes, workers, rounds = 3, 4, 15
	url := newDatabase(t)
	var mu sync.Mutex
	fences, revs := map[uint64]bool{}, map[uint64]bool{}
	step := func(s store.Store, node, worker, round int) error {
		ctx := t.Context()
		var jobs []store.Job
		var rev uint64
		err := s.Update(ctx, func(tx store.Tx) error {
			n, err := increment(ctx, tx, "one")
			if err != nil {
				return err
			}
			if err := tx.Events.Append(ctx, store.Event{Key: "prod/db", Seq: uint64(n), Type: "counted", At: epoch}); err != nil {
				return err
			}
			_, size, err := tx.Log.Records(ctx, 0, 1)
			if err != nil {
				return err
			}
			if err := tx.Log.Append(ctx, size, [][]byte{{byte(node)}}, size, []store.Hash{{byte(n)}}); err != nil {
				return err
			}
			id := fmt.Sprint(node, worker, round)
			if rev, err = tx.Docs.Put(ctx, store.Doc{Kind: "mine", Name: id}); err != nil {
				return err
			}
			return tx.Queue.Enqueue(ctx, store.Job{ID: id, Lane: id, Target: "t", Key: "prod/db", RunAt: epoch})
		})
		if err != nil {
			return err
		}
		err = s.Update(ctx, func(tx store.Tx) (err error) {
			jobs, err = tx.Leases.Claim(ctx, store.Claim{Now: epoch, Lease: time.Hour, Limit: 3, PerTarget: 1000})
			return err
		})
		mu.Lock()
		defer mu.Unlock()
		if revs[rev] {
			t.Errorf("revision %d was given twice", rev)
		}
		revs[rev] = true
		for _, job := range jobs {
			if fences[job.Fence] || job.Attempt != 1 {
				t.Errorf("job %s: fence %d was given twice, or attempt %d is not the first", job.ID, job.Fence, job.Attempt)
			}
			fences[job.Fence] = true
		}
		return err
	}
	var running sync.WaitGroup
	var last *postgres.Store
	for node := range nodes {
		s := open(t, url)
		last = s
		for worker := range workers {
			running.Go(func() {
				for round := range rounds {
					if err := step(s, node, worker, round); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	running.Wait()
	const total = nodes * workers * rounds
	if n := counted(t, last, "one"); n != total {
		t.Errorf("counted to %d, want %d", n, total)
	}
	err := last.View(t.Context(), func(tx store.Tx) error {
		events, err := tx.Events.Load(t.Context(), "prod/db", 0, total+1)
		if len(events) != total {
			t.Errorf("%d events, want %d", len(events), total)
		}
		if err != nil {
			return err
		}
		_, size, err := tx.Log.Records(t.Context(), 0, 1)
		if size != total {
			t.Errorf("%d records, want %d", size, total)
		}
		return err
	})
	must(t, err)
	if len(fences) != total {
		t.Errorf("%d of %d jobs were claimed", len(fences), total)
	}
}

// TestForeignWriteIsNotOverlooked: what one node knows ends with another's commit.
func TestForeignWriteIsNotOverlooked(t *testing.T) {
	url := newDatabase(t)
	a, b := open(t, url), open(t, url)
	ctx := t.Context()
	var rev uint64
	update(t, a, func(tx store.Tx) (err error) {
		rev, err = tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "a"})
		return errors.Join(err, tx.Events.Append(ctx, store.Event{Key: "prod/db", Seq: 1, Type: "t"}))
	})
	update(t, b, func(tx store.Tx) error {
		_, err := tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "a", Rev: rev})
		return errors.Join(err, tx.Events.Append(ctx, store.Event{Key: "prod/db", Seq: 2, Type: "t"}))
	})
	update(t, a, func(tx store.Tx) error {
		if _, err := tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "a", Rev: rev}); !errors.Is(err, store.ErrConflict) {
			t.Errorf("overwriting another node's write: %v", err)
		}
		if err := tx.Events.Append(ctx, store.Event{Key: "prod/db", Seq: 2, Type: "t"}); !errors.Is(err, store.ErrConflict) {
			t.Errorf("appending over another node's event: %v", err)
		}
		return tx.Events.Append(ctx, store.Event{Key: "prod/db", Seq: 3, Type: "t"})
	})
}

// TestRowsChangedByHand: an Update that relies on what somebody has changed past
// every node is not committed by halves; it runs again and sees the truth.
func TestRowsChangedByHand(t *testing.T) {
	url := newDatabase(t)
	s := open(t, url)
	ctx := t.Context()
	var rev uint64
	update(t, s, func(tx store.Tx) (err error) {
		rev, err = tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "a"})
		return err
	})
	if _, err := pgtest.Connect(t, url).Exec(ctx, "UPDATE keyturn.docs SET rev = rev + 1000"); err != nil {
		t.Fatal(err)
	}
	runs := 0
	err := s.Update(ctx, func(tx store.Tx) error {
		runs++
		if _, err := tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "b"}); err != nil {
			return err
		}
		_, err := tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "a", Rev: rev})
		return err
	})
	if !errors.Is(err, store.ErrConflict) || runs != 2 {
		t.Errorf("after %d runs: %v", runs, err)
	}
	err = s.View(ctx, func(tx store.Tx) error {
		_, err := tx.Docs.Get(ctx, "k", "b")
		return err
	})
	if !errors.Is(err, store.ErrNotFound) {
		t.Errorf("half of the Update is there: %v", err)
	}
}

// TestWatchAcrossNodes: a commit of one node wakes the watchers of another, also
// after the connection that listens was cut.
func TestWatchAcrossNodes(t *testing.T) {
	url := newDatabase(t)
	writer, reader := open(t, url), open(t, url)
	woken := reader.Watch(t.Context(), store.TopicDocs)
	wake := func(what, name string) {
		t.Helper()
		drain(woken)
		update(t, writer, func(tx store.Tx) error { _, err := increment(t.Context(), tx, name); return err })
		select {
		case <-woken:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: no wake-up", what)
		}
	}
	for i := range 3 {
		wake("a commit of another node", fmt.Sprint(i))
	}
	conn := pgtest.Connect(t, url)
	cut(t, conn, "upkeep")
	wake("while nothing is heard", "cut")
	pgtest.Eventually(t, "both nodes listen again", func() bool {
		var n int
		must(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND classid = 1263817295 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())").Scan(&n))
		return n == 2
	})
	wake("after the cut", "healed")
}

// drain takes a wake-up that is due already.
func drain(c <-chan struct{}) {
	select {
	case <-c:
	default:
	}
}

// cut ends the connections of a role in conn's database.
func cut(t testing.TB, conn *pgx.Conn, role string) {
	t.Helper()
	var n int
	err := conn.QueryRow(t.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
		WHERE datname = current_database() AND application_name LIKE 'keyturn ' || $1 || ' %'`, role).Scan(&n)
	if err != nil || n == 0 {
		t.Fatalf("%d connections were cut: %v", n, err)
	}
}

// TestBusyNodeStarvesNone: while one node has more Updates than it can commit,
// those of another node wait for a few of its transactions each.
func TestBusyNodeStarvesNone(t *testing.T) {
	url := newDatabase(t)
	busy, other := open(t, url), open(t, url)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for i := range 64 {
		running.Go(func() {
			for ctx.Err() == nil {
				_ = busy.Update(ctx, func(tx store.Tx) error { _, err := increment(ctx, tx, fmt.Sprint(i)); return err })
			}
		})
	}
	defer running.Wait()
	defer stop()
	conn := pgtest.Connect(t, url)
	batches := func() (n int) {
		must(t, conn.QueryRow(t.Context(), "SELECT coalesce(max(batch), 0) FROM keyturn.nodes").Scan(&n))
		return n
	}
	pgtest.Eventually(t, "the other node is busy", func() bool { return batches() > 3 })
	// Without a bound on a batch the first of these waits for ever; without turns
	// among the nodes, for as long as chance has it.
	const rounds = 20
	before := batches()
	for range rounds {
		update(t, other, func(tx store.Tx) error { _, err := increment(t.Context(), tx, "other"); return err })
	}
	if n := batches() - before; n > 10*rounds {
		t.Errorf("%d Updates waited for %d transactions of a busy node", rounds, n)
	}
}

// TestLeasesOfADeadNode: what a node that died has leased for an hour is claimed
// by another within seconds, and the dead one's result is refused.
func TestLeasesOfADeadNode(t *testing.T) {
	url := newDatabase(t)
	dying, heir := open(t, url), open(t, url)
	ctx := t.Context()
	claim := func(s store.Store) (jobs []store.Job) {
		update(t, s, func(tx store.Tx) (err error) {
			jobs, err = tx.Leases.Claim(ctx, store.Claim{Now: epoch, Lease: time.Hour, Limit: 10, PerTarget: 10})
			return err
		})
		return jobs
	}
	update(t, dying, func(tx store.Tx) error {
		return tx.Queue.Enqueue(ctx, store.Job{ID: "j", Lane: "l", Target: "t", Key: key.Name("prod/db"), RunAt: epoch})
	})
	first := claim(dying)
	if len(first) != 1 || len(claim(heir)) != 0 {
		t.Fatalf("claimed %v", first)
	}
	woken := heir.Watch(ctx, store.TopicJobs)
	dying.Die()
	select {
	case <-woken:
	case <-time.After(20 * time.Second):
		t.Fatal("the heir is not woken")
	}
	var again []store.Job
	pgtest.Eventually(t, "the heir claims the job", func() bool { again = claim(heir); return len(again) == 1 })
	if again[0].Fence <= first[0].Fence {
		t.Errorf("fence %d follows %d", again[0].Fence, first[0].Fence)
	}
	err := dying.Update(ctx, func(tx store.Tx) error { return tx.Leases.Settle(ctx, "j", first[0].Fence, time.Time{}) })
	if !errors.Is(err, store.ErrFenced) {
		t.Errorf("the late result of the dead node: %v", err)
	}
}
