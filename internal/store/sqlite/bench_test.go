package sqlite_test

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// batchSize is how many events one transaction holds.
const batchSize = 100

// BenchmarkEventsAppend appends events in batches; its floor is
// BenchmarkEventsAppendFloor. Both report ns/event.
func BenchmarkEventsAppend(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "keyturn.db"))
	body := make([]byte, 200)
	events := make([]store.Event, batchSize)
	var seq uint64
	for b.Loop() {
		for i := range events {
			seq++
			events[i] = store.Event{Key: "prod/orders/db", Seq: seq, Type: "accepted", At: time.Unix(int64(seq), 0), Body: body}
		}
		update(b, s, func(tx store.Tx) error { return tx.Events.Append(b.Context(), events...) })
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batchSize), "ns/event")
}

// BenchmarkEventsAppendFloor inserts the same rows into the same table by a bare
// loop over a prepared statement, with the same durability.
func BenchmarkEventsAppendFloor(b *testing.B) {
	path := filepath.Join(b.TempDir(), "keyturn.db")
	must(b, open(b, path).Stop())
	db, err := sql.Open("sqlite", "file:"+path+"?_synchronous=FULL&_pragma=secure_delete(ON)")
	must(b, err)
	defer func() { must(b, db.Close()) }()
	db.SetMaxOpenConns(1)
	body, rotation := make([]byte, 200), make([]byte, 16)
	seq := 0
	for b.Loop() {
		tx, err := db.Begin()
		must(b, err)
		insert, err := tx.Prepare("INSERT INTO events (key, seq, rotation, type, at, body) VALUES (?, ?, ?, ?, ?, ?)")
		must(b, err)
		for range batchSize {
			seq++
			_, err := insert.Exec("prod/orders/db", seq, rotation, "accepted", seq, body)
			must(b, err)
		}
		must(b, tx.Commit())
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batchSize), "ns/event")
}

// BenchmarkUpdateParallel is one small durable Update each from many goroutines,
// as when agents acknowledge: the group commit is what is measured.
func BenchmarkUpdateParallel(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "keyturn.db"))
	var n atomic.Int64
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			name := fmt.Sprint(n.Add(1))
			err := s.Update(b.Context(), func(tx store.Tx) error {
				_, err := tx.Docs.Put(b.Context(), store.Doc{Kind: "ack", Name: name, Body: []byte("acknowledged")})
				return err
			})
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkUpdateSerial is the same from one goroutine: a flush to disk each.
func BenchmarkUpdateSerial(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "keyturn.db"))
	n := 0
	for b.Loop() {
		n++
		put(b, s, "ack", fmt.Sprint(n))
	}
}

// BenchmarkClaim claims and settles ten jobs out of 100,000, half of which wait
// for one target that hangs.
func BenchmarkClaim(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "keyturn.db"))
	fill(b, s, 100_000)
	now := time.Now()
	claim := store.Claim{Now: now, Lease: time.Hour, Limit: 10, PerTarget: 2}
	b.ResetTimer()
	for range b.N {
		must(b, claimAndSettle(b.Context(), s, claim))
	}
}

// fill queues n jobs, half of them for one target and first in order.
func fill(b testing.TB, s interface {
	Update(context.Context, func(store.Tx) error) error
}, n int,
) {
	random := rand.New(rand.NewPCG(1, 2))
	const chunk = 5000
	for from := 0; from < n; from += chunk {
		must(b, s.Update(b.Context(), func(tx store.Tx) error {
			for i := from; i < min(from+chunk, n); i++ {
				id := fmt.Sprint(i)
				j := store.Job{ID: id, Lane: id, Target: "hanging", Key: key.Name("k" + id), RunAt: time.Unix(1, 0)}
				if i%2 == 1 {
					j.Target, j.RunAt, j.Priority = fmt.Sprint("target ", random.IntN(1000)), time.Unix(int64(2+i), 0), random.IntN(3)-2
				}
				if err := tx.Queue.Enqueue(b.Context(), j); err != nil {
					return err
				}
			}
			return nil
		}))
	}
}

func claimAndSettle(ctx context.Context, s store.Store, claim store.Claim) error {
	return s.Update(ctx, func(tx store.Tx) error {
		jobs, err := tx.Leases.Claim(ctx, claim)
		if err != nil {
			return err
		}
		for _, j := range jobs {
			if j.Target == "hanging" {
				continue // its worker never comes back
			}
			if err := tx.Leases.Settle(ctx, j.ID, j.Fence, time.Time{}); err != nil {
				return err
			}
		}
		return nil
	})
}
