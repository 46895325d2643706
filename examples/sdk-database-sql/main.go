// Command sdk-database-sql counts the rows of a table, over and over, while the
// password of its database rotates. No query fails: new connections log in with
// the current version, idle ones of the version before are closed, and those in
// use are closed when they come back to the pool.
//
//	export KEYTURN_ADDR=… KEYTURN_TOKEN=… KEYTURN_CACERT=…   # as keyturn dev prints them
//	go run ./examples/sdk-database-sql
package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/sqlkey"
	"github.com/keyturn/keyturn/key"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	config := client.Config{
		Address:    os.Getenv("KEYTURN_ADDR"),
		Token:      client.TokenEnv("KEYTURN_TOKEN"),
		CACertFile: os.Getenv("KEYTURN_CACERT"),
		Party:      client.Party{Labels: map[string]string{"cohort": "canary"}},
	}
	err := run(ctx, config, "dev/orders/db", connect)
	stop()
	if err != nil && !errors.Is(err, context.Canceled) {
		log.Fatal(err)
	}
}

// run opens the key and queries until ctx ends.
func run(ctx context.Context, config client.Config, name key.Name, connect sqlkey.OpenFunc) error {
	keys, err := client.Open(ctx, config, name)
	if err != nil {
		return fmt.Errorf("open the key: %w", err)
	}
	defer keys.Close() // it also tells the server that no rotation need wait for us
	connector := newConnector(keys.Key(name), connect)
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(4)
	return errors.Join(work(ctx, db, connector), db.Close())
}

func newConnector(handle *client.Handle, connect sqlkey.OpenFunc) *sqlkey.Connector {
	return sqlkey.New(handle, connect, sqlkey.Config{})
}

// connect logs in with one version. It is called for each new connection, and
// once to try a version before it becomes current.
func connect(_ context.Context, cred client.Credential) (driver.Connector, error) {
	config, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%s dbname=%s",
		cred.Attribute("host"), cred.Attribute("port"), cred.Attribute("database")))
	if err != nil {
		return nil, fmt.Errorf("the key's host, port and database make no address: %w", err)
	}
	config.User, config.Password = cred.Username(), cred.Password().RevealString()
	return stdlib.GetConnector(*config), nil
}

// work uses db as any application does: it knows nothing of keys.
func work(ctx context.Context, db *sql.DB, connector *sqlkey.Connector) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		var tables int
		if err := db.QueryRowContext(ctx, "SELECT count(*) FROM pg_tables").Scan(&tables); err != nil {
			return fmt.Errorf("query: %w", err)
		}
		log.Printf("%d tables; connections by version: %v", tables, connector.Versions())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
