package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/keyturn/keyturn/client"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
	"github.com/keyturn/keyturn/test/pgtest"
)

const (
	manyKeys = 200
	// manyAtOnce is how many the floor changes at the same time: as many effects as
	// Keyturn has under way at one host.
	manyAtOnce = 8
	// manyLogins is how many applications log in all the time.
	manyLogins = 4
	manyIn     = 5 * time.Minute
)

const manyPolicy = `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: database}
spec:
  stages: [{name: all, bake: 0s, ackTimeout: 1m, onEmpty: skip}]
  drain: {min: 2s, quiet: 1s, max: 2m, every: 500ms}
  quarantine: 0s
  retain: {destroyAfter: 0s}
`

const manyKey = `---
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
    users: [many_%03d_a, many_%03d_b]
`

// BenchmarkManyRotations rotates 200 keys of one PostgreSQL together, while
// applications log in with the current credential of each all the time: how long
// until the last old version is destroyed, and how many log-ins were made meanwhile.
// One that fails fails the benchmark. The floor changes as many roles by the bare
// statements and proofs, beside the same log-ins; it waits for no drain, which takes
// ours three seconds.
func BenchmarkManyRotations(b *testing.B) {
	primary := pgtest.Start(b, pgserver.Config{Durable: true})
	password := rotator(b, primary)
	documents := manyPolicy
	names := make([]key.Name, manyKeys)
	for i := range names {
		names[i] = key.Name(fmt.Sprintf("prod/many/%03d", i))
		documents += fmt.Sprintf(manyKey, names[i], primary.Addr(), database, password, i, i)
	}
	w := newWorld(b, nil, documents)
	w.rotateAll(b, names) // first versions
	keys, err := client.Open(b.Context(), client.Config{
		Address: w.address, Token: client.StaticToken(secret.NewString(w.token)), RootCAs: w.roots,
		Party: client.Party{ID: "many", Kind: client.KindClient},
	}, names...)
	if err != nil {
		b.Fatal(err)
	}
	defer keys.Close()

	load := startLogins(b, func(i int) string {
		cred := keys.Key(names[i%manyKeys]).Current()
		return primary.URL(cred.Username(), cred.Password().RevealString(), database)
	})
	log := newFloorLog(b)
	floor, floorLogins := load.during(func() { manyFloor(b, primary, log) })
	ours, logins := load.during(func() { w.rotateAll(b, names) })
	load.stop()
	scoreboard.add(b, result{Name: fmt.Sprintf("rotations_at_once_%d", manyKeys), Unit: "ms", Ours: milliseconds(ours), Floor: milliseconds(floor), Failed: new(load.failed.Load())})
	scoreboard.add(b, result{
		Name: fmt.Sprintf("rotations_at_once_%d_logins", manyKeys), Unit: "1/s", Failed: new(load.failed.Load()),
		Ours: float64(logins) / ours.Seconds(), Floor: float64(floorLogins) / floor.Seconds(), more: true,
	})
	b.Logf("%d log-ins, %d failed", load.made.Load(), load.failed.Load())
}

// rotateAll rotates keys together and waits until each rotation is done.
func (w *world) rotateAll(b *testing.B, names []key.Name) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), manyIn)
	defer cancel()
	ids := make([]string, len(names))
	for i, name := range names {
		response, err := w.control.Rotate(ctx, &keyturnv1.RotateRequest{Name: string(name), Reason: "benchmark"})
		if err != nil {
			b.Fatal(err)
		}
		ids[i] = response.GetRotationId()
	}
	for i, id := range ids {
		stream, err := w.control.WatchRotation(ctx, &keyturnv1.WatchRotationRequest{Id: id})
		if err != nil {
			b.Fatal(err)
		}
		var last *keyturnv1.Rotation
		for stream.Receive() && !last.GetEnded() {
			last = stream.Msg().GetRotation()
		}
		if err := errors.Join(stream.Err(), stream.Close()); err != nil || last.GetPhase() != "done" {
			b.Fatalf("%s is %s: %v", names[i], last.GetPhase(), err)
		}
	}
}

// manyFloor does the same outside, and as many durable commits, with nothing around it.
func manyFloor(b *testing.B, primary *pgserver.Server, log *floorLog) {
	b.Helper()
	group, ctx := errgroup.WithContext(b.Context())
	group.SetLimit(manyAtOnce)
	admins := make(chan *pgx.Conn, manyAtOnce)
	for range manyAtOnce {
		admins <- pgtest.Connect(b, primary.SuperuserURL(database))
	}
	for i := range manyKeys {
		group.Go(func() error {
			admin := <-admins
			defer func() { admins <- admin }()
			role, old := fmt.Sprintf("floor_%03d_a", i), fmt.Sprintf("floor_%03d_b", i)
			for _, statement := range []string{"CREATE ROLE " + role, "CREATE ROLE " + old + " LOGIN PASSWORD 'old'", "ALTER ROLE " + role + " LOGIN PASSWORD 'new'"} {
				if _, err := admin.Exec(ctx, statement); err != nil {
					return err
				}
			}
			if err := logInSoon(ctx, primary.URL(role, "new", database), true); err != nil {
				return err
			}
			var sessions int
			if err := admin.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", old).Scan(&sessions); err != nil {
				return err
			}
			if _, err := admin.Exec(ctx, "ALTER ROLE "+old+" NOLOGIN PASSWORD NULL"); err != nil {
				return err
			}
			if _, err := admin.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", old); err != nil {
				return err
			}
			if err := logInSoon(ctx, primary.URL(old, "old", database), false); err != nil {
				return err
			}
			for range phases {
				if err := log.append([][]byte{make([]byte, 300)}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
}

// logins are applications that log in all the time.
type logins struct {
	made, failed atomic.Int64
	stop         func()
}

func startLogins(b *testing.B, url func(i int) string) *logins {
	b.Helper()
	l := &logins{}
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	for worker := range manyLogins {
		running.Go(func() {
			for i := worker; ctx.Err() == nil; i += manyLogins {
				conn, err := pgx.Connect(context.WithoutCancel(ctx), url(i))
				if err == nil {
					err = conn.Close(context.WithoutCancel(ctx))
				}
				l.made.Add(1)
				if err != nil && l.failed.Add(1) == 1 {
					b.Errorf("a log-in failed: %v", err)
				}
			}
		})
	}
	l.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	b.Cleanup(l.stop)
	return l
}

// during is how long something takes, and how many log-ins are made meanwhile.
func (l *logins) during(do func()) (took time.Duration, made int64) {
	before, began := l.made.Load(), time.Now()
	do()
	return time.Since(began), l.made.Load() - before
}
