package server

import (
	"context"

	"github.com/keyturn/keyturn/internal/store"
)

// DumperOf is the store of a running server.
func DumperOf(s *Server) store.Dumper { return s.store.(store.Dumper) }

// Checkpoint signs the audit log.
func Checkpoint(ctx context.Context, s *Server) error {
	_, err := s.engine.Checkpoint(ctx)
	return err
}
