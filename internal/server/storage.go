package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/keyturn/keyturn/internal/datadir"
	"github.com/keyturn/keyturn/internal/keeper/file"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/postgres"
	"github.com/keyturn/keyturn/internal/store/sqlite"
)

// storage is a store that this process has opened.
type storage interface {
	store.Store
	store.Dumper
	// Stop waits for what is under way. Repeating it returns the same error.
	Stop() error
}

// ErrForeignKeys: the keys in the data folder are not those that the store was
// made with.
var ErrForeignKeys = errors.New("the data folder holds keys of another installation")

// open opens the store and the keys that belong to it: those that encrypt, and
// the one that signs the audit log.
func (s *Server) open(ctx context.Context) (*file.Keeper, error) {
	if s.config.Store.Postgres == nil {
		// The keys come before the database: a start that is cut short in between is
		// repeated, and a database without keys is never a new one.
		database := filepath.Join(s.config.DataDir, "keyturn.db")
		first, err := datadir.Missing(database)
		if err != nil {
			return nil, err
		}
		if first {
			// Nor is one that is being restored.
			if first, err = datadir.Missing(database + sqlite.Restoring); err != nil {
				return nil, err
			}
		}
		keys, err := s.openKeys(first)
		if err != nil {
			return nil, err
		}
		if s.store, err = sqlite.Open(ctx, sqlite.Config{Path: database}); err != nil {
			return nil, err
		}
		return keys, s.stopUnless(s.claimKeys(ctx, keys))
	}
	config := s.config.Store.Postgres
	var err error
	s.store, err = postgres.Open(ctx, postgres.Config{URL: config.URL, PasswordFile: config.PasswordFile, Connections: config.Connections})
	if err != nil {
		return nil, err
	}
	first, err := unused(ctx, s.store)
	if err != nil {
		return nil, s.stopUnless(err)
	}
	keys, err := s.openKeys(first)
	if err == nil {
		err = s.claimKeys(ctx, keys)
	}
	return keys, s.stopUnless(err)
}

// stopUnless stops the store when there is an error, which it returns.
func (s *Server) stopUnless(err error) error {
	if err == nil {
		return nil
	}
	return errors.Join(err, s.store.Stop())
}

func (s *Server) openKeys(first bool) (*file.Keeper, error) {
	keys, err := file.Open(file.Config{Path: s.config.Keeper.File, MustExist: !first})
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	s.signer, err = logSigner(s.config.DataDir, s.config.LogName, !first)
	return keys, err
}

// The document that says which keys belong to the store.
const (
	kindOfInstallation = "installation"
	nameOfKeys         = "keys"
)

// keysDocument names keys; none of it is secret.
type keysDocument struct {
	// KEK is the ID of the key-encryption key that seals.
	KEK string `json:"kek"`
	// Log is the public key of the audit log.
	Log string `json:"log"`
}

// unused reports whether no server has used the store yet.
func unused(ctx context.Context, s store.Store) (unused bool, err error) {
	err = s.View(ctx, func(tx store.Tx) error {
		_, err := tx.Docs.Get(ctx, kindOfInstallation, nameOfKeys)
		if err == nil || !errors.Is(err, store.ErrNotFound) {
			return err
		}
		_, size, err := tx.Log.Records(ctx, 0, 1) // whatever is done is logged
		unused = size == 0
		return err
	})
	return unused, err
}

// claimKeys notes the keys in a store that knows none, and else refuses those of
// another installation: two servers that share a store must share the keys, and a
// folder beside the wrong database would seal what nobody can open.
func (s *Server) claimKeys(ctx context.Context, keys *file.Keeper) error {
	mine := keysDocument{KEK: keys.Primary(), Log: s.signer.VerifierKey()}
	body, err := json.Marshal(mine)
	if err != nil {
		return err
	}
	return s.store.Update(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindOfInstallation, nameOfKeys)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if err == nil {
			var theirs keysDocument
			if err := json.Unmarshal(doc.Body, &theirs); err != nil {
				return fmt.Errorf("the store's note of its keys: %w", err)
			}
			if err := s.sameKeys(keys, theirs); err != nil || theirs == mine {
				return err
			}
		}
		// The key-encryption key was rotated, or there was no note yet.
		_, err = tx.Docs.Put(ctx, store.Doc{Kind: kindOfInstallation, Name: nameOfKeys, Rev: doc.Rev, Body: body})
		return err
	})
}

func (s *Server) sameKeys(keys *file.Keeper, theirs keysDocument) error {
	const mend = "copy kek.json, audit.key, ca.pem and ca.key from the data folder of a server that uses this store, or name another store"
	if log := s.signer.VerifierKey(); log != theirs.Log {
		return fmt.Errorf("%w: %s signs as %s, and the store's log is signed by %s; %s",
			ErrForeignKeys, filepath.Join(s.config.DataDir, "audit.key"), log, theirs.Log, mend)
	}
	if !slices.Contains(keys.KEKs(), theirs.KEK) {
		return fmt.Errorf("%w: %s lacks the key-encryption key %s; %s", ErrForeignKeys, s.config.Keeper.File, theirs.KEK, mend)
	}
	return nil
}
