package demo

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/sqlkey"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/provider"
)

const database = "orders"

// postgresTarget is a private PostgreSQL primary with a hot standby.
type postgresTarget struct {
	primary, standby *pgserver.Server
	passwordFile     string
}

func startPostgres(ctx context.Context, dir, bin string) (_ *postgresTarget, err error) {
	t := &postgresTarget{passwordFile: filepath.Join(dir, "rotator.password")}
	if t.primary, err = pgserver.Start(ctx, pgserver.Config{Bin: bin, Region: "eu"}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = t.primary.Close() // the first error counts
		}
	}()
	password := rand.Text()
	if err := os.WriteFile(t.passwordFile, []byte(password+"\n"), 0o600); err != nil {
		return nil, err
	}
	conn, err := pgx.Connect(ctx, t.primary.SuperuserURL("postgres"))
	if err != nil {
		return nil, err
	}
	for _, statement := range []string{
		"CREATE ROLE rotator LOGIN CREATEROLE PASSWORD '" + password + "'",
		"GRANT pg_signal_backend TO rotator",
		"GRANT pg_read_all_stats TO rotator",
		"CREATE DATABASE " + database,
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return nil, fmt.Errorf("prepare PostgreSQL: %w", err)
		}
	}
	if err := conn.Close(ctx); err != nil {
		return nil, err
	}
	t.standby, err = t.primary.StartReplica(ctx, "us")
	return t, err
}

func (*postgresTarget) name() string { return targetPostgres }

// drivers adds none: every server knows PostgreSQL.
func (*postgresTarget) drivers() map[string]provider.Driver { return nil }

func (t *postgresTarget) keyDocument() string {
	return fmt.Sprintf(`apiVersion: keyturn/v1
kind: Key
metadata: {name: %s, owner: team-orders}
spec:
  provider: postgres
  policy: demo
  config:
    admin: "postgres://rotator@%s/%s?sslmode=disable"
    adminPassword: {file: %q}
    strategy: alternating-users
    users: [orders_a, orders_b]
    region: eu
    replicas: [{host: %q, region: us}]
`, keyName, t.primary.Addr(), database, t.passwordFile, t.standby.Addr())
}

func (t *postgresTarget) close() error { return t.primary.Close() }

// user queries the server of the application's region.
func (t *postgresTarget) user(a *app) user {
	host := t.primary.Addr()
	if a.region == "us" {
		host = t.standby.Addr()
	}
	db := sql.OpenDB(sqlkey.New(a.handle, func(_ context.Context, cred client.Credential) (driver.Connector, error) {
		config, err := pgx.ParseConfig("postgres://" + host + "/" + database + "?sslmode=disable")
		if err != nil {
			return nil, err
		}
		config.User, config.Password = cred.Username(), cred.Password().RevealString()
		config.RuntimeParams["application_name"] = a.id
		return stdlib.GetConnector(*config), nil
	}, sqlkey.Config{}))
	db.SetMaxIdleConns(1)
	return &postgresUser{db: db}
}

// postgresUser queries, every second time on a connection of its own.
type postgresUser struct {
	db *sql.DB
	n  int
}

func (u *postgresUser) request(ctx context.Context) error {
	u.n++
	conn, err := u.db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	var who string
	err = conn.QueryRowContext(ctx, "SELECT session_user").Scan(&who)
	if err != nil {
		err = fmt.Errorf("query: %w", err)
	}
	if u.n%2 == 0 {
		// Close it for good, so that the next request has to log in.
		_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	}
	_ = conn.Close() // it is back in the pool, or gone
	return err
}

func (u *postgresUser) close() { _ = u.db.Close() } // nothing depends on it any more
