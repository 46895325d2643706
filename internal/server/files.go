package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/datadir"
	"github.com/keyturn/keyturn/internal/identity"
	"github.com/keyturn/keyturn/secret"
)

// logSigner reads the audit log's signing key from the data folder, creating it
// on the first start. Keys that signed before are kept beside it by their owner.
func logSigner(dir, origin string, mustExist bool) (*audit.Signer, error) {
	path := filepath.Join(dir, "audit.key")
	content, err := datadir.ReadPrivate(path)
	if errors.Is(err, fs.ErrNotExist) && !mustExist {
		signing, _, err := audit.GenerateKey(rand.Reader, origin)
		if err != nil {
			return nil, err
		}
		if err := datadir.WriteNew(path, signing.Reveal(), 0o600); err != nil {
			return nil, fmt.Errorf("write the audit log's key: %w", err)
		}
		return audit.ParseSigner(signing)
	}
	if err != nil {
		return nil, fmt.Errorf("read the audit log's key: %w; it belongs to the database, so restore it from the backup", err)
	}
	signer, err := audit.ParseSigner(secret.New(content))
	if err != nil {
		return nil, fmt.Errorf("%s: %w; restore it from the backup", path, err)
	}
	if signer.Name() != origin {
		return nil, fmt.Errorf("%s signs for %q, and the configuration says logName: %s; make them agree", path, signer.Name(), origin)
	}
	return signer, nil
}

// rootToken issues a first admin token on the first start and leaves it in a
// file for whoever set the server up. It returns the file's path, empty later on.
func rootToken(ctx context.Context, registry *identity.Registry, dir string) (string, error) {
	path := filepath.Join(dir, "root.token")
	first, err := registry.Bootstrap(ctx, audit.Actor{ID: "keyturn", Kind: "server"}, func(token secret.Value) error {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("replace the first token: %w", err)
		}
		if err := datadir.WriteNew(path, append(token.Reveal(), '\n'), 0o600); err != nil {
			return fmt.Errorf("write the first token: %w", err)
		}
		return nil
	})
	if err != nil || !first {
		return "", err
	}
	return path, nil
}
