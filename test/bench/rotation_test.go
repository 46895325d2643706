package bench

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/test/pgtest"
)

const (
	rotations     = 15
	database      = "orders"
	rotatorsOwn   = "rotator-password-of-the-benchmark"
	rotationLimit = 1000 // ms
)

const rotationPolicy = `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: database}
spec:
  stages: [{name: all, bake: 0s, ackTimeout: 5s, onEmpty: skip}]
  drain: {min: 0s, quiet: 0s, max: 1m, every: 100ms}
  quarantine: 0s
  retain: {destroyAfter: 0s}
---
apiVersion: keyturn/v1
kind: Key
metadata: {name: %s}
spec:
  provider: postgres
  policy: database
  config:
    admin: "postgres://rotator@%s/%s?sslmode=disable"
    adminPassword: {file: %s}
    strategy: alternating-users
    users: [orders_a, orders_b]
    region: eu
    replicas: [{host: "%s", region: us}]
`

// rotator prepares a server for rotations: the administrator's role, and an empty
// database. It returns the file of the administrator's password.
func rotator(b *testing.B, primary *pgserver.Server) (password string) {
	b.Helper()
	pgtest.Exec(
		b, primary, "postgres",
		"CREATE ROLE rotator LOGIN CREATEROLE PASSWORD '"+rotatorsOwn+"'",
		"GRANT pg_signal_backend TO rotator", "GRANT pg_read_all_stats TO rotator", "CREATE DATABASE "+database,
	)
	password = filepath.Join(b.TempDir(), "rotator.password")
	if err := os.WriteFile(password, []byte(rotatorsOwn+"\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	return password
}

// BenchmarkRotation rotates a password of PostgreSQL, a primary and a hot
// standby that flush to disk, from the command to the destruction of the old
// version, with zero bake, quiet and quarantine.
func BenchmarkRotation(b *testing.B) {
	primary, standby := pgtest.StartPair(b, pgserver.Config{Region: "eu", Durable: true}, "us")
	password := rotator(b, primary)
	w := newWorld(b, nil, fmt.Sprintf(rotationPolicy, keyName, primary.Addr(), database, password, standby.Addr()))
	for range 2 {
		w.rotate(b) // each role exists from now on, and every cache is warm
	}
	pgtest.Exec(b, primary, "postgres", "CREATE ROLE floor_a", "CREATE ROLE floor_b")
	log := newFloorLog(b)
	var ours, floor []time.Duration
	var used, floorUsed time.Duration
	// They take turns, so that both see the same machine.
	for n := range rotations {
		before := cpu(b)
		ours = append(ours, w.rotate(b).took)
		used += cpu(b) - before
		before, began := cpu(b), time.Now()
		role, old := "floor_a", "floor_b"
		if n%2 == 1 {
			role, old = old, role
		}
		if err := floorRotation(b.Context(), primary, standby, log, role, old); err != nil {
			b.Fatal(err)
		}
		floor = append(floor, time.Since(began))
		floorUsed += cpu(b) - before
	}
	scoreboard.add(b, result{Name: "rotation", Unit: "ms", Ours: milliseconds(median(ours)), Floor: milliseconds(median(floor)), limit: rotationLimit})
	scoreboard.add(b, result{Name: "rotation_worst", Unit: "ms", Ours: milliseconds(quantile(ours, 1)), Floor: milliseconds(quantile(floor, 1)), limit: rotationLimit})
	scoreboard.add(b, result{Name: "rotation_cpu", Unit: "ms", Ours: milliseconds(used) / rotations, Floor: milliseconds(floorUsed) / rotations})
}

// phases is how often a rotation must be on disk at least: once for each phase
// that it enters, from planned to done.
const phases = 9

// floorRotation does what a rotation does outside, with nothing around it: the
// same statements, proofs and durable commits, one after the other, as a script
// would that is certain that nothing fails.
func floorRotation(ctx context.Context, primary, standby *pgserver.Server, log *floorLog, role, old string) error {
	admin, err := pgx.Connect(ctx, primary.SuperuserURL(database))
	if err != nil {
		return err
	}
	defer admin.Close(ctx)
	password := "of-" + role + strconv.FormatInt(time.Now().UnixNano(), 36)
	if _, err := admin.Exec(ctx, "ALTER ROLE "+role+" LOGIN PASSWORD '"+password+"'"); err != nil {
		return err
	}
	if err := logInSoon(ctx, primary.URL(role, password, database), true); err != nil {
		return err
	}
	if err := logInSoon(ctx, standby.URL(role, password, database), true); err != nil {
		return err
	}
	replica, err := pgx.Connect(ctx, standby.SuperuserURL(database))
	if err != nil {
		return err
	}
	defer replica.Close(ctx)
	for _, conn := range []*pgx.Conn{admin, replica} {
		sessions := 0
		if err := conn.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", old).Scan(&sessions); err != nil || sessions > 0 {
			return fmt.Errorf("%d sessions: %w", sessions, err)
		}
	}
	if _, err := admin.Exec(ctx, "ALTER ROLE "+old+" NOLOGIN PASSWORD NULL"); err != nil {
		return err
	}
	for _, conn := range []*pgx.Conn{admin, replica} {
		if _, err := conn.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", old); err != nil {
			return err
		}
	}
	for _, server := range []*pgserver.Server{primary, standby} {
		if err := logInSoon(ctx, server.URL(old, "old", database), false); err != nil {
			return err
		}
	}
	for range phases {
		if err := log.append([][]byte{make([]byte, 300)}); err != nil {
			return err
		}
	}
	return nil
}

// logInSoon tries a log-in until its outcome is the wanted one, which on a
// standby takes until the change has arrived there.
func logInSoon(ctx context.Context, url string, wanted bool) error {
	for {
		conn, err := pgx.Connect(ctx, url)
		if err == nil {
			err = conn.Close(ctx)
			if wanted {
				return err
			}
		} else if !wanted {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(time.Millisecond):
		}
	}
}

// floorLog is the smallest durable log: one table of SQLite, flushed at every
// commit as Keyturn's is.
type floorLog struct{ db *sql.DB }

func newFloorLog(b *testing.B) *floorLog {
	b.Helper()
	source := "file:" + filepath.Join(b.TempDir(), "floor.db") + "?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_txlock=immediate"
	db, err := sql.Open("sqlite", source)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() }) // the folder goes with it
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(b.Context(), "CREATE TABLE log (n INTEGER PRIMARY KEY, body BLOB NOT NULL)"); err != nil {
		b.Fatal(err)
	}
	return &floorLog{db: db}
}

// append writes records in one transaction and returns when they are on disk.
func (l *floorLog) append(records [][]byte) (err error) {
	tx, err := l.db.Begin()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tx.Rollback())
		}
	}()
	insert, err := tx.Prepare("INSERT INTO log (body) VALUES (?)")
	if err != nil {
		return err
	}
	defer insert.Close()
	for _, record := range records {
		if _, err := insert.Exec(record); err != nil {
			return err
		}
	}
	return tx.Commit()
}
