package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/store"
)

const (
	// aliveClass is the class of the advisory locks that living nodes hold.
	aliveClass = lockClass + 1
	// reapEvery is how often each node looks for the leases of dead ones; a node is
	// dead when it was not alive twice in a row.
	reapEvery = time.Second
	// forgetAfter is when the last commit of a dead node is forgotten; it must be
	// longer than a process can be frozen in the middle of a commit.
	forgetAfter = "30 days"
)

// reaper ends the leases of nodes that have died, until ctx ends, so that the
// next claim may take over at once. A node that lives but cannot show it keeps
// working: its fences are worth nothing then.
func (s *Store) reaper(ctx context.Context) {
	suspects := map[string]bool{}
	ticker := time.NewTicker(reapEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		// A failure is not reported: the leases run out by themselves.
		suspects, _ = s.reap(ctx, suspects)
	}
}

// reap ends the leases of those among suspects that are still dead, and returns
// the new suspects.
func (s *Store) reap(ctx context.Context, suspects map[string]bool) (map[string]bool, error) {
	dead, err := s.deadHolders(ctx)
	if err != nil {
		return nil, err
	}
	next := map[string]bool{}
	for _, node := range dead {
		if !suspects[node] {
			next[node] = true
			continue
		}
		err := s.Update(ctx, func(tx store.Tx) error { return tx.Leases.(leases).end(ctx, node) })
		if err != nil {
			return nil, err
		}
	}
	return next, nil
}

// deadHolders returns the nodes that hold leases and show no life.
func (s *Store) deadHolders(ctx context.Context) (dead []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := s.pool.Query(ctx, `SELECT DISTINCT holder FROM jobs WHERE state = 3 AND until > 0 AND holder <> $1
		AND NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND classid = $2::integer::oid AND objid = hashtext(holder)::oid)`, s.node, aliveClass)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// end ends the leases of a node.
func (l leases) end(ctx context.Context, node string) error {
	if err := l.writing(ctx); err != nil {
		return err
	}
	l.touched.Add(store.TopicJobs)
	if err := l.exec("UPDATE jobs SET until = 0 WHERE state = 3 AND until > 0 AND holder = $1", node); err != nil {
		return l.fail("end the leases of a dead node", err)
	}
	err := l.exec("DELETE FROM nodes WHERE seen < now() - $1::interval", forgetAfter)
	return l.fail("forget dead nodes", err)
}
