package postgres

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// The schema says what the states of a job are and what its front is, and holds
// the functions that keep them. A lane holds at most one leased job and one
// waiting job. Whether a lease has run out is looked at by Claim only; until then
// the job counts as leased.

type queue struct{ *tx }

// Enqueue implements store.Queue.
func (q queue) Enqueue(ctx context.Context, jobs ...store.Job) error {
	if err := q.writing(ctx); err != nil {
		return err
	}
	for _, job := range jobs {
		if err := job.Check(); err != nil {
			return fmt.Errorf("postgres: queue a job: %w", err)
		}
	}
	for _, job := range jobs {
		if err := q.exec("SELECT job_enqueue($1, $2, $3, $4, $5, $6, $7)",
			job.ID, job.Lane, job.Target, string(job.Key), job.Priority, toMicros(job.RunAt), blob(job.Body)); err != nil {
			return q.fail("queue a job", err)
		}
		q.touched.Add(store.TopicJobs)
	}
	return nil
}

// Drop implements store.Queue.
func (q queue) Drop(ctx context.Context, lane string) error {
	if err := q.writing(ctx); err != nil {
		return err
	}
	if !plain(lane) {
		return nil
	}
	err := q.exec("SELECT job_drop($1)", lane)
	return q.fail("drop jobs", err)
}

// Pending implements store.Queue.
func (q queue) Pending(ctx context.Context, name key.Name) ([]store.Job, error) {
	if err := q.reading(ctx); err != nil {
		return nil, err
	}
	if !plain(string(name)) {
		return nil, nil
	}
	jobs, err := collectRows(q.tx, scanJob, "SELECT id, lane, target, key, priority, run_at, attempt, fence, body FROM jobs WHERE key = $1 ORDER BY seq", string(name))
	return jobs, q.fail("list jobs", err)
}

func scanJob(rows pgx.Rows) (store.Job, error) {
	var job store.Job
	var name string
	var runAt int64
	err := rows.Scan(&job.ID, &job.Lane, &job.Target, &name, &job.Priority, &runAt, &job.Attempt, &job.Fence, &job.Body)
	job.Key, job.RunAt = key.Name(name), fromMicros(runAt)
	return job, err
}

type leases struct{ *tx }

// Claim implements store.Leases. Its cost grows with the jobs it leases and with
// the leases that exist, not with the queue.
func (l leases) Claim(ctx context.Context, claim store.Claim) ([]store.Job, error) {
	if err := l.writing(ctx); err != nil {
		return nil, err
	}
	if err := claim.Check(); err != nil {
		return nil, fmt.Errorf("postgres: claim jobs: %w", err)
	}
	l.flush()
	l.save()
	targets, bounds := []string{}, []int{}
	for target, bound := range claim.Bounds {
		if plain(target) {
			targets, bounds = append(targets, target), append(bounds, max(0, min(bound, maxPerTarget)))
		}
	}
	jobs, err := collectRows(l.tx, scanJob,
		"SELECT id, lane, target, key, priority, run_at, attempt, fence, body FROM job_claim($1, $2, $3, $4, $5, $6, $7, $8, $9) ORDER BY fence",
		toMicros(claim.Now), toMicros(claim.Now.Add(claim.Lease)), claim.Limit, min(claim.PerTarget, maxPerTarget), targets, bounds,
		claim.Least, l.batch.fence, l.store.node)
	if err != nil {
		return nil, l.fail("claim jobs", err)
	}
	if len(jobs) > 0 {
		l.batch.fence += int64(len(jobs))
		l.batch.wrote = true
	}
	return jobs, nil
}

// maxPerTarget is more than a claim can ever want.
const maxPerTarget = 1 << 30

// Renew implements store.Leases. A lease that has run out is renewed as long as
// nobody claimed the job again.
func (l leases) Renew(ctx context.Context, id string, fence uint64, until time.Time) error {
	if err := l.writing(ctx); err != nil {
		return err
	}
	return l.held("renew a lease", id, fence,
		"UPDATE jobs SET until = $3 WHERE id = $1 AND state = 3 AND fence = $2 RETURNING 1",
		toMicros(until))
}

// Settle implements store.Leases. A lease that has run out may still be settled
// as long as nobody claimed the job again. A job that should be tried again is
// dropped all the same when a newer one of its lane waits.
func (l leases) Settle(ctx context.Context, id string, fence uint64, retryAt time.Time) error {
	if err := l.writing(ctx); err != nil {
		return err
	}
	var at *int64
	if !retryAt.IsZero() {
		us := toMicros(retryAt)
		at = &us
	}
	err := l.held("settle a job", id, fence, "SELECT FROM job_settle($1, $2, $3)", at)
	if err == nil {
		l.touched.Add(store.TopicJobs)
	}
	return err
}

// Jump implements store.Jumper.
func (l leases) Jump(ctx context.Context, floor uint64) error {
	if err := l.writing(ctx); err != nil {
		return err
	}
	if floor >= math.MaxInt64 {
		return fmt.Errorf("postgres: %w: floor %d", store.ErrInvalid, floor)
	}
	if _, err := l.execNow("UPDATE jobs SET until = 0, fence = 0 WHERE state = 3 RETURNING 1"); err != nil {
		return l.fail("end leases", err)
	}
	l.batch.rev, l.batch.fence, l.batch.wrote = max(l.batch.rev, int64(floor)), max(l.batch.fence, int64(floor)), true
	l.touched.Add(store.TopicJobs)
	return nil
}

// held writes to a job that is leased under fence, or fails with store.ErrFenced.
func (l leases) held(doing, id string, fence uint64, statement string, at any) error {
	held := 0
	if plain(id) {
		var err error
		if held, err = l.execNow(statement, id, toInt(fence), at); err != nil {
			return l.fail(doing, err)
		}
	}
	if held == 0 {
		return fmt.Errorf("postgres: job %q is not leased under fence %d: %w", id, fence, store.ErrFenced)
	}
	return nil
}
