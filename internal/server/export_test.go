package server

import (
	"context"
	"net/http"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/provider/jwks"
	"github.com/keyturn/keyturn/internal/rpc"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/provider"
)

// CloseStore takes the store away from a running server.
func CloseStore(s *Server) error { return s.store.Stop() }

// WithEffectTime returns the options with another bound of effects.
func WithEffectTime(o Options, d time.Duration) Options {
	o.effectTime = d
	return o
}

// MarkRestored notes in the store of a running server that it was put back now.
func MarkRestored(ctx context.Context, s *Server) error {
	return engine.MarkRestored(ctx, s.store, engine.RestoreRecord{At: s.clock.Now()})
}

// Dumper is the server's store.
func (s *Server) Dumper() store.Dumper { return s.store }

// Backups is what the API takes backups with.
func (s *Server) Backups() rpc.Backups { return backups{server: s, now: time.Now, version: "test"} }

// Signer signs tokens at this server node.
func (s *Server) Signer() *token.Signer { return s.tokens.signer }

// Board publishes signing keys at this server node.
func (s *Server) Board() *token.Board { return s.tokens.board }

// SigningKeys returns the provider of signing keys on a board.
func SigningKeys(b *token.Board, sets http.Handler, now func() time.Time) provider.Driver {
	return jwks.New(jwks.Config{Board: board{b}, Sets: sets, Now: now})
}
