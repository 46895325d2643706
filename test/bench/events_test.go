package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/key"
)

const (
	eventWriters = 64
	eventsEach   = 200
)

// BenchmarkEvents appends events, one a transaction, from many goroutines at the
// same time; the floor inserts as many rows a commit as there are writers.
func BenchmarkEvents(b *testing.B) {
	s, err := sqlite.Open(b.Context(), sqlite.Config{Path: filepath.Join(b.TempDir(), "keyturn.db")})
	if err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 300)
	problems := make([]error, eventWriters)
	began := time.Now()
	var running sync.WaitGroup
	for w := range eventWriters {
		running.Go(func() { problems[w] = appendEvents(b.Context(), s, key.Name(fmt.Sprintf("bench/key-%d", w)), body) })
	}
	running.Wait()
	ours := time.Since(began)
	for _, err := range problems {
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Stop(); err != nil {
		b.Fatal(err)
	}
	log := newFloorLog(b)
	began = time.Now()
	for range eventsEach {
		batch := make([][]byte, eventWriters)
		for i := range batch {
			batch[i] = body
		}
		if err := log.append(batch); err != nil {
			b.Fatal(err)
		}
	}
	floor := time.Since(began)
	const total = eventWriters * eventsEach
	scoreboard.add(b, result{Name: "events_appended", Unit: "1/s", Ours: total / ours.Seconds(), Floor: total / floor.Seconds(), more: true})
}

func appendEvents(ctx context.Context, s *sqlite.Store, name key.Name, body []byte) error {
	for seq := range uint64(eventsEach) {
		err := s.Update(ctx, func(tx store.Tx) error {
			return tx.Events.Append(ctx, store.Event{Key: name, Seq: seq + 1, Type: "bench", At: time.Now(), Body: body})
		})
		if err != nil {
			return err
		}
	}
	return nil
}
