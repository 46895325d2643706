package postgres

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	oldestServer = 15
	// migrateTries bounds how often a migration that had to give way to those at
	// work is repeated.
	migrateTries = 10
)

// migrate brings the schema up to date, each step in a transaction of its own.
// One node migrates at a time; the others wait for it. Every step begins by taking
// the commit lock, so that it meets no Update by halves; if Views keep it from a
// table for longer than lockTimeout, it gives way and tries again.
func migrate(ctx context.Context, s *settings, source fs.FS, mover bool) error {
	config, err := s.config(s.upkeep())
	if err != nil {
		return err
	}
	conn, err := s.connect(ctx, s.upkeep())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // its lock ends with it
	if err := suitable(ctx, conn); err != nil {
		return err
	}
	// The lock belongs to this session, so it ends with it, however it ends.
	if _, err := conn.Exec(ctx, "SET idle_session_timeout = 0; SET lock_timeout = 0"); err != nil {
		return fault("wait for the migration of another node", err)
	}
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1::integer, $2::integer)", lockClass, migrateLock); err != nil {
		return fault("wait for the migration of another node", err)
	}
	if _, err := conn.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+schema); err != nil {
		return fault("create the schema "+schema, err)
	}
	db := stdlib.OpenDB(*config)
	if err := errors.Join(migrateLocked(ctx, db, source), db.Close()); err != nil {
		return err
	}
	return checkArrived(ctx, conn, mover)
}

// migrateLocked takes the steps of a folder that are missing.
func migrateLocked(ctx context.Context, db *sql.DB, source fs.FS) error {
	folder, err := fs.Sub(source, "migrations")
	if err != nil {
		return fmt.Errorf("postgres: read the embedded schema: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, folder,
		goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return fmt.Errorf("postgres: read the embedded schema: %w", err)
	}
	present, known, err := provider.GetVersions(ctx)
	if err != nil {
		return fault("read the schema version", err)
	}
	if present > known {
		return fmt.Errorf("postgres: %w: the database has schema %d, this program knows up to %d (run the newer version, or restore a backup made before the upgrade)", ErrNewer, present, known)
	}
	for try := 1; ; try++ {
		_, err := provider.Up(ctx)
		if err == nil {
			return nil
		}
		if try == migrateTries || !mayPass(err) && stateOf(err) != lockNotAvailable {
			return fault("bring the schema up to date", err)
		}
		timer := time.NewTimer(time.Duration(try) * 100 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// suitable refuses servers and databases that the store cannot work with.
func suitable(ctx context.Context, conn *pgx.Conn) error {
	var version int
	var encoding string
	var foreign bool
	err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::integer / 10000, pg_encoding_to_char(encoding),
			EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind = 'r')
			AND NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = 'goose_db_version')
		FROM pg_database WHERE datname = current_database()`, schema).Scan(&version, &encoding, &foreign)
	switch {
	case err != nil:
		return fault("look at the database", err)
	case version < oldestServer:
		return fmt.Errorf("postgres: %w: the server is PostgreSQL %d (at least %d is needed)", ErrForeign, version, oldestServer)
	case encoding != "UTF8":
		return fmt.Errorf("postgres: %w: its encoding is %s (create one with: CREATE DATABASE keyturn ENCODING 'UTF8' TEMPLATE template0)", ErrForeign, encoding)
	case foreign:
		return fmt.Errorf("postgres: %w: its schema %s belongs to another program (choose another database)", ErrForeign, schema)
	}
	return nil
}
