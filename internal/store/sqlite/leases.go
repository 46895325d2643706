package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

type leases struct{ *tx }

// Claim implements store.Leases. Its cost grows with the jobs it leases and with
// the leases that exist, not with the queue: it looks at one job per target and
// priority, and skips targets that are at their limit.
func (l leases) Claim(ctx context.Context, claim store.Claim) ([]store.Job, error) {
	if err := l.writing(ctx); err != nil {
		return nil, err
	}
	if err := claim.Check(); err != nil {
		return nil, fmt.Errorf("sqlite: claim jobs: %w", err)
	}
	c := claimer{leases: l, claim: claim, now: toMicros(claim.Now), until: toMicros(claim.Now.Add(claim.Lease))}
	jobs, err := c.run(ctx)
	return jobs, l.fail("claim jobs", err)
}

// claimer is one Claim.
type claimer struct {
	leases
	claim      store.Claim
	now, until int64

	live    map[string]int // leased jobs by target
	expired []slot         // jobs whose lease has run out, to be claimed again
	jobs    []store.Job
}

func (c *claimer) run(ctx context.Context) ([]store.Job, error) {
	// What was decided to be read and written here is not left half done when ctx
	// ends.
	ctx = context.WithoutCancel(ctx)
	if err := c.countLive(ctx); err != nil {
		return nil, err
	}
	if err := c.findExpired(ctx); err != nil {
		return nil, err
	}
	for bound := math.MaxInt32; ; {
		level, found, err := c.nextLevel(bound)
		if err != nil || !found || c.claim.Least != 0 && level < c.claim.Least {
			return c.jobs, err
		}
		if err := c.claimLevel(ctx, level); err != nil {
			return nil, err
		}
		if len(c.jobs) >= c.claim.Limit {
			return c.jobs, nil
		}
		bound = level - 1
	}
}

func (c *claimer) countLive(ctx context.Context) error {
	c.live = make(map[string]int)
	scan := func(r *sql.Rows) (struct{}, bool, error) {
		var target string
		err := r.Scan(&target)
		c.live[target]++
		return struct{}{}, true, err
	}
	_, err := rows(ctx, c.conn, scan, "SELECT target FROM jobs WHERE state = 3 AND until > ?", c.now)
	return err
}

// findExpired collects the jobs whose lease has run out, and drops those that a
// newer one of their lane has overtaken.
func (c *claimer) findExpired(ctx context.Context) error {
	type lease struct {
		slot
		lane string
	}
	scan := func(r *sql.Rows) (lease, bool, error) {
		var e lease
		err := r.Scan(&e.seq, &e.lane, &e.target, &e.priority, &e.runAt)
		return e, true, err
	}
	ended, err := rows(ctx, c.conn, scan, "SELECT seq, lane, target, priority, run_at FROM jobs WHERE state = 3 AND until <= ?", c.now)
	if err != nil {
		return err
	}
	for _, e := range ended {
		_, overtaken, err := c.waiting(e.lane)
		if err != nil {
			return err
		}
		if !overtaken {
			c.expired = append(c.expired, e.slot)
			continue
		}
		if _, err := c.conn.exec("DELETE FROM jobs WHERE seq = ?", e.seq); err != nil {
			return err
		}
		if err := c.unblock(e.lane); err != nil {
			return err
		}
	}
	return nil
}

// nextLevel returns the highest priority not above bound that has candidates.
func (c *claimer) nextLevel(bound int) (level int, found bool, err error) {
	found, err = c.conn.row("SELECT priority FROM jobs WHERE front = 1 AND priority <= ? ORDER BY priority DESC LIMIT 1", []any{bound}, &level)
	if err != nil {
		return 0, false, err
	}
	for _, e := range c.expired {
		if e.priority <= bound && (!found || e.priority > level) {
			level, found = e.priority, true
		}
	}
	return level, found, nil
}

// claimLevel leases jobs of one priority: those first whose target holds the
// fewest leases, of these those with the earliest run_at.
func (c *claimer) claimLevel(ctx context.Context, level int) error {
	ready, err := c.fronts(ctx, level)
	if err != nil {
		return err
	}
	for _, e := range c.expired {
		if e.priority == level {
			ready = append(ready, e)
		}
	}
	for len(c.jobs) < c.claim.Limit {
		s, found := c.first(ready)
		if !found {
			return nil
		}
		ready = slices.DeleteFunc(ready, func(other slot) bool { return other.seq == s.seq })
		if err := c.lease(s); err != nil {
			return err
		}
		if slices.ContainsFunc(c.expired, func(e slot) bool { return e.seq == s.seq }) {
			continue // it was no front
		}
		next, found, err := c.refreshFront(s.target, level)
		if err != nil {
			return err
		}
		if found && next.runAt <= c.now {
			ready = append(ready, next)
		}
	}
	return nil
}

// first returns the job that is to be leased next.
func (c *claimer) first(ready []slot) (best slot, found bool) {
	for _, s := range ready {
		if c.saturated(s.target) {
			continue
		}
		live, least := c.live[s.target], c.live[best.target]
		if !found || live < least || live == least && s.before(best) {
			best, found = s, true
		}
	}
	return best, found
}

func (c *claimer) saturated(target string) bool { return c.live[target] >= c.claim.Bound(target) }

// fronts returns first jobs of targets that are due. As many as are wanted
// suffice, and one more for each target that comes after them, because it holds
// leases, or not at all.
func (c *claimer) fronts(ctx context.Context, level int) ([]slot, error) {
	enough := c.claim.Limit - len(c.jobs) + len(c.live) + len(c.claim.Bounds)
	scan := func(r *sql.Rows) (slot, bool, error) {
		s := slot{priority: level}
		err := r.Scan(&s.seq, &s.target, &s.runAt)
		return s, true, err
	}
	return rows(ctx, c.conn, scan, "SELECT seq, target, run_at FROM jobs WHERE front = 1 AND priority = ? AND run_at <= ? ORDER BY run_at, seq LIMIT ?", level, c.now, enough)
}

// lease hands the job out.
func (c *claimer) lease(s slot) error {
	job := store.Job{Target: s.target, Priority: s.priority, RunAt: fromMicros(s.runAt)}
	_, err := c.conn.row("UPDATE jobs SET state = 3, front = 0, until = ?, attempt = attempt + 1, fence = ? WHERE seq = ? RETURNING id, lane, key, attempt, fence, body",
		[]any{c.until, c.batch.counters.nextFence(), s.seq}, &job.ID, &job.Lane, &job.Key, &job.Attempt, &job.Fence, &job.Body)
	c.jobs = append(c.jobs, job)
	c.live[s.target]++
	return err
}

// Renew implements store.Leases. A lease that has run out is renewed as long as
// nobody claimed the job again.
func (l leases) Renew(ctx context.Context, id string, fence uint64, until time.Time) error {
	if err := l.writing(ctx); err != nil {
		return err
	}
	changed, err := l.conn.exec("UPDATE jobs SET until = ? WHERE id = ? AND state = 3 AND fence = ?", toMicros(until), id, toInt(fence))
	if err != nil {
		return l.fail("renew a lease", err)
	}
	if changed == 0 {
		return fenced(id, fence)
	}
	return nil
}

// Settle implements store.Leases. A lease that has run out may still be settled
// as long as nobody claimed the job again. A job that should be tried again is
// dropped all the same when a newer one of its lane waits.
func (l leases) Settle(ctx context.Context, id string, fence uint64, retryAt time.Time) error {
	if err := l.writing(ctx); err != nil {
		return err
	}
	var lane string
	s := slot{runAt: toMicros(retryAt)}
	held, err := l.conn.row("SELECT seq, lane, target, priority FROM jobs WHERE id = ? AND state = 3 AND fence = ?", []any{id, toInt(fence)}, &s.seq, &lane, &s.target, &s.priority)
	if err != nil {
		return l.fail("settle a job", err)
	}
	if !held {
		return fenced(id, fence)
	}
	l.touched.Add(store.TopicJobs)
	return l.fail("settle a job", l.settle(s, lane, !retryAt.IsZero()))
}

func (l leases) settle(s slot, lane string, retry bool) error {
	_, overtaken, err := l.waiting(lane)
	if err != nil {
		return err
	}
	if retry && !overtaken {
		if _, err := l.conn.exec("UPDATE jobs SET state = 1, until = NULL, run_at = ? WHERE seq = ?", s.runAt, s.seq); err != nil {
			return err
		}
		return l.join(s)
	}
	if _, err := l.conn.exec("DELETE FROM jobs WHERE seq = ?", s.seq); err != nil {
		return err
	}
	return l.unblock(lane)
}

// Jump implements store.Jumper.
func (l leases) Jump(ctx context.Context, floor uint64) error {
	if err := l.writing(ctx); err != nil {
		return err
	}
	if floor >= math.MaxInt64 {
		return fmt.Errorf("sqlite: %w: floor %d", store.ErrInvalid, floor)
	}
	counters := &l.batch.counters
	counters.rev, counters.fence, counters.changed = max(counters.rev, int64(floor)), max(counters.fence, int64(floor)), true
	_, err := l.conn.exec("UPDATE jobs SET until = 0, fence = 0 WHERE state = 3")
	l.touched.Add(store.TopicJobs)
	return l.fail("end leases", err)
}

func fenced(id string, fence uint64) error {
	return fmt.Errorf("sqlite: job %q is not leased under fence %d: %w", id, fence, store.ErrFenced)
}
