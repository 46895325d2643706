package storetest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/internal/store"
)

// modelJob is a job as the contract describes it, without any index.
type modelJob struct {
	store.Job
	leased bool
	until  time.Time
}

// modelQueue is the queue as the contract describes it.
type modelQueue struct {
	jobs  []modelJob // in queueing order
	fence uint64     // the largest that was seen
}

func (m *modelQueue) enqueue(j store.Job) {
	if slices.ContainsFunc(m.jobs, func(o modelJob) bool { return o.ID == j.ID }) {
		return
	}
	m.drop(j.Lane)
	m.jobs = append(m.jobs, modelJob{Job: j})
}

func (m *modelQueue) drop(lane string) {
	m.jobs = slices.DeleteFunc(m.jobs, func(o modelJob) bool { return o.Lane == lane && !o.leased })
}

// newerWaits reports whether a job of lane waits that was queued after at.
func (m *modelQueue) newerWaits(lane string) bool {
	return slices.ContainsFunc(m.jobs, func(o modelJob) bool { return o.Lane == lane && !o.leased })
}

func (m *modelQueue) claim(c store.Claim) (ids []string) {
	m.jobs = slices.DeleteFunc(slices.Clone(m.jobs), func(j modelJob) bool {
		return j.leased && !j.until.After(c.Now) && m.newerWaits(j.Lane)
	})
	live, busy := map[string]int{}, map[string]bool{}
	var candidates []int
	for _, j := range m.jobs {
		if j.leased && j.until.After(c.Now) {
			live[j.Target]++
			busy[j.Lane] = true
		}
	}
	for i, j := range m.jobs {
		if j.leased && !j.until.After(c.Now) || !j.leased && !j.RunAt.After(c.Now) && !busy[j.Lane] {
			candidates = append(candidates, i)
		}
	}
	for len(ids) < c.Limit {
		// Highest priority, then fewest leases of its target, then earliest RunAt.
		best := -1
		for _, i := range candidates {
			j := &m.jobs[i]
			if live[j.Target] >= c.Bound(j.Target) || c.Least != 0 && j.Priority < c.Least {
				continue
			}
			if best < 0 {
				best = i
				continue
			}
			b := &m.jobs[best]
			if cmp.Or(cmp.Compare(b.Priority, j.Priority), cmp.Compare(live[j.Target], live[b.Target]), j.RunAt.Compare(b.RunAt)) < 0 {
				best = i
			}
		}
		if best < 0 {
			break
		}
		candidates = slices.DeleteFunc(candidates, func(i int) bool { return i == best })
		j := &m.jobs[best]
		live[j.Target]++
		j.leased, j.until = true, c.Now.Add(c.Lease)
		j.Attempt++
		ids = append(ids, j.ID)
	}
	return ids
}

// held returns the job if it is leased under fence.
func (m *modelQueue) held(id string, fence uint64) *modelJob {
	i := slices.IndexFunc(m.jobs, func(j modelJob) bool { return j.ID == id && j.leased && j.Fence == fence })
	if i < 0 {
		return nil
	}
	return &m.jobs[i]
}

func (m *modelQueue) settle(id string, fence uint64, retryAt time.Time) bool {
	j := m.held(id, fence)
	if j == nil {
		return false
	}
	if retryAt.IsZero() || m.newerWaits(j.Lane) {
		m.jobs = slices.DeleteFunc(m.jobs, func(o modelJob) bool { return o.ID == id })
		return true
	}
	j.leased, j.RunAt = false, retryAt
	return true
}

// testJobsModel compares random histories with the model.
func testJobsModel(t *testing.T, s store.Store) {
	run := 0
	var lastFence uint64
	rapid.Check(t, func(rt *rapid.T) {
		run++
		emptyQueue(rt, t, s)
		m := &modelQueue{fence: lastFence}
		defer func() { lastFence = m.fence }()
		now := epoch
		small := func(rt *rapid.T, what string, most int) int { return rapid.IntRange(0, most).Draw(rt, what) }
		anyJob := func(rt *rapid.T) (string, uint64) {
			id, fence := fmt.Sprint("job ", small(rt, "id", 11)), uint64(0)
			for _, j := range m.jobs {
				if j.ID == id {
					fence = j.Fence
				}
			}
			if small(rt, "wrong fence", 9) == 0 {
				fence++
			}
			return id, fence
		}
		do := func(rt *rapid.T, fn func(tx store.Tx) error) error {
			err := s.Update(t.Context(), fn)
			if err != nil && !errors.Is(err, store.ErrFenced) {
				rt.Fatal(err)
			}
			return err
		}
		rt.Repeat(map[string]func(*rapid.T){
			"enqueue": func(rt *rapid.T) {
				j := store.Job{
					ID:   fmt.Sprint("job ", small(rt, "id", 11)),
					Lane: fmt.Sprint("lane ", small(rt, "lane", 5)), Target: fmt.Sprint("target ", small(rt, "target", 2)),
					Key: "prod/db", Priority: small(rt, "priority", 1), RunAt: now.Add(time.Duration(small(rt, "delay", 4)-2) * time.Second),
				}
				_ = do(rt, func(tx store.Tx) error { return tx.Queue.Enqueue(t.Context(), j) })
				m.enqueue(j)
			},
			"drop": func(rt *rapid.T) {
				lane := fmt.Sprint("lane ", small(rt, "lane", 5))
				_ = do(rt, func(tx store.Tx) error { return tx.Queue.Drop(t.Context(), lane) })
				m.drop(lane)
			},
			"claim": func(rt *rapid.T) {
				now = now.Add(time.Duration(small(rt, "passed", 3)) * time.Second)
				c := store.Claim{Now: now, Lease: time.Duration(1+small(rt, "lease", 3)) * time.Second, Limit: 1 + small(rt, "limit", 5), PerTarget: 1 + small(rt, "per target", 2), Least: small(rt, "least", 1)}
				if small(rt, "bounded", 2) == 0 {
					c.Bounds = map[string]int{fmt.Sprint("target ", small(rt, "bounded target", 2)): small(rt, "bound", 2)}
				}
				var got []store.Job
				_ = do(rt, func(tx store.Tx) (err error) {
					got, err = tx.Leases.Claim(t.Context(), c)
					return err
				})
				if want := m.claim(c); !slices.Equal(idsOf(got), append([]string{}, want...)) {
					rt.Fatalf("Claim(%+v) = %q, want %q", c, idsOf(got), want)
				}
				for _, j := range got {
					if j.Fence <= m.fence {
						rt.Fatalf("fence %d was given after %d", j.Fence, m.fence)
					}
					m.fence = j.Fence
					for i := range m.jobs {
						if m.jobs[i].ID == j.ID {
							m.jobs[i].Fence = j.Fence
						}
					}
				}
			},
			"renew": func(rt *rapid.T) {
				id, fence := anyJob(rt)
				until := now.Add(time.Duration(1+small(rt, "longer", 5)) * time.Second)
				err := do(rt, func(tx store.Tx) error { return tx.Leases.Renew(t.Context(), id, fence, until) })
				j := m.held(id, fence)
				if (j == nil) != (err != nil) {
					rt.Fatalf("Renew(%q, %d) = %v", id, fence, err)
				}
				if j != nil {
					j.until = until
				}
			},
			"settle": func(rt *rapid.T) {
				id, fence := anyJob(rt)
				var retryAt time.Time
				if small(rt, "retry", 1) == 1 {
					retryAt = now.Add(time.Duration(small(rt, "delay", 3)) * time.Second)
				}
				err := settle(t, s, id, fence, retryAt)
				if ok := m.settle(id, fence, retryAt); ok != (err == nil) {
					rt.Fatalf("Settle(%q, %d, %v) = %v", id, fence, retryAt, err)
				}
			},
			"": func(rt *rapid.T) {
				var got []store.Job
				if err := s.View(t.Context(), func(tx store.Tx) (err error) {
					got, err = tx.Queue.Pending(t.Context(), "prod/db")
					return err
				}); err != nil {
					rt.Fatal(err)
				}
				same := slices.EqualFunc(got, m.jobs, func(a store.Job, b modelJob) bool {
					return a.ID == b.ID && a.Lane == b.Lane && a.Target == b.Target && a.Priority == b.Priority &&
						a.RunAt.Equal(b.RunAt) && a.Attempt == b.Attempt && a.Fence == b.Fence
				})
				if !same {
					rt.Fatalf("Pending = %+v\nwant %+v", got, m.jobs)
				}
			},
		})
	})
}

// emptyQueue does whatever jobs an earlier run has left.
func emptyQueue(rt *rapid.T, t *testing.T, s store.Store) {
	for now := epoch.Add(24 * time.Hour); ; now = now.Add(time.Hour) {
		var left int
		err := s.Update(t.Context(), func(tx store.Tx) error {
			jobs, err := tx.Leases.Claim(t.Context(), store.Claim{Now: now, Lease: time.Minute, Limit: 1000, PerTarget: 1000})
			for _, j := range jobs {
				err = errors.Join(err, tx.Leases.Settle(t.Context(), j.ID, j.Fence, time.Time{}))
			}
			left = len(jobs)
			return err
		})
		if err != nil {
			rt.Fatal(err)
		}
		if left == 0 {
			return
		}
	}
}
