package memstore

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// job is a queued job. Whether a lease has run out is looked at by Claim only;
// until then the job counts as leased.
type job struct {
	store.Job
	leased bool
	until  time.Time
	seq    uint64
}

type queue struct{ *tx }

func (t *tx) ownedJobs() []job {
	if !t.ownJobs {
		t.state.jobs, t.ownJobs = slices.Clone(t.state.jobs), true
	}
	return t.state.jobs
}

func (t *tx) waiting(lane string) bool {
	return slices.ContainsFunc(t.state.jobs, func(j job) bool { return j.Lane == lane && !j.leased })
}

func (t *tx) dropJobs(drop func(job) bool) {
	if slices.ContainsFunc(t.state.jobs, drop) {
		t.state.jobs = slices.DeleteFunc(t.ownedJobs(), drop)
	}
}

// Enqueue implements store.Queue.
func (q queue) Enqueue(ctx context.Context, jobs ...store.Job) error {
	if err := q.writing(ctx); err != nil {
		return err
	}
	for _, j := range jobs {
		if err := j.Check(); err != nil {
			return fmt.Errorf("memstore: queue a job: %w", err)
		}
	}
	for _, j := range jobs {
		if slices.ContainsFunc(q.state.jobs, func(known job) bool { return known.ID == j.ID }) {
			continue
		}
		q.dropJobs(func(known job) bool { return known.Lane == j.Lane && !known.leased })
		j.Attempt, j.Fence, j.RunAt, j.Body = 0, 0, micro(j.RunAt), bytes.Clone(j.Body)
		q.store.jobSeq++
		q.state.jobs = append(q.ownedJobs(), job{Job: j, seq: q.store.jobSeq})
		q.touched.Add(store.TopicJobs)
	}
	return nil
}

// Pending implements store.Queue.
func (q queue) Pending(ctx context.Context, name key.Name) ([]store.Job, error) {
	if err := q.reading(ctx); err != nil {
		return nil, err
	}
	var list []store.Job
	for _, j := range q.state.jobs {
		if j.Key == name {
			list = append(list, j.Job)
		}
	}
	return list, nil
}

// Drop implements store.Queue.
func (q queue) Drop(ctx context.Context, lane string) error {
	if err := q.writing(ctx); err != nil {
		return err
	}
	q.dropJobs(func(j job) bool { return j.Lane == lane && !j.leased })
	return nil
}

type leases struct{ *tx }

// Claim implements store.Leases.
func (l leases) Claim(ctx context.Context, claim store.Claim) ([]store.Job, error) {
	if err := l.writing(ctx); err != nil {
		return nil, err
	}
	if err := claim.Check(); err != nil {
		return nil, fmt.Errorf("memstore: claim jobs: %w", err)
	}
	now := micro(claim.Now)
	l.dropJobs(func(j job) bool { return j.leased && !j.until.After(now) && l.waiting(j.Lane) })
	onTarget, taken := map[string]int{}, map[string]bool{}
	for _, j := range l.state.jobs {
		if j.leased && j.until.After(now) {
			onTarget[j.Target]++
		}
		taken[j.Lane] = taken[j.Lane] || j.leased && j.until.After(now)
	}
	var ready []int
	for i, j := range l.state.jobs {
		least := claim.Least != 0 && j.Priority < claim.Least
		if !least && (j.leased && !j.until.After(now) || !j.leased && !taken[j.Lane] && !j.RunAt.After(now)) {
			ready = append(ready, i)
		}
	}
	bound := func(target string) int {
		if least, bounded := claim.Bounds[target]; bounded {
			return least
		}
		return claim.PerTarget
	}
	var claimed []store.Job
	for len(claimed) < claim.Limit {
		ready = slices.DeleteFunc(ready, func(i int) bool { return onTarget[l.state.jobs[i].Target] >= bound(l.state.jobs[i].Target) })
		if len(ready) == 0 {
			break
		}
		i := slices.MinFunc(ready, func(a, b int) int {
			x, y := &l.state.jobs[a], &l.state.jobs[b]
			return cmp.Or(cmp.Compare(y.Priority, x.Priority), cmp.Compare(onTarget[x.Target], onTarget[y.Target]), x.RunAt.Compare(y.RunAt), cmp.Compare(x.seq, y.seq))
		})
		ready = slices.DeleteFunc(ready, func(other int) bool { return other == i })
		j := &l.ownedJobs()[i]
		l.store.fence++
		j.leased, j.until = true, micro(claim.Now.Add(claim.Lease))
		j.Attempt, j.Fence = j.Attempt+1, l.store.fence
		onTarget[j.Target]++
		claimed = append(claimed, j.Job)
	}
	return claimed, nil
}

// held returns the index of a job that is leased under the fence.
func (l leases) held(ctx context.Context, id string, fence uint64) (int, error) {
	if err := l.writing(ctx); err != nil {
		return 0, err
	}
	i := slices.IndexFunc(l.state.jobs, func(j job) bool { return j.ID == id && j.leased && j.Fence == fence })
	if i < 0 {
		return 0, fmt.Errorf("memstore: job %q is not leased under fence %d: %w", id, fence, store.ErrFenced)
	}
	return i, nil
}

// Jump implements store.Jumper.
func (l leases) Jump(ctx context.Context, floor uint64) error {
	if err := l.writing(ctx); err != nil {
		return err
	}
	if floor >= math.MaxInt64 {
		return fmt.Errorf("memstore: %w: a jump to %d leaves no numbers", store.ErrInvalid, floor)
	}
	l.store.rev, l.store.fence = max(l.store.rev, floor), max(l.store.fence, floor)
	jobs := l.ownedJobs()
	for i := range jobs {
		jobs[i].leased, jobs[i].until = false, time.Time{}
	}
	for i := len(jobs) - 1; i >= 0; i-- { // of each lane the newest remains
		lane := jobs[i].Lane
		if slices.ContainsFunc(l.state.jobs[i+1:], func(j job) bool { return j.Lane == lane }) {
			l.state.jobs = slices.Delete(l.state.jobs, i, i+1)
		}
	}
	l.touched.Add(store.TopicJobs)
	return nil
}

// Renew implements store.Leases. A lease that has run out is renewed as long as
// nobody claimed the job again.
func (l leases) Renew(ctx context.Context, id string, fence uint64, until time.Time) error {
	i, err := l.held(ctx, id, fence)
	if err == nil {
		l.ownedJobs()[i].until = micro(until)
	}
	return err
}

// Settle implements store.Leases. A lease that has run out may still be settled
// as long as nobody claimed the job again. A job that should be tried again is
// dropped all the same when a newer one of its lane waits.
func (l leases) Settle(ctx context.Context, id string, fence uint64, retryAt time.Time) error {
	i, err := l.held(ctx, id, fence)
	if err != nil {
		return err
	}
	l.touched.Add(store.TopicJobs)
	jobs := l.ownedJobs()
	if !retryAt.IsZero() && !l.waiting(jobs[i].Lane) {
		jobs[i].leased, jobs[i].until, jobs[i].RunAt = false, time.Time{}, micro(retryAt)
		return nil
	}
	l.state.jobs = slices.Delete(jobs, i, i+1)
	return nil
}
