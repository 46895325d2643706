package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

var errDeliberate = errors.New("deliberate failure")

func job(id, lane, target string) store.Job {
	return store.Job{ID: id, Lane: lane, Target: target, Key: "prod/db", RunAt: epoch, Body: []byte(id)}
}

func claim(now time.Time) store.Claim {
	return store.Claim{Now: now, Lease: time.Minute, Limit: 100, PerTarget: 100}
}

func enqueue(t testing.TB, s store.Store, jobs ...store.Job) {
	t.Helper()
	update(t, s, func(tx store.Tx) error { return tx.Queue.Enqueue(t.Context(), jobs...) })
}

func claimJobs(t testing.TB, s store.Store, c store.Claim) (jobs []store.Job) {
	t.Helper()
	update(t, s, func(tx store.Tx) (err error) {
		jobs, err = tx.Leases.Claim(t.Context(), c)
		return err
	})
	return jobs
}

func settle(t testing.TB, s store.Store, id string, fence uint64, retryAt time.Time) error {
	return s.Update(t.Context(), func(tx store.Tx) error { return tx.Leases.Settle(t.Context(), id, fence, retryAt) })
}

func pending(t testing.TB, s store.Store) (ids []string) {
	t.Helper()
	view(t, s, func(tx store.Tx) error {
		jobs, err := tx.Queue.Pending(t.Context(), "prod/db")
		ids = idsOf(jobs)
		return err
	})
	return ids
}

func idsOf(jobs []store.Job) []string {
	ids := []string{}
	for _, j := range jobs {
		ids = append(ids, j.ID)
	}
	return ids
}

func wantIDs(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func testEnqueue(t *testing.T, s store.Store) {
	first := store.Job{ID: "j", Lane: "l", Target: "t", Key: "prod/db", Priority: -3, RunAt: epoch, Attempt: 5, Fence: 9, Body: []byte("body")}
	enqueue(t, s, first)
	view(t, s, func(tx store.Tx) error {
		jobs, err := tx.Queue.Pending(t.Context(), "prod/db")
		if err != nil || len(jobs) != 1 {
			t.Fatalf("pending: %v, %v", jobs, err)
		}
		got := jobs[0]
		if got.ID != "j" || got.Lane != "l" || got.Target != "t" || got.Key != "prod/db" || got.Priority != -3 || !got.RunAt.Equal(epoch) || string(got.Body) != "body" {
			t.Errorf("the job came back as %+v", got)
		}
		if got.Attempt != 0 || got.Fence != 0 {
			t.Errorf("a job that was never leased has attempt %d and fence %d", got.Attempt, got.Fence)
		}
		return nil
	})
	// Queueing an ID again changes nothing, whatever else the job says.
	again := first
	again.Lane, again.Priority, again.Body = "l2", 7, []byte("other")
	enqueue(t, s, again)
	jobs := claimJobs(t, s, claim(epoch))
	if len(jobs) != 1 || jobs[0].Lane != "l" || jobs[0].Priority != -3 || string(jobs[0].Body) != "body" || jobs[0].Attempt != 1 || jobs[0].Fence == 0 {
		t.Fatalf("claimed %+v", jobs)
	}
	// Also while it is leased, and though a newer one of its lane waits.
	enqueue(t, s, job("newer", "l", "t"))
	enqueue(t, s, first)
	wantIDs(t, "pending", pending(t, s), "j", "newer")
	if err := settle(t, s, "j", jobs[0].Fence, time.Time{}); err != nil {
		t.Fatal(err)
	}
	wantIDs(t, "after settling", pending(t, s), "newer")
	enqueue(t, s, job("newest", "l", "t")) // an ID that is free again
	enqueue(t, s, first)
	wantIDs(t, "queued again", pending(t, s), "j")
}

func testClaimOrder(t *testing.T, s store.Store) {
	add := func(id string, priority int, at time.Duration) {
		j := job(id, "lane "+id, "target "+id)
		j.Priority, j.RunAt = priority, epoch.Add(at)
		enqueue(t, s, j)
	}
	add("low", -1, -time.Hour)
	add("late", 0, -time.Second)
	add("early", 0, -time.Minute)
	add("late too", 0, -time.Second)
	add("urgent", 5, 0)
	add("urgent, not due", 5, time.Second)
	c := claim(epoch)
	c.Limit = 3
	wantIDs(t, "first claim", idsOf(claimJobs(t, s, c)), "urgent", "early", "late")
	wantIDs(t, "second claim", idsOf(claimJobs(t, s, c)), "late too", "low")
	wantIDs(t, "third claim", idsOf(claimJobs(t, s, c)))
	c.Now = epoch.Add(time.Second)
	wantIDs(t, "once it is due", idsOf(claimJobs(t, s, c)), "urgent, not due")
	c.Now = epoch.Add(time.Minute - time.Microsecond)
	wantIDs(t, "while leases live", idsOf(claimJobs(t, s, c)))
	c.Now, c.Limit = epoch.Add(2*time.Minute), 100
	wantIDs(t, "after they ran out", idsOf(claimJobs(t, s, c)), "urgent", "urgent, not due", "early", "late", "late too", "low")
}

func testLanes(t *testing.T, s store.Store) {
	enqueue(t, s, job("a1", "a", "t"), job("b1", "b", "t"), job("a2", "a", "t"))
	wantIDs(t, "the newer one replaces", pending(t, s), "b1", "a2")

	leased := claimJobs(t, s, claim(epoch))
	wantIDs(t, "claimed", idsOf(leased), "b1", "a2")
	enqueue(t, s, job("a3", "a", "t"), job("a4", "a", "t"))
	wantIDs(t, "a leased one is not replaced", pending(t, s), "b1", "a2", "a4")
	wantIDs(t, "the lane is taken", idsOf(claimJobs(t, s, claim(epoch))))

	if err := settle(t, s, "a2", leased[1].Fence, time.Time{}); err != nil {
		t.Fatal(err)
	}
	next := claimJobs(t, s, claim(epoch))
	wantIDs(t, "settling frees the lane", idsOf(next), "a4")

	// A lease that ends without Settle, with a newer job waiting that is not even due.
	later := job("a5", "a", "t")
	later.RunAt = epoch.Add(time.Hour)
	enqueue(t, s, later)
	wantIDs(t, "after the lease ran out", idsOf(claimJobs(t, s, claim(epoch.Add(2*time.Minute)))), "b1")
	wantIDs(t, "the overtaken one is dropped", pending(t, s), "b1", "a5")
	wantError(t, "its lease", settle(t, s, "a4", next[0].Fence, time.Time{}), store.ErrFenced)

	// One that should be tried again, with a newer job waiting, is overtaken too.
	leased = claimJobs(t, s, claim(epoch.Add(time.Hour)))
	wantIDs(t, "both", idsOf(leased), "b1", "a5")
	enqueue(t, s, job("b2", "b", "t"))
	if err := settle(t, s, "b1", leased[0].Fence, epoch); err != nil {
		t.Fatal(err)
	}
	wantIDs(t, "retry of an overtaken one", pending(t, s), "a5", "b2")

	// Drop takes what is not leased, of that lane.
	enqueue(t, s, job("a6", "a", "t"), job("c1", "c", "t"))
	update(t, s, func(tx store.Tx) error {
		return errors.Join(tx.Queue.Drop(t.Context(), "a"), tx.Queue.Drop(t.Context(), "nothing"))
	})
	wantIDs(t, "after Drop", pending(t, s), "a5", "b2", "c1")
	wantIDs(t, "claimable", idsOf(claimJobs(t, s, claim(epoch.Add(time.Hour)))), "b2", "c1")
}

func testBulkheads(t *testing.T, s store.Store) {
	for i := range 50 { // a hanging target with a backlog that is older and more urgent
		j := job(fmt.Sprintf("hanging %02d", i), fmt.Sprintf("hanging %02d", i), "hanging")
		j.Priority = 9
		j.RunAt = epoch.Add(-time.Hour + time.Duration(i)*time.Microsecond)
		enqueue(t, s, j)
	}
	enqueue(t, s, job("x1", "x1", "x"), job("y1", "y1", "y"), job("x2", "x2", "x"), job("x3", "x3", "x"))
	c := claim(epoch)
	c.PerTarget, c.Limit = 2, 10
	first := claimJobs(t, s, c)
	wantIDs(t, "first claim", idsOf(first), "hanging 00", "hanging 01", "x1", "y1", "x2")
	wantIDs(t, "second claim", idsOf(claimJobs(t, s, c)))
	if err := settle(t, s, "x1", first[2].Fence, time.Time{}); err != nil {
		t.Fatal(err)
	}
	wantIDs(t, "after one was settled", idsOf(claimJobs(t, s, c)), "x3")
	c.PerTarget = 3
	wantIDs(t, "with a larger limit", idsOf(claimJobs(t, s, c)), "hanging 02")
	urgent := job("z1", "z1", "z") // as urgent as the backlog, and younger
	urgent.Priority = 9
	enqueue(t, s, urgent)
	c.Limit = 1
	wantIDs(t, "behind targets at their limit", idsOf(claimJobs(t, s, c)), "z1")
	c.Limit, c.Now = 10, epoch.Add(time.Hour)
	wantIDs(t, "leases that ran out do not count", idsOf(claimJobs(t, s, c)), "hanging 00", "z1", "hanging 01", "hanging 02", "y1", "x2", "x3")

	// Of one target, only what is due.
	soon, later := job("soon", "soon", "w"), job("later", "later", "w")
	later.RunAt = epoch.Add(2 * time.Hour)
	enqueue(t, s, later, soon)
	wantIDs(t, "one of two is due", idsOf(claimJobs(t, s, c)), "soon")
}

// testFairness: the backlogs of some targets keep no other target waiting, single
// targets can be bounded, and places can be kept for what is urgent.
func testFairness(t *testing.T, s store.Store) {
	var backlog []store.Job
	for i := range 10_000 {
		j := job(fmt.Sprintf("%05d", i), fmt.Sprintf("%05d", i), fmt.Sprint("busy ", i%5))
		j.RunAt = epoch.Add(-time.Hour + time.Duration(i)*time.Microsecond)
		backlog = append(backlog, j)
	}
	enqueue(t, s, backlog...)
	c := claim(epoch)
	c.Limit, c.PerTarget = 20, 8
	held := claimJobs(t, s, c)
	if len(held) != 20 {
		t.Fatalf("%d jobs", len(held))
	}
	enqueue(t, s, job("one", "one", "quiet")) // the youngest of all
	// Every worker goes on with one job as soon as it has done another.
	c.Limit = 1
	if err := settle(t, s, held[0].ID, held[0].Fence, time.Time{}); err != nil {
		t.Fatal(err)
	}
	wantIDs(t, "the next job after 10,000 older ones of others", idsOf(claimJobs(t, s, c)), "one")

	c.Limit, c.Bounds = 3, map[string]int{"busy 0": 0, "busy 1": 5, "busy 2": 4, "busy 3": 4, "busy 4": 4}
	wantIDs(t, "one more of the one that may have it", idsOf(claimJobs(t, s, c)), "00021")

	urgent := job("urgent", "urgent", "busy 4")
	urgent.Priority = 5
	enqueue(t, s, urgent)
	c.Bounds, c.Least = nil, 5
	wantIDs(t, "what is urgent enough", idsOf(claimJobs(t, s, c)), "urgent")
	wantIDs(t, "nothing else is", idsOf(claimJobs(t, s, c)))
	c.Now = epoch.Add(time.Hour) // the leases have run out
	wantIDs(t, "what has been lost and is urgent enough", idsOf(claimJobs(t, s, c)), "urgent")
}

func testFences(t *testing.T, s store.Store) {
	ctx := t.Context()
	enqueue(t, s, job("a", "a", "t"), job("b", "b", "t"))
	first := claimJobs(t, s, claim(epoch))
	if len(first) != 2 || first[0].Fence >= first[1].Fence {
		t.Fatalf("claimed %+v", first)
	}
	a := first[0]
	renew := func(id string, fence uint64, until time.Time) error {
		return s.Update(ctx, func(tx store.Tx) error { return tx.Leases.Renew(ctx, id, fence, until) })
	}
	wantError(t, "renew under another fence", renew("a", a.Fence+1, epoch.Add(time.Hour)), store.ErrFenced)
	wantError(t, "renew under another job's fence", renew("a", first[1].Fence, epoch.Add(time.Hour)), store.ErrFenced)
	wantError(t, "renew what is unknown", renew("c", a.Fence, epoch.Add(time.Hour)), store.ErrFenced)
	wantError(t, "settle under another fence", settle(t, s, "a", a.Fence+1, time.Time{}), store.ErrFenced)
	if err := renew("a", a.Fence, epoch.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	// b's lease has run out, a's was renewed.
	second := claimJobs(t, s, claim(epoch.Add(2*time.Minute)))
	wantIDs(t, "claimed again", idsOf(second), "b")
	if second[0].Fence <= first[1].Fence || second[0].Attempt != 2 {
		t.Errorf("claimed again: %+v, before: %+v", second[0], first[1])
	}
	wantError(t, "settle what was claimed again", settle(t, s, "b", first[1].Fence, time.Time{}), store.ErrFenced)
	wantError(t, "renew what was claimed again", renew("b", first[1].Fence, epoch.Add(time.Hour)), store.ErrFenced)

	// A result that comes with a lost lease must not be committed.
	err := s.Update(ctx, func(tx store.Tx) error {
		if _, err := tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "result"}); err != nil {
			return err
		}
		return tx.Leases.Settle(ctx, "b", first[1].Fence, time.Time{})
	})
	wantError(t, "result of a lost lease", err, store.ErrFenced)
	if _, found := get(t, s, "k", "result"); found {
		t.Error("the result of a lost lease was committed")
	}

	// A lease that ran out and was not claimed again may still be settled.
	if err := settle(t, s, "b", second[0].Fence, epoch.Add(3*time.Hour)); err != nil {
		t.Errorf("settle late: %v", err)
	}
	wantError(t, "settle twice", settle(t, s, "b", second[0].Fence, time.Time{}), store.ErrFenced)
	wantError(t, "renew what was settled", renew("b", second[0].Fence, epoch.Add(time.Hour)), store.ErrFenced)
	wantIDs(t, "before the retry is due", idsOf(claimJobs(t, s, claim(epoch.Add(3*time.Hour-time.Microsecond)))), "a")
	third := claimJobs(t, s, claim(epoch.Add(3*time.Hour)))
	if len(third) != 1 || third[0].ID != "b" || third[0].Attempt != 3 || !third[0].RunAt.Equal(epoch.Add(3*time.Hour)) {
		t.Fatalf("retry: %+v", third)
	}

	// Fences grow over jobs that come and go.
	last := third[0].Fence
	for i := range 3 {
		id := fmt.Sprint("new ", i)
		enqueue(t, s, job(id, id, id))
		got := claimJobs(t, s, claim(epoch))
		if len(got) != 1 || got[0].Fence <= last {
			t.Fatalf("fence after %d: %+v", last, got)
		}
		last = got[0].Fence
		if err := settle(t, s, id, last, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
}

func testJobLimits(t *testing.T, s store.Store) {
	ctx, long := t.Context(), strings.Repeat("x", store.MaxName+1)
	for what, spoil := range map[string]func(*store.Job){
		"no ID":        func(j *store.Job) { j.ID = "" },
		"no lane":      func(j *store.Job) { j.Lane = "" },
		"no target":    func(j *store.Job) { j.Target = "" },
		"no time":      func(j *store.Job) { j.RunAt = time.Time{} },
		"long ID":      func(j *store.Job) { j.ID = long },
		"long lane":    func(j *store.Job) { j.Lane = long },
		"long target":  func(j *store.Job) { j.Target = long },
		"body too big": func(j *store.Job) { j.Body = make([]byte, store.MaxBody+1) },
	} {
		bad := job("bad", "bad", "t")
		spoil(&bad)
		update(t, s, func(tx store.Tx) error {
			wantError(t, what, tx.Queue.Enqueue(ctx, job("good", "good", "t"), bad), store.ErrInvalid)
			return nil // it had no effect, not even the good half
		})
	}
	wantIDs(t, "pending", pending(t, s))
	for what, spoil := range map[string]func(*store.Claim){
		"no time": func(c *store.Claim) { c.Now = time.Time{} }, "no lease": func(c *store.Claim) { c.Lease = 0 },
		"no limit": func(c *store.Claim) { c.Limit = 0 }, "large limit": func(c *store.Claim) { c.Limit = store.MaxLimit + 1 },
		"no target limit": func(c *store.Claim) { c.PerTarget = 0 }, "large least": func(c *store.Claim) { c.Least = 1 << 40 },
	} {
		bad := claim(epoch)
		spoil(&bad)
		err := s.Update(ctx, func(tx store.Tx) error {
			_, err := tx.Leases.Claim(ctx, bad)
			return err
		})
		wantError(t, what, err, store.ErrInvalid)
	}
}

// testWorkers lets workers race for jobs: no job is held twice, no lane is held
// twice, no target is held more often than allowed, and every job is done once.
func testWorkers(t *testing.T, s store.Store) {
	const jobs, lanes, targets, perTarget, workers = 120, 40, 5, 3, 6
	var mu sync.Mutex
	held, done := map[string]bool{}, map[string]int{}
	perLane, onTarget := map[string]int{}, map[string]int{}
	work := func() error {
		for {
			var got []store.Job
			err := s.Update(t.Context(), func(tx store.Tx) (err error) {
				got, err = tx.Leases.Claim(t.Context(), store.Claim{Now: epoch, Lease: time.Hour, Limit: 4, PerTarget: perTarget})
				return err
			})
			if err != nil {
				return err
			}
			mu.Lock()
			for _, j := range got {
				if held[j.ID] || perLane[j.Lane] > 0 || onTarget[j.Target] >= perTarget {
					t.Errorf("job %s of lane %s and target %s was leased beside %v", j.ID, j.Lane, j.Target, held)
				}
				held[j.ID] = true
				perLane[j.Lane]++
				onTarget[j.Target]++
			}
			finished := len(done) == jobs
			mu.Unlock()
			if finished {
				return nil
			}
			for _, j := range got {
				// Given back before Settle: another worker may hold it right after.
				mu.Lock()
				delete(held, j.ID)
				perLane[j.Lane]--
				onTarget[j.Target]--
				done[j.ID]++
				mu.Unlock()
				if err := s.Update(t.Context(), func(tx store.Tx) error { return tx.Leases.Settle(t.Context(), j.ID, j.Fence, time.Time{}) }); err != nil {
					return err
				}
			}
		}
	}
	for i := range jobs { // several generations per lane would drop each other
		if i < lanes {
			enqueue(t, s, job(fmt.Sprint(i), fmt.Sprint(i), fmt.Sprint(i%targets)))
		}
	}
	results := make(chan error, workers)
	for range workers {
		go func() { results <- work() }()
	}
	for i := lanes; i < jobs; i++ {
		lane := fmt.Sprint(i) // each its own, queued while the workers run
		enqueue(t, s, job(fmt.Sprint(i), lane, fmt.Sprint(i%targets)))
	}
	for range workers {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	for id, n := range done {
		if n != 1 {
			t.Errorf("job %s was done %d times", id, n)
		}
	}
}
