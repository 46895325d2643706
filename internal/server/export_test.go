package server

import (
	"time"

	"github.com/keyturn/keyturn/internal/rpc"
	"github.com/keyturn/keyturn/internal/store"
)

// CloseStore takes the store away from a running server.
func CloseStore(s *Server) error { return s.store.Stop() }

// Dumper is the server's store.
func (s *Server) Dumper() store.Dumper { return s.store }

// Backups is what the API takes backups with.
func (s *Server) Backups() rpc.Backups { return backups{server: s, now: time.Now, version: "test"} }
