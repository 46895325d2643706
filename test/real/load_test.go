package real

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/sqlkey"
	"github.com/keyturn/keyturn/secret"
)

// pauseBetween is how long an application rests between two queries: the machine
// must have time for the rotations too.
const pauseBetween = 30 * time.Millisecond

// load is a fleet of applications and what they saw.
type load struct {
	queries, failures atomic.Int64
	// refused counts the failures that were refused log-ins.
	refused atomic.Int64

	mu     sync.Mutex
	errors []string
}

func (l *load) fail(who string, err error) {
	l.failures.Add(1)
	if isRefused(err) {
		l.refused.Add(1)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.errors) < 20 {
		l.errors = append(l.errors, time.Now().UTC().Format("15:04:05.000 ")+who+": "+err.Error())
	}
}

// isRefused recognises SQLSTATE class 28, invalid authorization.
func isRefused(err error) bool {
	var refusal *pgconn.PgError
	return errors.As(err, &refusal) && len(refusal.Code) == 5 && refusal.Code[:2] == "28"
}

// check fails the test when anything failed, or when nothing was tried.
func (l *load) check(t *testing.T) {
	t.Helper()
	t.Logf("queries: %d, failures: %d", l.queries.Load(), l.failures.Load())
	if l.failures.Load() > 0 {
		t.Errorf("failures under load: %v", l.report())
	}
	if l.queries.Load() == 0 {
		t.Error("there was no load")
	}
}

func (l *load) report() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.errors
}

// more waits until n further queries were made.
func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	from := l.queries.Load()
	eventually(t, fmt.Sprintf("%d more queries", n), func() bool { return l.queries.Load() >= from+n })
}

// eventually polls condition until it holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	timeout := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-timeout:
			t.Fatalf("it did not come true within %v: %s", patience, what)
		case <-tick.C:
		}
	}
}

// party describes an SDK client.
func (w *world) party(kind client.PartyKind, id, cohort, region string) client.Config {
	return client.Config{
		Address: w.known(), Token: client.StaticToken(secret.NewString(w.token)), RootCAs: w.roots,
		Party:      client.Party{ID: id, Kind: kind, Region: region, Labels: map[string]string{"cohort": cohort}},
		BackoffMin: 50 * time.Millisecond, BackoffMax: time.Second,
	}
}

// open opens the key for an SDK client.
func (w *world) open(t *testing.T, id, cohort, region string) *client.Handle {
	t.Helper()
	keys, err := client.Open(t.Context(), w.party(client.KindClient, id, cohort, region), keyName)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	return keys.Key(keyName)
}

// application is an SDK client that opens new connections all the time, on the
// primary and on the standby, until the test ends. The handle it returns is the
// application's.
func (w *world) application(t *testing.T, l *load, id, cohort, region string) *client.Handle {
	t.Helper()
	handle := w.open(t, id, cohort, region)
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
	})
	for i, db := range databases {
		name := id + " on the " + []string{"primary", "standby"}[i]
		running.Go(func() { l.query(ctx, name, db) })
	}
	return handle
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
			var user string
			if err := conn.QueryRowContext(ctx, "SELECT session_user").Scan(&user); err != nil {
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
		case <-time.After(pauseBetween):
		}
	}
}

// fleet starts n applications in three cohorts and two regions.
func (w *world) fleet(t *testing.T, n int) *load {
	t.Helper()
	l := &load{}
	for i := range n {
		w.application(t, l, fmt.Sprintf("app-%d", i), cohort(i, n), region(i))
	}
	return l
}

// cohort puts a fifth of n parties into canary, another into first.
func cohort(i, n int) string { return []string{"canary", "first", "rest"}[min(5*i/n, 2)] }

func region(i int) string { return []string{"eu", "us"}[i%2] }
