package sqlite_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
)

// TestLeasesEndWithTheirProcess claims a job for an hour and opens the database
// again: the job can be claimed at once, and the old fence is worth nothing then.
func TestLeasesEndWithTheirProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyturn.db")
	now := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	open := func() *sqlite.Store {
		s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	claim := func(s *sqlite.Store) (jobs []store.Job) {
		err := s.Update(t.Context(), func(tx store.Tx) (err error) {
			jobs, err = tx.Leases.Claim(t.Context(), store.Claim{Now: now, Lease: time.Hour, Limit: 10, PerTarget: 10})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return jobs
	}
	s := open()
	err := s.Update(t.Context(), func(tx store.Tx) error {
		return tx.Queue.Enqueue(t.Context(), store.Job{ID: "a", Lane: "l", Target: "t", Key: "k", RunAt: now})
	})
	if err != nil {
		t.Fatal(err)
	}
	first := claim(s)
	if len(first) != 1 || len(claim(s)) != 0 {
		t.Fatalf("claimed %v", first)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	s = open()
	defer func() { _ = s.Stop() }()
	again := claim(s)
	if len(again) != 1 || again[0].Fence <= first[0].Fence {
		t.Errorf("after reopening: %+v, before: %+v", again, first)
	}
}
