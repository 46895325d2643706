package sqlite

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// The schema says what the states of a job are and what its front is. A lane
// holds at most one leased job and one waiting job. Whether a lease has run out
// is looked at by Claim only; until then the job counts as leased.

type queue struct{ *tx }

// Enqueue implements store.Queue.
func (q queue) Enqueue(ctx context.Context, jobs ...store.Job) error {
	if err := q.writing(ctx); err != nil {
		return err
	}
	for _, job := range jobs {
		if err := job.Check(); err != nil {
			return fmt.Errorf("sqlite: queue a job: %w", err)
		}
	}
	for _, job := range jobs {
		if err := q.enqueue(job); err != nil {
			return q.fail("queue a job", err)
		}
	}
	return nil
}

func (q queue) enqueue(job store.Job) error {
	var one int
	if known, err := q.conn.row("SELECT 1 FROM jobs WHERE id = ?", []any{job.ID}, &one); err != nil || known {
		return err
	}
	if err := q.dropWaiting(job.Lane); err != nil {
		return err
	}
	s := slot{target: job.Target, priority: job.Priority, runAt: toMicros(job.RunAt)}
	leased, err := q.conn.row("SELECT 1 FROM jobs WHERE lane = ? AND state = 3", []any{job.Lane}, &one)
	if err != nil {
		return err
	}
	state := 1
	if leased {
		state = 2
	}
	if _, err := q.conn.row("INSERT INTO jobs (id, lane, target, key, priority, run_at, state, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq",
		[]any{job.ID, job.Lane, job.Target, string(job.Key), job.Priority, s.runAt, state, blob(job.Body)}, &s.seq); err != nil {
		return err
	}
	q.touched.Add(store.TopicJobs)
	if leased {
		return nil
	}
	return q.join(s)
}

// Drop implements store.Queue.
func (q queue) Drop(ctx context.Context, lane string) error {
	if err := q.writing(ctx); err != nil {
		return err
	}
	return q.fail("drop jobs", q.dropWaiting(lane))
}

// Pending implements store.Queue.
func (q queue) Pending(ctx context.Context, name key.Name) ([]store.Job, error) {
	if err := q.reading(ctx); err != nil {
		return nil, err
	}
	scan := func(r *sql.Rows) (store.Job, bool, error) {
		var job store.Job
		var runAt int64
		err := r.Scan(&job.ID, &job.Lane, &job.Target, &job.Key, &job.Priority, &runAt, &job.Attempt, &job.Fence, &job.Body)
		job.RunAt = fromMicros(runAt)
		return job, true, err
	}
	jobs, err := rows(ctx, q.conn, scan, "SELECT id, lane, target, key, priority, run_at, attempt, fence, body FROM jobs WHERE key = ? ORDER BY seq", string(name))
	return jobs, q.fail("list jobs", err)
}

// slot is the place of a job in the order of claiming.
type slot struct {
	seq      int64
	target   string
	priority int
	runAt    int64
}

// before reports whether s is claimed before other, given equal priorities.
func (s slot) before(other slot) bool {
	if s.runAt != other.runAt {
		return s.runAt < other.runAt
	}
	return s.seq < other.seq
}

// waiting returns the waiting job of a lane, if any.
func (t *tx) waiting(lane string) (s slot, found bool, err error) {
	found, err = t.conn.row("SELECT seq, target, priority, run_at FROM jobs WHERE lane = ? AND state < 3", []any{lane}, &s.seq, &s.target, &s.priority, &s.runAt)
	return s, found, err
}

func (t *tx) dropWaiting(lane string) error {
	s, found, err := t.waiting(lane)
	if err != nil || !found {
		return err
	}
	if _, err := t.conn.exec("DELETE FROM jobs WHERE seq = ?", s.seq); err != nil {
		return err
	}
	_, _, err = t.refreshFront(s.target, s.priority)
	return err
}

// unblock frees the waiting job of a lane whose leased job has gone.
func (t *tx) unblock(lane string) error {
	s, found, err := t.waiting(lane)
	if err != nil || !found {
		return err
	}
	if _, err := t.conn.exec("UPDATE jobs SET state = 1 WHERE seq = ?", s.seq); err != nil {
		return err
	}
	return t.join(s)
}

// join makes a job that has just become free the front of its target and
// priority, when it comes before the present one.
func (t *tx) join(s slot) error {
	front := slot{target: s.target, priority: s.priority}
	found, err := t.conn.row("SELECT seq, run_at FROM jobs WHERE target = ? AND priority = ? AND front = 1", []any{s.target, s.priority}, &front.seq, &front.runAt)
	if err != nil || (found && front.before(s)) {
		return err
	}
	if found {
		if _, err := t.conn.exec("UPDATE jobs SET front = 0 WHERE seq = ?", front.seq); err != nil {
			return err
		}
	}
	_, err = t.conn.exec("UPDATE jobs SET front = 1 WHERE seq = ?", s.seq)
	return err
}

// refreshFront marks the first free job of a target and priority as its front,
// after the one that was may have gone, and returns it.
func (t *tx) refreshFront(target string, priority int) (front slot, found bool, err error) {
	front = slot{target: target, priority: priority}
	var marked bool
	found, err = t.conn.row("SELECT seq, run_at, front FROM jobs WHERE target = ? AND priority = ? AND state = 1 ORDER BY run_at, seq LIMIT 1",
		[]any{target, priority}, &front.seq, &front.runAt, &marked)
	if err != nil || !found || marked {
		return front, found, err
	}
	_, err = t.conn.exec("UPDATE jobs SET front = 1 WHERE seq = ?", front.seq)
	return front, true, err
}
