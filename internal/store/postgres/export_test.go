package postgres

import (
	"context"
	"errors"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/keyturn/keyturn/internal/store"
)

// Die stops showing life, as a process that was killed does.
func (s *Store) Die() {
	s.stop()
	s.background.Wait()
}

// ConnectAsStore returns a connection with the settings of those that write.
func ConnectAsStore(ctx context.Context, url string) (*pgx.Conn, error) {
	settings, err := newSettings(Config{URL: url}, "test")
	if err != nil {
		return nil, err
	}
	return settings.connect(ctx, settings.writing())
}

// Migrations are the steps.
func Migrations() fs.FS { return migrations }

// MigrateWith takes the steps of a folder, up to a version; 0 means all.
func MigrateWith(ctx context.Context, url string, source fs.FS, to int64) (err error) {
	settings, err := newSettings(Config{URL: url}, "test")
	if err != nil {
		return err
	}
	if to == 0 {
		return migrate(ctx, settings, source, false)
	}
	config, err := settings.config(settings.upkeep())
	if err != nil {
		return err
	}
	db := stdlib.OpenDB(*config)
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS "+schema); err != nil {
		return err
	}
	folder, err := fs.Sub(source, "migrations")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, folder, goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	_, err = provider.UpTo(ctx, to)
	return err
}

// LoadInto copies the rows of a store into a database, whatever its schema.
func LoadInto(ctx context.Context, url string, from store.Dumper) error {
	conn, err := ConnectAsStore(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := load(ctx, tx, from)
		return err
	})
}
