package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// Fill writes a little of everything that a store can hold, the same each time:
// what recordings of schemas hold.
func Fill(t testing.TB, s store.Store) {
	t.Helper()
	ctx := t.Context()
	for i := range 5 {
		name := key.Name(fmt.Sprintf("prod/%d/dätabase", i))
		id := key.RotationID{byte(i + 1)}
		update(t, s, func(tx store.Tx) error {
			for seq := range uint64(4) {
				event := store.Event{Key: name, Seq: seq + 1, Rotation: id, Type: "accepted", At: epoch.Add(time.Duration(seq) * time.Second), Body: fmt.Appendf(nil, `{"n":%d}`, seq)}
				if err := tx.Events.Append(ctx, event); err != nil {
					return err
				}
			}
			_, err := tx.Docs.Put(ctx, store.Doc{Kind: "rotation", Name: string(name), Due: epoch.Add(time.Duration(i) * time.Minute), Body: []byte("{}")})
			_, noDue := tx.Docs.Put(ctx, store.Doc{Kind: "key", Name: string(name)})
			_, size, logErr := tx.Log.Records(ctx, 0, 1)
			return errors.Join(err, noDue, logErr,
				tx.Log.Append(ctx, size, [][]byte{[]byte(name)}, 2*size, []store.Hash{{byte(i)}, {byte(i), 1}}),
				tx.Materials.Put(ctx, name, 1, []byte("sealed\x00\xff"+name)),
				tx.Materials.Put(ctx, name, 2, nil),
				tx.Queue.Enqueue(ctx,
					store.Job{ID: fmt.Sprint("leased ", i), Lane: fmt.Sprint("lane ", i), Target: "hanging", Key: name, Priority: 9 - i, RunAt: epoch, Body: []byte("body")},
					store.Job{ID: fmt.Sprint("free ", i), Lane: fmt.Sprint("other ", i), Target: "target", Key: name, Priority: -i, RunAt: epoch.Add(time.Hour)}))
		})
	}
	update(t, s, func(tx store.Tx) error {
		jobs, err := tx.Leases.Claim(ctx, store.Claim{Now: epoch, Lease: time.Minute, Limit: 2, PerTarget: 2})
		if err != nil || len(jobs) != 2 {
			return fmt.Errorf("claimed %d jobs: %w", len(jobs), err)
		}
		return errors.Join(
			tx.Leases.Settle(ctx, jobs[0].ID, jobs[0].Fence, epoch.Add(time.Hour)),
			// It waits behind the leased one.
			tx.Queue.Enqueue(ctx, store.Job{ID: "blocked", Lane: jobs[1].Lane, Target: "hanging", Key: "k", RunAt: epoch}))
	})
}
