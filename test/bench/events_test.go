package bench

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/postgres"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/test/pgtest"
)

const (
	eventWriters = 64
	eventRounds  = 4
	eventsEach   = 50 // of each writer in each round
)

// eventBody is what each event holds.
func eventBody() []byte { return make([]byte, 300) }

func eventKey(writer int) string { return fmt.Sprintf("bench/key-%d", writer) }

// BenchmarkEvents appends events, one a transaction, from many goroutines at the
// same time, each to a key of its own. The floor inserts the same rows into the
// same table of another database by a bare loop, as many a commit as there are
// writers. The peer is as many rows a commit at the end of one table without keys.
func BenchmarkEvents(b *testing.B) {
	s, err := sqlite.Open(b.Context(), sqlite.Config{Path: filepath.Join(b.TempDir(), "keyturn.db")})
	if err != nil {
		b.Fatal(err)
	}
	defer stopStore(b, s)
	loop := bareSQLite(b)
	log := newFloorLog(b)
	peer := func(int) error {
		for range eventsEach {
			batch := make([][]byte, eventWriters)
			for i := range batch {
				batch[i] = eventBody()
			}
			if err := log.append(batch); err != nil {
				return err
			}
		}
		return nil
	}
	r := result{Name: "events_appended", Unit: "1/s", more: true}
	measureEvents(b, &r, s, loop, peer)
	scoreboard.add(b, r)
}

// BenchmarkEventsPostgres is the same in PostgreSQL; the floor sends the rows of a
// commit together, in one round trip.
func BenchmarkEventsPostgres(b *testing.B) {
	server := pgtest.Start(b, pgserver.Config{Durable: true})
	pgtest.Exec(b, server, "postgres", "CREATE DATABASE ours", "CREATE DATABASE floor")
	s, err := postgres.Open(b.Context(), postgres.Config{URL: server.SuperuserURL("ours")})
	if err != nil {
		b.Fatal(err)
	}
	defer stopStore(b, s)
	r := result{Name: "events_appended_postgres", Unit: "1/s", more: true}
	measureEvents(b, &r, s, barePostgres(b, server.SuperuserURL("floor")), nil)
	scoreboard.add(b, r)
}

func stopStore(b *testing.B, s interface{ Stop() error }) {
	b.Helper()
	if err := s.Stop(); err != nil {
		b.Error(err)
	}
}

// measureEvents lets the three take turns, so that all see the same machine.
func measureEvents(b *testing.B, r *result, s store.Store, floor, peer func(round int) error) {
	b.Helper()
	measure := func(total *time.Duration, run func(round int) error, round int) {
		if run == nil {
			return
		}
		began := time.Now()
		if err := run(round); err != nil {
			b.Fatal(err)
		}
		*total += time.Since(began)
	}
	var ours, floors, peers time.Duration
	for round := range eventRounds {
		measure(&floors, floor, round)
		measure(&ours, func(round int) error { return appendEvents(b.Context(), s, round) }, round)
		measure(&peers, peer, round)
	}
	const total = eventWriters * eventRounds * eventsEach
	r.Ours, r.Floor = total/ours.Seconds(), total/floors.Seconds()
	r.limit = r.Floor / 2
	if peer != nil {
		rate := total / peers.Seconds()
		r.Peer = &rate
	}
}

func appendEvents(ctx context.Context, s store.Store, round int) error {
	problems := make([]error, eventWriters)
	var running sync.WaitGroup
	for w := range eventWriters {
		running.Go(func() {
			for i := range eventsEach {
				problems[w] = errors.Join(problems[w], s.Update(ctx, func(tx store.Tx) error {
					seq := uint64(round*eventsEach + i + 1)
					return tx.Events.Append(ctx, store.Event{Key: key.Name(eventKey(w)), Seq: seq, Type: "bench", At: time.Now(), Body: eventBody()})
				}))
			}
		})
	}
	running.Wait()
	return errors.Join(problems...)
}

// bareSQLite returns the bare loop, over a database that the store has made.
func bareSQLite(b *testing.B) func(round int) error {
	b.Helper()
	path := filepath.Join(b.TempDir(), "floor.db")
	s, err := sqlite.Open(b.Context(), sqlite.Config{Path: path})
	if err != nil {
		b.Fatal(err)
	}
	stopStore(b, s)
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=secure_delete(ON)&_txlock=immediate")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() }) // the folder goes with it
	db.SetMaxOpenConns(1)
	insert, err := db.PrepareContext(b.Context(), "INSERT INTO events (key, seq, rotation, type, at, body) VALUES (?, ?, ?, ?, ?, ?)")
	if err != nil {
		b.Fatal(err)
	}
	return func(round int) error {
		for i := range eventsEach {
			tx, err := db.Begin()
			if err != nil {
				return err
			}
			bound := tx.Stmt(insert) //nolint:sqlclosecheck // it ends with tx
			for w := range eventWriters {
				_, err := bound.Exec(eventKey(w), round*eventsEach+i+1, make([]byte, 16), "bench", time.Now().UnixMicro(), eventBody())
				if err != nil {
					return errors.Join(err, tx.Rollback())
				}
			}
			if err := tx.Commit(); err != nil {
				return err
			}
		}
		return nil
	}
}

// barePostgres is bareSQLite for PostgreSQL.
func barePostgres(b *testing.B, url string) func(round int) error {
	b.Helper()
	s, err := postgres.Open(b.Context(), postgres.Config{URL: url})
	if err != nil {
		b.Fatal(err)
	}
	stopStore(b, s)
	conn := pgtest.Connect(b, url)
	return func(round int) error {
		for i := range eventsEach {
			var batch pgx.Batch
			batch.Queue("BEGIN")
			for w := range eventWriters {
				batch.Queue("INSERT INTO keyturn.events (key, seq, rotation, type, at, body) VALUES ($1, $2, $3, $4, $5, $6)",
					eventKey(w), round*eventsEach+i+1, make([]byte, 16), "bench", time.Now().UnixMicro(), eventBody())
			}
			batch.Queue("COMMIT")
			if err := conn.SendBatch(b.Context(), &batch).Close(); err != nil {
				return err
			}
		}
		return nil
	}
}
