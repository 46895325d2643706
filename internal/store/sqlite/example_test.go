package sqlite_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
)

// An event and the job that follows from it commit together, or not at all.
func Example() {
	folder, err := os.MkdirTemp("", "keyturn")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(folder) }()
	ctx := context.Background()
	s, err := sqlite.Open(ctx, sqlite.Config{Path: filepath.Join(folder, "keyturn.db")})
	if err != nil {
		panic(err)
	}
	defer func() { _ = s.Stop() }()

	now := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	err = s.Update(ctx, func(tx store.Tx) error {
		if err := tx.Events.Append(ctx, store.Event{Key: "prod/orders/db", Seq: 1, Type: "minted", At: now}); err != nil {
			return err
		}
		return tx.Queue.Enqueue(ctx, store.Job{ID: "accept v2", Lane: "prod/orders/db", Target: "db1", Key: "prod/orders/db", RunAt: now})
	})
	fmt.Println(err)

	var jobs []store.Job
	err = s.Update(ctx, func(tx store.Tx) (err error) {
		jobs, err = tx.Leases.Claim(ctx, store.Claim{Now: now, Lease: time.Minute, Limit: 10, PerTarget: 2})
		return err
	})
	fmt.Println(len(jobs), jobs[0].ID, jobs[0].Attempt, jobs[0].Fence, err)
	// Output:
	// <nil>
	// 1 accept v2 1 1 <nil>
}
