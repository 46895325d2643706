package postgres_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/postgres"
)

// TestPlans: no statement that runs often scans a table or sorts, however little
// the planner knows about the tables.
func TestPlans(t *testing.T) {
	conn, err := postgres.ConnectAsStore(t.Context(), newDatabase(t))
	must(t, err)
	defer func() { must(t, conn.Close(t.Context())) }()
	for _, query := range []string{
		"SELECT name, rev, due, body FROM docs WHERE kind = 'k' AND name >= 'a' AND name > 'b' ORDER BY name LIMIT 1",
		"SELECT name, rev, due, body FROM docs WHERE kind = 'k' AND name >= 'a' AND name < 'c' AND name > 'b' ORDER BY name LIMIT 1",
		"SELECT name, rev, due, body FROM docs WHERE kind = 'k' AND due IS NOT NULL AND due <= 5 ORDER BY due, name LIMIT 1",
		"SELECT name, rev, due, body FROM docs WHERE kind = 'k' AND rev > 5 ORDER BY rev LIMIT 1",
		"SELECT coalesce(max(seq), 0) FROM events WHERE key = 'k'",
		"SELECT key, seq FROM events WHERE key = 'k' AND seq > 5 ORDER BY seq LIMIT 1",
		`SELECT key, seq FROM events WHERE rotation = '\x00' ORDER BY key, seq LIMIT 1`,
		"SELECT record FROM log_records WHERE number >= 5 ORDER BY number LIMIT 1",
		"SELECT number, hash FROM log_hashes WHERE number = ANY('{1,2}'::bigint[])",
		"SELECT sealed FROM materials WHERE key = 'k' AND version = 1",
		"SELECT id FROM jobs WHERE key = 'k' ORDER BY seq",
		"SELECT target FROM jobs WHERE front AND priority = 1 AND run_at <= 5 ORDER BY run_at, seq LIMIT 1",
		"SELECT priority FROM jobs WHERE front AND priority < 5 ORDER BY priority DESC LIMIT 1",
		"SELECT seq, run_at FROM jobs WHERE state = 1 AND target = 't' AND priority = 1 AND run_at <= 5 ORDER BY run_at, seq LIMIT 1",
		"SELECT seq FROM jobs WHERE state = 3 AND until <= 5",
		"SELECT seq FROM jobs WHERE lane = 'l' AND state < 3",
		"SELECT seq FROM jobs WHERE lane = 'l' AND state = 3",
	} {
		rows, err := conn.Query(t.Context(), "EXPLAIN "+query)
		must(t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		must(t, err)
		if plan := strings.Join(lines, "\n\t"); !strings.Contains(plan, "Index") || strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Sort") {
			t.Errorf("%s\n\t%s", query, plan)
		}
	}
}

// TestClaimLooksPastABacklog: claiming costs about the same beside 20,000 jobs of
// a target that is at its limit, older and as urgent.
func TestClaimLooksPastABacklog(t *testing.T) {
	url := newDatabase(t)
	s := open(t, url)
	ctx := t.Context()
	claim := func() (jobs []store.Job) {
		update(t, s, func(tx store.Tx) (err error) {
			jobs, err = tx.Leases.Claim(ctx, store.Claim{Now: epoch, Lease: time.Hour, Limit: 5, PerTarget: 2})
			return err
		})
		return jobs
	}
	enqueue := func(target string, from, n int) {
		update(t, s, func(tx store.Tx) error {
			for i := from; i < from+n; i++ {
				id := fmt.Sprint(target, i)
				if err := tx.Queue.Enqueue(ctx, store.Job{ID: id, Lane: id, Target: target, Key: "k", RunAt: epoch.Add(-time.Hour)}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	others := 0
	fastest := func() time.Duration {
		took := make([]time.Duration, 0, 9)
		for range cap(took) {
			others++
			enqueue(fmt.Sprint("other ", others), 0, 1)
			began := time.Now()
			if jobs := claim(); len(jobs) != 1 {
				t.Fatalf("claimed %d jobs", len(jobs))
			}
			took = append(took, time.Since(began))
		}
		return slices.Min(took)
	}
	enqueue("hanging", 0, 3)
	if len(claim()) != 2 {
		t.Fatal("the bulkhead does not hold")
	}
	before := fastest()
	conn, err := postgres.ConnectAsStore(ctx, url)
	must(t, err)
	defer func() { must(t, conn.Close(ctx)) }()
	_, err = conn.Exec(ctx, `INSERT INTO jobs (id, lane, target, key, priority, run_at, state, body)
			SELECT 'more ' || i, 'more ' || i, 'hanging', 'k', 0, 1000000 + i, 1, '' FROM generate_series(1, 20000) AS i`)
	must(t, err)
	after := fastest()
	t.Logf("a claim took %v, and %v beside a backlog", before, after)
	if after > 5*before+5*time.Millisecond {
		t.Errorf("a claim took %v, and %v beside a backlog", before, after)
	}
}
