package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

// applicationID marks the files of Keyturn ("KTRN").
const applicationID = 0x4b54524e

// migrate brings the schema up to date, each step in a transaction of its own.
func (s *Store) migrate(ctx context.Context, db *sql.DB) error {
	var id, tables int
	if err := db.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id); err != nil {
		return s.fault("read the database's header", err)
	}
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' AND name <> 'goose_db_version'").Scan(&tables); err != nil {
		return s.fault("read the database's schema", err)
	}
	if id == movedID {
		moved := &MovedError{Path: s.path}
		if err := db.QueryRowContext(ctx, "SELECT move, destination FROM moves").Scan(&moved.Move, &moved.Destination); err != nil {
			return s.fault("read where the installation has moved to", err)
		}
		return moved
	}
	if id != applicationID && (id != 0 || tables > 0) {
		return fmt.Errorf("sqlite: %w: %s belongs to another program (choose another path)", ErrCorrupt, s.path)
	}
	folder, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("sqlite: read the embedded schema: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, folder,
		goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return fmt.Errorf("sqlite: read the embedded schema: %w", err)
	}
	present, known, err := provider.GetVersions(ctx)
	if err != nil {
		return s.fault("read the schema version", err)
	}
	if present > known {
		return fmt.Errorf("sqlite: %w: %s has schema %d, this program knows up to %d (run the newer version, or restore a backup made before the upgrade)", ErrNewer, s.path, present, known)
	}
	if _, err := provider.Up(ctx); err != nil {
		return s.fault("bring the schema up to date", err)
	}
	return nil
}
