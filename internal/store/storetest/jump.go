package storetest

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

// testJump: after a jump every revision and fence is beyond the floor, also after
// a smaller one and when the store is opened again, and leases of before are void.
func testJump(t *testing.T, s store.Store) {
	ctx := t.Context()
	const floor = 1 << 50
	var before []store.Job
	update(t, s, func(tx store.Tx) error {
		if _, ok := tx.Leases.(store.Jumper); !ok {
			return nil
		}
		return tx.Queue.Enqueue(ctx, job("a", "a", "x"), job("b", "b", "x"))
	})
	jumps := false
	update(t, s, func(tx store.Tx) (err error) {
		if _, jumps = tx.Leases.(store.Jumper); !jumps {
			return nil
		}
		before, err = tx.Leases.Claim(ctx, store.Claim{Now: time.Now(), Lease: time.Hour, Limit: 1, PerTarget: 5})
		return err
	})
	if !jumps {
		return // a store for tests that is never put back
	}
	if len(before) != 1 {
		t.Fatalf("%d jobs were claimed", len(before))
	}
	for _, to := range []uint64{floor, 7} {
		update(t, s, func(tx store.Tx) error { return tx.Leases.(store.Jumper).Jump(ctx, to) })
	}
	err := s.Update(ctx, func(tx store.Tx) error { return tx.Leases.Settle(ctx, before[0].ID, before[0].Fence, time.Time{}) })
	if !errors.Is(err, store.ErrFenced) {
		t.Errorf("a lease of before the jump was settled: %v", err)
	}
	err = s.Update(ctx, func(tx store.Tx) error { return tx.Leases.(store.Jumper).Jump(ctx, math.MaxInt64) })
	if !errors.Is(err, store.ErrInvalid) {
		t.Errorf("a jump to the end: %v", err)
	}
	if r, ok := s.(Reopener); ok {
		s = r.Reopen(t)
	}
	update(t, s, func(tx store.Tx) error {
		rev, err := tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "n"})
		if err != nil {
			return err
		}
		jobs, err := tx.Leases.Claim(ctx, store.Claim{Now: time.Now(), Lease: time.Hour, Limit: 5, PerTarget: 5})
		if len(jobs) != 2 || rev <= floor || jobs[0].Fence <= floor || jobs[1].Fence <= floor {
			t.Errorf("revision %d, and jobs %v, after a jump to %d", rev, jobs, uint64(floor))
		}
		return err
	})
}
