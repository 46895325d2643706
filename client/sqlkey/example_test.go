package sqlkey_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"log"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/sqlkey"
)

// PostgreSQL by way of pgx: everything but the credential is configured once.
func ExampleNew() {
	var keys *client.Keys // from client.Open
	cfg, err := pgx.ParseConfig("postgres://db.example:5432/orders")
	if err != nil {
		log.Fatal(err)
	}
	connector := sqlkey.New(keys.Key("prod/orders/db"), func(_ context.Context, cred client.Credential) (driver.Connector, error) {
		own := cfg.Copy()
		own.User, own.Password = cred.Username(), cred.Password().RevealString()
		return stdlib.GetConnector(*own), nil
	}, sqlkey.Config{})
	db := sql.OpenDB(connector)
	defer db.Close()
	// Use db as ever.
	if err := db.Ping(); err != nil {
		log.Print(err)
	}
}
