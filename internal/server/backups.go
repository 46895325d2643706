package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/keyturn/keyturn/internal/backup"
	"github.com/keyturn/keyturn/internal/rpc"
)

// backups implements rpc.Backups on the server's store.
type backups struct {
	server  *Server
	now     func() time.Time
	version string
}

// Begin implements rpc.Backups.
func (b backups) Begin(ctx context.Context) (context.Context, func(), error) {
	node := b.server.Address()
	if host, err := os.Hostname(); err == nil {
		node = host + " (" + node + ")"
	}
	turn, end, err := backup.TakeTurn(ctx, b.server.store, b.now, node)
	if errors.Is(err, backup.ErrTaken) {
		err = fmt.Errorf("%w: %w", rpc.ErrBackupRuns, err)
	}
	return turn, end, err
}

// Check implements rpc.Backups.
func (b backups) Check(recipients []string) error {
	_, err := backup.ParseRecipients(recipients)
	return err
}

// Write implements rpc.Backups.
func (b backups) Write(ctx context.Context, w io.Writer, recipients []string) (rpc.BackupManifest, error) {
	// All but the last moments of the log in it can be proved then.
	if _, err := b.server.engine.Checkpoint(ctx); err != nil {
		return rpc.BackupManifest{}, fmt.Errorf("back up: %w", err)
	}
	manifest, err := backup.Write(ctx, w, b.server.store, backup.Config{
		Recipients: recipients, Log: b.server.signer.Name(), Version: b.version, Now: b.now(),
	})
	if err != nil {
		return rpc.BackupManifest{}, fmt.Errorf("back up: %w", err)
	}
	return rpc.BackupManifest{Created: manifest.Time, Rows: manifest.Rows(), LogSize: manifest.Log.Size}, nil
}
