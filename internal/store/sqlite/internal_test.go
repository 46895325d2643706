package sqlite

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/store"
)

func openInternal(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "keyturn.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestPragmas: durability and secure deletion hang on these.
func TestPragmas(t *testing.T) {
	s := openInternal(t)
	reader, err := s.readers.take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.readers.give(reader)
	for name, c := range map[string]*conn{"writer": s.writer.conn, "reader": reader} {
		for pragma, want := range map[string]string{
			"journal_mode": "wal", "synchronous": "2", "secure_delete": "1", "foreign_keys": "1", "mmap_size": "0",
			"temp_store": "2", "busy_timeout": "5000", "auto_vacuum": "0", "page_size": "4096", "trusted_schema": "0",
			"query_only": map[string]string{"writer": "0", "reader": "1"}[name],
		} {
			var got string
			if found, err := c.row("PRAGMA "+pragma, nil, &got); got != want && (found || want != "0") || err != nil {
				t.Errorf("%s: %s is %q, want %q (%v)", name, pragma, got, want, err)
			}
		}
	}
}

// TestUpdatesShareACommit lets Updates queue up behind a first one.
func TestUpdatesShareACommit(t *testing.T) {
	s := openInternal(t)
	const n = 100
	batches := make(map[chan struct{}]int)
	results := make(chan error, n)
	boom := errors.New("boom")
	err := s.Update(t.Context(), func(store.Tx) error {
		for i := range n {
			go func() {
				results <- s.Update(t.Context(), func(tx store.Tx) error {
					batches[s.writer.batch.done]++
					_, err := tx.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: fmt.Sprint(i)})
					if i%10 == 0 {
						return boom
					}
					return err
				})
			}()
		}
		for queued := 0; queued < n; {
			queued = s.writer.turns.Waiting()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	failed := 0
	for range n {
		if err := <-results; err != nil {
			failed++
		}
	}
	if len(batches) != 1 || failed != n/10 {
		t.Errorf("%d Updates took %d commits, %d failed", n, len(batches), failed)
	}
}

// TestLostBatchRunsAgain: a member that makes SQLite roll back the shared
// transaction harms no other.
func TestLostBatchRunsAgain(t *testing.T) {
	s := openInternal(t)
	results := make(chan error, 2)
	queued := func(n int) {
		for have := 0; have < n; {
			have = s.writer.turns.Waiting()
		}
	}
	runs := 0
	err := s.Update(t.Context(), func(tx store.Tx) error {
		runs++
		if runs == 1 {
			go func() {
				results <- s.Update(t.Context(), func(store.Tx) error {
					_, err := s.writer.conn.exec("ROLLBACK") // what SQLite does when the disk is full
					return errors.Join(errors.New("boom"), err)
				})
			}()
			queued(1)
		}
		_, err := tx.Docs.Put(t.Context(), store.Doc{Kind: "k", Name: "innocent"})
		return err
	})
	if err != nil || runs != 2 {
		t.Errorf("the innocent Update ran %d times and returned %v", runs, err)
	}
	if err := <-results; err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("the guilty Update returned %v", err)
	}
	err = s.View(t.Context(), func(tx store.Tx) error {
		_, err := tx.Docs.Get(t.Context(), "k", "innocent")
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestPlans: no statement that runs often scans a table or sorts.
func TestPlans(t *testing.T) {
	s := openInternal(t)
	for _, query := range []string{
		"SELECT name, rev, due, body FROM docs WHERE kind = 'k' AND name >= 'a' ORDER BY name LIMIT 1",
		"SELECT name, rev, due, body FROM docs WHERE kind = 'k' AND due IS NOT NULL AND due <= 5 ORDER BY due, name LIMIT 1",
		"SELECT name, rev, due, body FROM docs WHERE kind = 'k' AND rev > 5 ORDER BY rev LIMIT 1",
		"SELECT seq FROM events WHERE key = 'k' ORDER BY seq DESC LIMIT 1",
		"SELECT key, seq FROM events WHERE rotation = x'00' ORDER BY key, seq LIMIT 1",
		"SELECT seq, target, run_at FROM jobs WHERE front = 1 AND priority = 1 AND run_at <= 5 ORDER BY run_at, seq LIMIT 1",
		"SELECT priority FROM jobs WHERE front = 1 AND priority <= 5 ORDER BY priority DESC LIMIT 1",
		"SELECT seq, run_at, front FROM jobs WHERE target = 't' AND priority = 1 AND state = 1 ORDER BY run_at, seq LIMIT 1",
		"SELECT seq, run_at FROM jobs WHERE target = 't' AND priority = 1 AND front = 1",
		"SELECT target FROM jobs WHERE state = 3 AND until > 5",
		"SELECT seq, target, priority, run_at FROM jobs WHERE lane = 'l' AND state < 3",
		"SELECT 1 FROM jobs WHERE lane = 'l' AND state = 3",
		"SELECT id FROM jobs WHERE key = 'k' ORDER BY seq",
	} {
		var plan []string
		r, err := s.writer.conn.sql.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query)
		if err != nil {
			t.Fatal(err)
		}
		for r.Next() {
			var id, parent, unused int
			var detail string
			if err := r.Scan(&id, &parent, &unused, &detail); err != nil {
				t.Fatal(err)
			}
			plan = append(plan, detail)
		}
		if err := errors.Join(r.Err(), r.Close()); err != nil {
			t.Fatal(err)
		}
		if all := strings.Join(plan, "; "); !strings.HasPrefix(all, "SEARCH") || strings.Contains(all, "TEMP B-TREE") {
			t.Errorf("%s\n\t%s", query, all)
		}
	}
}
