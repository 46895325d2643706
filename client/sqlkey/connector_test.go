package sqlkey_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/clienttest"
	"github.com/keyturn/keyturn/client/sqlkey"
	"github.com/keyturn/keyturn/key"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const orders key.Name = "prod/orders/db"

// rig is a server, a fake database and a pool between them, under simulated time.
type rig struct {
	t         *testing.T
	srv       *clienttest.Server
	base      *database
	handle    *client.Handle
	connector *sqlkey.Connector
	db        *sql.DB
}

func inBubble(t *testing.T, cfg sqlkey.Config, test func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, srv: clienttest.New(t, clienttest.InMemory()), base: newDatabase(t, "pw-1")}
		r.srv.Set(clienttest.Login(orders, "a", "pw-1"))
		keys, err := client.Open(t.Context(), r.srv.Config(), orders)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(keys.Close)
		r.handle = keys.Key(orders)
		r.connector = sqlkey.New(r.handle, r.base.connector, cfg)
		r.db = sql.OpenDB(r.connector)
		t.Cleanup(func() {
			if err := r.db.Close(); err != nil {
				t.Error(err)
			}
		})
		test(t, r)
	})
}

// rotate publishes a password and waits until the pool uses it.
func (r *rig) rotate(password string) key.Version {
	r.t.Helper()
	r.base.set(password, true)
	version := r.srv.Set(clienttest.Login(orders, "a", password))
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	if _, err := r.handle.Wait(ctx, version); err != nil {
		r.t.Fatal(err)
	}
	return version
}

func (r *rig) password() string {
	r.t.Helper()
	var password string
	if err := r.db.QueryRowContext(r.t.Context(), "select").Scan(&password); err != nil {
		r.t.Errorf("query: %v", err)
	}
	return password
}

// Pain "the old one never dies": idle connections of the old version end by
// themselves, also when nobody uses the pool.
func TestIdleConnectionsOfTheOldVersionEnd(t *testing.T) {
	inBubble(t, sqlkey.Config{}, func(t *testing.T, r *rig) {
		r.db.SetMaxIdleConns(10)
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() { r.password() })
		}
		group.Wait()
		if n := r.base.opened("pw-1"); n != 10 {
			t.Fatalf("%d connections to begin with", n)
		}
		v2 := r.rotate("pw-2")
		time.Sleep(time.Second)
		if n := r.base.opened("pw-1"); n != 0 {
			t.Errorf("%d connections of the old version are left", n)
		}
		r.base.set("pw-1", false)
		for range 10 {
			if got := r.password(); got != "pw-2" {
				t.Errorf("served by %q", got)
			}
		}
		if versions := r.connector.Versions(); len(versions) != 1 || versions[v2] == 0 {
			t.Errorf("versions: %v", versions)
		}
	})
}

func TestWorkUnderWayIsNeverCutOff(t *testing.T) {
	inBubble(t, sqlkey.Config{}, func(t *testing.T, r *rig) {
		tx, err := r.db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		held, err := r.db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := held.PingContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		rows, err := r.db.QueryContext(t.Context(), "select")
		if err != nil {
			t.Fatal(err)
		}
		r.rotate("pw-2")
		time.Sleep(time.Hour)
		if n := r.base.opened("pw-1"); n != 3 {
			t.Errorf("%d of 3 connections in use are open", n)
		}
		if _, err := tx.Exec("update"); err != nil {
			t.Error(err)
		}
		if err := tx.Commit(); err != nil {
			t.Error(err)
		}
		if err := held.PingContext(t.Context()); err != nil {
			t.Error(err)
		}
		if err := held.Close(); err != nil {
			t.Error(err)
		}
		if !rows.Next() || rows.Err() != nil {
			t.Errorf("rows: %v", rows.Err())
		}
		if err := rows.Close(); err != nil { //nolint:sqlclosecheck // the moment matters here
			t.Error(err)
		}
		if n := r.base.opened("pw-1"); n != 0 {
			t.Errorf("%d connections are left after their work", n)
		}
	})
}

// No query fails while the credential rotates all the time under load, and the
// old version is gone soon after each change.
func TestNoQueryFailsUnderLoad(t *testing.T) {
	for _, poolSize := range []int{0, 1, 4} {
		t.Run(fmt.Sprintf("pool=%d", poolSize), func(t *testing.T) {
			inBubble(t, sqlkey.Config{}, func(t *testing.T, r *rig) {
				r.db.SetMaxOpenConns(poolSize)
				r.db.SetMaxIdleConns(6)
				prepared, err := r.db.PrepareContext(t.Context(), "select")
				if err != nil {
					t.Fatal(err)
				}
				defer prepared.Close()
				stop := make(chan struct{})
				var group sync.WaitGroup
				for worker := range 16 {
					group.Go(func() {
						for round := 0; ; round++ {
							select {
							case <-stop:
								return
							default:
							}
							time.Sleep(time.Duration(worker*round%7) * 10 * time.Millisecond)
							if err := oneUse(t.Context(), r.db, prepared, worker+round); err != nil {
								t.Errorf("worker %d, round %d: %v", worker, round, err)
								return
							}
						}
					})
				}
				for n := 2; n < 40; n++ {
					password := fmt.Sprintf("pw-%d", n)
					r.rotate(password)
					time.Sleep(time.Second)
					for old := range n {
						if left := r.base.opened(fmt.Sprintf("pw-%d", old)); left != 0 {
							t.Errorf("%d connections of version %d at version %d", left, old, n)
						}
					}
					r.base.set(fmt.Sprintf("pw-%d", n-1), false)
				}
				close(stop)
				group.Wait()
			})
		})
	}
}

func oneUse(ctx context.Context, db *sql.DB, prepared *sql.Stmt, kind int) error {
	switch kind % 5 {
	case 0:
		_, err := db.ExecContext(ctx, "update")
		return err
	case 1:
		var password string
		return db.QueryRowContext(ctx, "select").Scan(&password)
	case 2:
		var password string
		return prepared.QueryRowContext(ctx).Scan(&password)
	case 3:
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		select { // the transaction takes a while
		case <-ctx.Done():
		case <-time.After(17 * time.Millisecond):
		}
		if _, err := tx.ExecContext(ctx, "update"); err != nil {
			return err
		}
		return tx.Commit()
	default:
		return db.PingContext(ctx)
	}
}

func TestRefusedLoginIsRepeatedWithTheNewerVersion(t *testing.T) {
	inBubble(t, sqlkey.Config{}, func(t *testing.T, r *rig) {
		// The old password is dead before the new one is known.
		r.base.set("pw-1", false)
		r.base.set("pw-2", true)
		go func() {
			time.Sleep(time.Second)
			r.srv.Set(clienttest.Login(orders, "a", "pw-2"))
		}()
		if got := r.password(); got != "pw-2" {
			t.Errorf("served by %q", got)
		}
		time.Sleep(5 * time.Second)
		var failures uint64
		for _, report := range r.srv.Reports() {
			if report.Version == 1 {
				failures += report.AuthFailures
			}
		}
		if failures != 1 {
			t.Errorf("%d authentication failures were reported, want 1", failures)
		}
	})
}

func TestRefusedLoginGivesUpInTime(t *testing.T) {
	inBubble(t, sqlkey.Config{}, func(t *testing.T, r *rig) {
		r.base.set("pw-1", false)
		began := time.Now()
		err := r.db.PingContext(t.Context())
		var state refused
		if !errors.As(err, &state) || strings.Contains(err.Error(), "pw-1") || !strings.Contains(err.Error(), "prod/orders/db v1") {
			t.Errorf("got %v", err)
		}
		if waited := time.Since(began); waited > 3*time.Second {
			t.Errorf("gave up after %v", waited)
		}
		if r.base.logins["pw-1"] != 1 {
			t.Errorf("%d log-ins with a password that is known to be wrong", r.base.logins["pw-1"])
		}
	})
}

func TestVersionThatCannotLogInIsRefused(t *testing.T) {
	inBubble(t, sqlkey.Config{}, func(t *testing.T, r *rig) {
		v2 := r.srv.Set(clienttest.Login(orders, "a", "wrong-password"))
		ack := r.srv.WaitAck(t.Context(), orders, v2)
		if ack.Code != client.Failed || ack.Using != 1 || strings.Contains(ack.Detail, "wrong-password") {
			t.Errorf("acknowledgement: %+v", ack)
		}
		if got := r.password(); got != "pw-1" {
			t.Errorf("served by %q", got)
		}
	})
}

// A connection that database/sql opened and never used is retired as well, and
// its first use does not fail.
func TestUnusedConnectionIsReplaced(t *testing.T) {
	inBubble(t, sqlkey.Config{}, func(t *testing.T, r *rig) {
		conn, err := r.db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		r.rotate("pw-2")
		time.Sleep(time.Second)
		if n := r.base.opened("pw-1"); n != 0 {
			t.Errorf("%d unused connections of the old version are left", n)
		}
		r.base.set("pw-1", false)
		var password string
		if err := conn.QueryRowContext(t.Context(), "select").Scan(&password); err != nil || password != "pw-2" {
			t.Errorf("got %q, %v", password, err)
		}
	})
}

func TestSkipProbe(t *testing.T) {
	inBubble(t, sqlkey.Config{SkipProbe: true}, func(t *testing.T, r *rig) {
		r.rotate("pw-2")
		if n := r.base.logins["pw-2"]; n != 0 {
			t.Errorf("%d log-ins", n)
		}
	})
}

func TestClosedConnector(t *testing.T) {
	inBubble(t, sqlkey.Config{}, func(t *testing.T, r *rig) {
		if err := r.connector.Close(); err != nil {
			t.Error(err)
		}
		if _, err := r.connector.Connect(t.Context()); !errors.Is(err, sqlkey.ErrClosed) {
			t.Errorf("got %v", err)
		}
		if _, err := r.connector.Driver().Open("x"); err == nil {
			t.Error("opened by name")
		}
		if n := r.base.opened("pw-1"); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
}

func TestUnwrapAndDriverAbilities(t *testing.T) {
	inBubble(t, sqlkey.Config{}, func(t *testing.T, r *rig) {
		conn, err := r.db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.Raw(func(raw any) error {
			if own, ok := sqlkey.Unwrap(raw).(modern); !ok || own.password != "pw-1" {
				t.Errorf("unwrapped to %T", sqlkey.Unwrap(raw))
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if sqlkey.Unwrap(7) != 7 {
			t.Error("something else was changed")
		}
		if _, err := conn.BeginTx(t.Context(), &sql.TxOptions{ReadOnly: true}); err == nil || err.Error() != "modern got read-only" {
			t.Errorf("the options did not reach the driver: %v", err)
		}
		if _, err := conn.ExecContext(t.Context(), "x", complex(1, 2)); err != nil {
			t.Errorf("the driver's own argument type: %v", err)
		}
	})
}

// Shapes of drivers: what they lack must not appear.
type (
	plain    struct{ *fakeConn }
	onlyExec struct{ *fakeConn }
	oldExec  struct{ *fakeConn }
	oldBoth  struct{ oldExec }
)

func (c onlyExec) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return driver.RowsAffected(3), nil
}

func (c oldExec) Exec(string, []driver.Value) (driver.Result, error) {
	return driver.RowsAffected(4), nil
}

func (c oldBoth) Query(string, []driver.Value) (driver.Rows, error) {
	return &fakeRows{c: c.fakeConn}, nil
}

func TestWrapperHasExactlyTheDriversInterfaces(t *testing.T) {
	for _, test := range []struct {
		name        string
		shape       func(*fakeConn) driver.Conn
		exec, query bool
		affected    int64
	}{
		{"plain", func(c *fakeConn) driver.Conn { return plain{c} }, false, false, 1},
		{"exec", func(c *fakeConn) driver.Conn { return onlyExec{c} }, true, false, 3},
		{"old exec", func(c *fakeConn) driver.Conn { return oldExec{c} }, true, false, 4},
		{"old both", func(c *fakeConn) driver.Conn { return oldBoth{oldExec{c}} }, true, true, 4},
		{"modern", func(c *fakeConn) driver.Conn { return modern{c} }, true, true, 7},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, sqlkey.Config{}, func(t *testing.T, r *rig) {
				r.base.shape = test.shape
				conn, err := r.connector.Connect(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				_, exec := conn.(driver.ExecerContext)
				_, query := conn.(driver.QueryerContext)
				if exec != test.exec || query != test.query {
					t.Errorf("ExecerContext %v, QueryerContext %v", exec, query)
				}
				for range 3 {
					result, err := r.db.ExecContext(t.Context(), "update", 1)
					if err != nil {
						t.Fatal(err)
					}
					if n, _ := result.RowsAffected(); n != test.affected {
						t.Errorf("%d rows, want %d", n, test.affected)
					}
					if r.password() != "pw-1" || r.db.Ping() != nil {
						t.Error("query or ping failed")
					}
					tx, err := r.db.Begin()
					if err != nil {
						t.Fatal(err)
					}
					_ = tx.Rollback()
				}
				if test.name == "modern" {
					return
				}
				if _, err := r.db.BeginTx(t.Context(), &sql.TxOptions{ReadOnly: true}); err == nil {
					t.Error("read-only was ignored")
				}
				if _, err := r.db.ExecContext(t.Context(), "x", sql.Named("n", 1)); err == nil && test.name != "exec" {
					t.Error("a named argument was accepted")
				}
				if _, err := r.db.ExecContext(t.Context(), "x", complex(1, 2)); err == nil {
					t.Error("an argument of an unknown type was accepted")
				}
			})
		})
	}
}

// A connection whose version was replaced during its log-in is retired as well.
func TestVersionChangesDuringTheLogin(t *testing.T) {
	inBubble(t, sqlkey.Config{SkipProbe: true}, func(t *testing.T, r *rig) {
		r.base.latency = 5 * time.Second
		go func() {
			time.Sleep(time.Second)
			r.base.set("pw-2", true)
			r.srv.Set(clienttest.Login(orders, "a", "pw-2"))
		}()
		conn, err := r.connector.Connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		time.Sleep(time.Second)
		if n := r.base.opened("pw-1"); n != 0 {
			t.Errorf("%d connections of the old version are left", n)
		}
	})
}
