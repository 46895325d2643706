package server

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/backup"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/keeper/file"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/postgres"
	"github.com/keyturn/keyturn/internal/store/sqlite"
)

// ErrRestore is wrapped by errors that say why a backup cannot be restored.
var ErrRestore = errors.New("cannot restore the backup")

// RestoreOptions say what to restore.
type RestoreOptions struct {
	// File is the path of the backup.
	File string
	// Identities open it; one of them suffices.
	Identities []age.Identity
	// Earlier are keys that signed its audit log before the one in the data folder.
	Earlier []note.Verifier
	// Now is the present time. Required.
	Now time.Time
}

// RestoreReport is what Restore has done and proved.
type RestoreReport struct {
	Destination string          `json:"destination"`
	Manifest    backup.Manifest `json:"manifest"`
	Log         backup.Report   `json:"log"`
}

// Restore makes the store that the configuration names from a backup, which it
// verifies first. The keys in the data folder must be those of the backup, and
// the store empty. It is marked, so that the server that starts on it makes every
// key stand still until it is reconciled. A restore that was cut off at any point
// leaves a store that no server starts on; repeating it finishes it.
func Restore(ctx context.Context, config Config, options RestoreOptions) (*RestoreReport, error) {
	if err := config.complete(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	s := &Server{config: config}
	keys, err := file.Open(file.Config{Path: config.Keeper.File, MustExist: true})
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	if s.signer, err = logSigner(config.DataDir, config.LogName, true); err != nil {
		return nil, err
	}
	verifier, err := audit.ParseVerifier(s.signer.VerifierKey())
	if err != nil {
		return nil, err
	}
	from, err := os.Open(options.File)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRestore, err)
	}
	defer from.Close()
	report := &RestoreReport{}
	report.Manifest, report.Log, err = backup.Verify(ctx, from, options.Identities, append([]note.Verifier{verifier}, options.Earlier...)...)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrRestore, options.File, err)
	}
	if report.Manifest.Keys == (backup.Keys{}) {
		return nil, fmt.Errorf("%w: %s is of a store that no server has used", ErrRestore, options.File)
	}
	if err := s.sameKeys(keys, keysDocument(report.Manifest.Keys)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRestore, err)
	}
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRestore, err)
	}
	reader, err := backup.Open(from, options.Identities...)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrRestore, options.File, err)
	}
	finish := func(restored store.Store) error {
		if reader.Manifest().Format != 0 && !reflect.DeepEqual(reader.Manifest(), report.Manifest) {
			return fmt.Errorf("%s was changed while it was read", options.File)
		}
		return engine.MarkRestored(ctx, restored, engine.RestoreRecord{
			At: options.Now, Reason: "restored from the backup of " + report.Manifest.Time.Format(time.RFC3339),
		})
	}
	if config.Store.Postgres == nil {
		report.Destination = filepath.Join(config.DataDir, "keyturn.db")
		err = sqlite.Restore(ctx, report.Destination, reader, finish)
	} else {
		report.Destination, err = restoreToPostgres(ctx, config.Store.Postgres, reader, report.Manifest, finish)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRestore, err)
	}
	return report, nil
}

// restoreToPostgres moves the backup into the database, as if it were a store.
func restoreToPostgres(ctx context.Context, config *PostgresConfig, reader *backup.Reader, manifest backup.Manifest, finish func(store.Store) error) (place string, err error) {
	body, err := json.Marshal(manifest)
	if err != nil {
		return "", err
	}
	move := postgres.Move{
		ID:     fmt.Sprintf("restore-%x", sha256.Sum256(body)),
		Source: "the backup of " + manifest.Time.Format(time.RFC3339),
	}
	destination, err := postgres.Open(ctx, postgres.Config{URL: config.URL, PasswordFile: config.PasswordFile, Mover: true})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, destination.Stop()) }()
	place = destination.Place()
	arrived, found, err := destination.Moved(ctx)
	switch {
	case err != nil:
		return "", err
	case !found:
		if _, err := destination.Receive(ctx, move, reader); err != nil {
			return "", err
		}
	case arrived.ID != move.ID || arrived.Done:
		return "", fmt.Errorf("%w: %s has come from %s (name another database; one that is given up is emptied by: DROP SCHEMA keyturn CASCADE)",
			postgres.ErrNotEmpty, place, arrived.Source)
	}
	if err := finish(destination); err != nil {
		return "", err
	}
	return place, destination.FinishMove(ctx, move.ID)
}
