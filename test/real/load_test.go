package real

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/sqlkey"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/secret"
)

// load is a fleet of applications and what they saw.
type load struct {
	queries, failures atomic.Int64

	mu     sync.Mutex
	errors []string
}

func (l *load) fail(who string, err error) {
	l.failures.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.errors) < 20 {
		l.errors = append(l.errors, who+": "+err.Error())
	}
}

// check fails the test when anything failed, or when nothing was tried.
func (l *load) check(t *testing.T) {
	t.Helper()
	t.Logf("queries: %d, failures: %d", l.queries.Load(), l.failures.Load())
	if l.failures.Load() > 0 {
		t.Errorf("failures under load: %v", l.errors)
	}
	if l.queries.Load() == 0 {
		t.Error("there was no load")
	}
}

// application is an SDK client that opens new connections all the time, on the
// primary and on the standby, until the test ends.
func (w *world) application(t *testing.T, l *load, id, cohort, region string) {
	t.Helper()
	keys, err := client.Open(t.Context(), client.Config{
		Address: w.server.Address(), Token: client.StaticToken(secret.NewString(w.token)), RootCAs: w.roots,
		Party:      client.Party{ID: id, Kind: client.KindClient, Region: region, Labels: map[string]string{"cohort": cohort}},
		BackoffMin: 50 * time.Millisecond, BackoffMax: time.Second,
	}, keyName)
	if err != nil {
		t.Fatal(err)
	}
	handle := keys.Key(keyName)
	open := func(host string) *sql.DB {
		db := sql.OpenDB(sqlkey.New(handle, func(_ context.Context, cred client.Credential) (driver.Connector, error) {
			config, err := pgx.ParseConfig(fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", cred.Username(), host, database))
			if err != nil {
				return nil, err
			}
			config.Password = cred.Password().RevealString()
			config.RuntimeParams["application_name"] = id
			return stdlib.GetConnector(*config), nil
		}, sqlkey.Config{}))
		db.SetMaxIdleConns(1)
		return db
	}
	databases := []*sql.DB{open(w.primary.Addr()), open(w.standby.Addr())}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
		for _, db := range databases {
			_ = db.Close() // it is the end of the test
		}
		keys.Close()
	})
	for i, db := range databases {
		running.Go(func() { l.query(ctx, fmt.Sprintf("%s on server %d", id, i), db) })
	}
}

// query queries all the time, every second time on a connection of its own.
func (l *load) query(ctx context.Context, who string, db *sql.DB) {
	for n := 0; ctx.Err() == nil; n++ {
		err := func() error {
			conn, err := db.Conn(ctx)
			if err != nil {
				return fmt.Errorf("log in: %w", err)
			}
			defer func() {
				if n%2 == 0 {
					_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // closes it, so that the next is new
				}
				_ = conn.Close() // back to the pool
			}()
			var who string
			if err := conn.QueryRowContext(ctx, "SELECT session_user").Scan(&who); err != nil {
				return fmt.Errorf("query: %w", err)
			}
			return nil
		}()
		if ctx.Err() != nil {
			return
		}
		l.queries.Add(1)
		if err != nil {
			l.fail(who, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// TestRotateUnderLoad rotates under continuous load: no log-in and no query may
// fail.
func TestRotateUnderLoad(t *testing.T) {
	w := newWorld(t, quickPolicy)
	if r := w.wait(t, w.rotate(t, &keyturnv1.RotateRequest{Reason: "first version"}), nil); r.GetPhase() != "done" {
		t.Fatalf("the first rotation ended as %v", r)
	}
	l := &load{}
	for i := range 10 {
		cohort := []string{"canary", "first", "rest"}[min(i/2, 2)]
		w.application(t, l, fmt.Sprintf("app-%d", i), cohort, []string{"eu", "us"}[i%2])
	}
	const rotations = 50
	started := time.Now()
	for n := range rotations {
		r := w.wait(t, w.rotate(t, &keyturnv1.RotateRequest{Reason: fmt.Sprintf("rotation %d under load", n)}), nil)
		if r.GetPhase() != "done" {
			t.Fatalf("rotation %d ended as %v: %v", n, r.GetPhase(), r)
		}
	}
	t.Logf("%d rotations in %v", rotations, time.Since(started))
	l.check(t)
}
