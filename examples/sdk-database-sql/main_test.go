package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/clienttest"
)

// logins stands in for a database: it remembers who logged in. What it hands out
// cannot query, which ends run after the first query.
type logins struct {
	mu    sync.Mutex
	users []string
}

func (l *logins) connect(_ context.Context, cred client.Credential) (driver.Connector, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users = append(l.users, cred.Username())
	return failing{}, nil
}

type failing struct{}

var errNoDatabase = errors.New("there is no database in this test")

func (failing) Connect(context.Context) (driver.Conn, error) { return nil, errNoDatabase }
func (failing) Driver() driver.Driver                        { return nil }

// TestRunLogsInWithTheKey shows how an application tests its use of a key
// without a server and without a database.
func TestRunLogsInWithTheKey(t *testing.T) {
	srv := clienttest.New(t)
	srv.Set(clienttest.Login("dev/orders/db", "orders_a", "first"))
	var db logins
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := run(ctx, srv.Config(), "dev/orders/db", db.connect); !errors.Is(err, errNoDatabase) {
		t.Fatalf("got %v, want the error of the database", err)
	}
	if len(db.users) == 0 || db.users[0] != "orders_a" {
		t.Errorf("logged in as %v, want orders_a", db.users)
	}
}

// TestRefusedVersionIsReported: a version with which nobody can log in does not
// become current, and the server hears of it.
func TestRefusedVersionIsReported(t *testing.T) {
	srv := clienttest.New(t)
	srv.Set(clienttest.Login("dev/orders/db", "orders_a", "first"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	keys, err := client.Open(ctx, srv.Config(), "dev/orders/db")
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	var db logins
	pool := sql.OpenDB(newConnector(keys.Key("dev/orders/db"), db.connect))
	defer pool.Close()

	next := srv.Rotate("dev/orders/db")
	if ack := srv.WaitAck(ctx, "dev/orders/db", next); ack.Code != client.Failed || ack.Using != 1 {
		t.Errorf("got %+v, want a failure and version 1 still in use", ack)
	}
}

func TestConnectUsesTheFieldsOfTheKey(t *testing.T) {
	srv := clienttest.New(t)
	value := clienttest.Login("dev/orders/db", "orders_a", "first")
	value.Attributes["host"], value.Attributes["port"], value.Attributes["database"] = "127.0.0.1", "1", "orders"
	srv.Set(value)
	keys, err := client.Open(t.Context(), srv.Config(), "dev/orders/db")
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	connector, err := connect(t.Context(), keys.Key("dev/orders/db").Current())
	if err != nil {
		t.Fatal(err)
	}
	_, err = connector.Connect(t.Context())
	if err == nil || !strings.Contains(err.Error(), "user=orders_a database=orders") || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("got %v, want a failed log-in of orders_a to orders at 127.0.0.1:1", err)
	}
	if strings.Contains(err.Error(), "first") {
		t.Error("the error shows the password")
	}
}
