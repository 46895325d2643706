package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/keyturn/keyturn/internal/audit"
)

// seenFile holds the last signed checkpoint of the audit log that this node stored.
// It is written after the store has it, so that the store is never behind it,
// unless it was put back to an earlier state.
const seenFile = "log.seen"

// maxSeen bounds the file, in bytes.
const maxSeen = 64 << 10

// recover makes every key stand still when the store was put back.
func (s *Server) recover(ctx context.Context) error {
	seen, err := s.readSeen()
	if err != nil {
		s.log.WarnContext(ctx, "what this node saw last of the audit log cannot be read; whether the store was put back is not known", "error", err)
	}
	if err := s.engine.Recover(ctx, seen); err != nil {
		return fmt.Errorf("the store was put back to an earlier state, and its keys could not be made to stand still: %w; start the server again", err)
	}
	return nil
}

// readSeen returns nil when there is no file: a new node has seen nothing.
func (s *Server) readSeen() (*audit.Checkpoint, error) {
	path := filepath.Join(s.config.DataDir, seenFile)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSeen {
		return nil, fmt.Errorf("%s is no signed checkpoint", path)
	}
	signed, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	verifier, err := audit.ParseVerifier(s.signer.VerifierKey())
	if err != nil {
		return nil, err
	}
	checkpoint, err := audit.OpenCheckpoint(signed, verifier)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &checkpoint, nil
}

// keepSeen replaces the file. It need not survive a loss of power: an older
// checkpoint is as true as the last one.
func (s *Server) keepSeen(signed []byte) {
	path := filepath.Join(s.config.DataDir, seenFile)
	temp := path + ".new"
	err := os.WriteFile(temp, signed, 0o600)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		s.log.Warn("what was seen of the audit log could not be noted; if the store is put back, this node may not notice", "error", err)
	}
}
