package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/postgres"
	"github.com/keyturn/keyturn/internal/store/sqlite"
)

// ErrMove is wrapped by errors that say why an installation cannot be moved.
var ErrMove = errors.New("cannot move the installation")

// MoveReport is what Move has done and proved.
type MoveReport struct {
	Source      string      `json:"source"`
	Destination string      `json:"destination"`
	Tables      []MoveTable `json:"tables"`
	// Entries is the number of entries of the audit log that were verified at the
	// destination, Proven how many of them a signed checkpoint covers.
	Entries uint64 `json:"entries"`
	Proven  uint64 `json:"proven"`
	// Before says that the move had been finished before; then the rest is empty.
	Before bool `json:"before"`
}

// MoveTable compares one table.
type MoveTable struct {
	Name        string `json:"name"`
	Source      int64  `json:"source"`
	Destination int64  `json:"destination"`
	SHA256      string `json:"sha256"`
}

// Move moves an installation from the SQLite file in the data folder to the
// PostgreSQL database of the configuration, and proves that both hold the same.
// The file is marked, so that no server opens it again. Repeating Move after it
// was cut off at any point finishes it; both stores are whole at every point, and
// at most one of them can be used by a server.
func Move(ctx context.Context, config Config) (*MoveReport, error) {
	if err := config.complete(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if config.Store.Postgres == nil {
		return nil, fmt.Errorf("%w: the configuration names no store.postgres to move to", ErrMove)
	}
	path := filepath.Join(config.DataDir, "keyturn.db")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no %s; name the folder of the server to be moved as dataDir", ErrMove, path)
	}
	signer, err := logSigner(config.DataDir, config.LogName, true)
	if err != nil {
		return nil, err
	}
	p := config.Store.Postgres
	destination, err := postgres.Open(ctx, postgres.Config{URL: p.URL, PasswordFile: p.PasswordFile, Mover: true})
	if err != nil {
		return nil, err
	}
	report, err := move(ctx, path, destination, signer)
	return report, errors.Join(err, destination.Stop())
}

func move(ctx context.Context, path string, destination *postgres.Store, signer *audit.Signer) (*MoveReport, error) {
	arrived, found, err := destination.Moved(ctx)
	if err != nil {
		return nil, err
	}
	report := &MoveReport{Source: path, Destination: destination.Place()}
	source, err := sqlite.Open(ctx, sqlite.Config{Path: path})
	var moved *sqlite.MovedError
	if errors.As(err, &moved) {
		if !found || arrived.ID != moved.Move {
			return nil, fmt.Errorf("%w: %w", ErrMove, err)
		}
		report.Before = arrived.Done
		return report, destination.FinishMove(ctx, arrived.ID)
	}
	if err != nil {
		return nil, err
	}
	id, err := copyStore(ctx, report, source, destination, signer, arrived, found)
	if err == nil {
		// From here on the file is of no use, and the database not yet.
		err = source.MarkMoved(ctx, id, report.Destination)
	}
	if err := errors.Join(err, source.Stop()); err != nil {
		return nil, err
	}
	return report, destination.FinishMove(ctx, id)
}

// copyStore brings everything to the destination, unless it is there already, and
// compares. It returns the name of the move.
func copyStore(ctx context.Context, report *MoveReport, source *sqlite.Store, destination *postgres.Store, signer *audit.Signer, arrived postgres.Move, found bool) (string, error) {
	verifier, err := note.NewVerifier(signer.VerifierKey())
	if err != nil {
		return "", err
	}
	if _, err := engine.VerifyLogOf(ctx, source, verifier); err != nil {
		return "", fmt.Errorf("%w: the audit log of %s: %w", ErrMove, report.Source, err)
	}
	if !found {
		arrived = postgres.Move{ID: rand.Text(), Source: report.Source}
		if _, err := destination.Receive(ctx, arrived, source); err != nil {
			return "", fmt.Errorf("%w: %w", ErrMove, err)
		}
	}
	sent, err := store.DigestOf(ctx, source)
	if err != nil {
		return "", err
	}
	got, err := store.DigestOf(ctx, destination)
	if err != nil {
		return "", err
	}
	if difference := sent.Difference(got); difference != "" {
		return "", fmt.Errorf("%w: %s holds another installation, moved from %s: %s; name another database, or empty it by DROP SCHEMA keyturn CASCADE",
			ErrMove, report.Destination, arrived.Source, difference)
	}
	for _, table := range store.Tables() {
		a, b := sent[table.Name], got[table.Name]
		report.Tables = append(report.Tables, MoveTable{Name: table.Name, Source: a.Rows, Destination: b.Rows, SHA256: hex.EncodeToString(b.Hash[:])})
	}
	verified, err := engine.VerifyLogOf(ctx, destination, verifier)
	if err != nil {
		return "", fmt.Errorf("%w: the audit log at %s: %w", ErrMove, report.Destination, err)
	}
	report.Entries, report.Proven = verified.Entries, verified.Proven
	return arrived.ID, nil
}
