// Package pgxkey lets a pool of pgx (pgxpool) log in with a key whose versions
// change. For database/sql use package sqlkey.
//
// Guarantees: a new connection logs in with the current version; a connection
// of another version is never closed while it is in use, is discarded when it is
// given back, and, once Follow runs, is closed at once when it is idle.
//
//	cfg, err := pgxpool.ParseConfig("postgres://db.example/orders")
//	…
//	hooks := pgxkey.New(keys.Key("prod/orders/db"))
//	cfg.BeforeConnect = hooks.BeforeConnect
//	cfg.AfterRelease = hooks.AfterRelease
//	pool, err := pgxpool.NewWithConfig(ctx, cfg)
//	…
//	defer hooks.Follow(pool)()
package pgxkey

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/key"
)

// versionKey is where a connection's CustomData holds its version.
const versionKey = "keyturn.version"

// Hooks are functions for the fields of the same names in pgxpool.Config. They
// are safe for concurrent use.
type Hooks struct{ handle *client.Handle }

// New returns hooks for the key that handle holds. Its credential must have the
// fields "username" and "password".
func New(handle *client.Handle) *Hooks { return &Hooks{handle: handle} }

// BeforeConnect puts the current version into the configuration of a new
// connection. It returns an error when a field is missing.
func (h *Hooks) BeforeConnect(_ context.Context, cfg *pgx.ConnConfig) error {
	cred := h.handle.Current()
	if cred.Username() == "" || cred.Password().Len() == 0 {
		return fmt.Errorf("key %s %s lacks the attribute %q or the secret %q", cred.Key, cred.Version, client.FieldUsername, client.FieldPassword)
	}
	cfg.User, cfg.Password = cred.Username(), cred.Password().RevealString()
	// The configuration is a copy of the pool's, made for this one connection; the
	// wrapper tells the version apart even if it changes during the log-in.
	validate := cfg.ValidateConnect
	cfg.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		conn.CustomData()[versionKey] = cred.Version
		h.handle.RecordUse(cred.Version, client.UseSucceeded)
		if validate != nil {
			return validate(ctx, conn)
		}
		return nil
	}
	failed := cfg.OnPgError
	cfg.OnPgError = func(conn *pgconn.PgConn, err *pgconn.PgError) bool {
		if Refused(err) {
			h.handle.RecordUse(cred.Version, client.UseRefused)
			h.handle.Refresh()
		}
		if failed != nil {
			return failed(conn, err)
		}
		return err.Severity != "FATAL"
	}
	return nil
}

// AfterRelease tells the pool to discard a connection of another version.
func (h *Hooks) AfterRelease(conn *pgx.Conn) bool {
	version, known := conn.PgConn().CustomData()[versionKey].(key.Version)
	return known && version == h.handle.Current().Version
}

// Follow closes the pool's idle connections at each change; those in use are
// closed when they are given back. stop ends it.
func (h *Hooks) Follow(pool interface{ Reset() }) (stop func()) {
	changes, unsubscribe := h.handle.Changes()
	var group sync.WaitGroup
	group.Go(func() {
		for range changes {
			pool.Reset()
		}
	})
	return func() {
		unsubscribe()
		group.Wait()
	}
}

// Probe returns an applier for Handle.OnApply: a new version becomes current
// only after a log-in with it has succeeded. cfg says where; its user and
// password are replaced.
func Probe(cfg *pgx.ConnConfig) client.Applier {
	return func(ctx context.Context, next client.Credential) error {
		own := cfg.Copy()
		own.User, own.Password = next.Username(), next.Password().RevealString()
		conn, err := pgx.ConnectConfig(ctx, own)
		if err != nil {
			return fmt.Errorf("log in with key %s %s: %w", next.Key, next.Version, err)
		}
		defer func() { _ = conn.Close(ctx) }()
		return conn.Ping(ctx)
	}
}

// Refused reports whether err means that PostgreSQL refused the credential
// (SQLSTATE class 28).
func Refused(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && len(pg.Code) == 5 && pg.Code[:2] == "28"
}
