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
	"github.com/keyturn/keyturn/internal/identity"
	"github.com/keyturn/keyturn/secret"
)

// writeNew writes a file that must not exist yet, completely or not at all.
func writeNew(path string, content []byte, mode fs.FileMode) error {
	temp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(temp.Name()) }() // it is gone already when all went well
	err = errors.Join(temp.Chmod(mode), writeAll(temp, content), temp.Sync(), temp.Close())
	if err != nil {
		return err
	}
	if err := os.Link(temp.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func writeAll(f *os.File, content []byte) error {
	_, err := f.Write(content)
	return err
}

// readPrivate reads a file that only its owner may read.
func readPrivate(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %v); run: chmod 600 %s", path, info.Mode(), path)
	}
	return os.ReadFile(path)
}

// dataDir makes the data folder if it is missing, and refuses one in which others
// could replace files.
func dataDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("data folder %s: others may write to it (mode %v); run: chmod 700 %s", path, info.Mode().Perm(), path)
	}
	return nil
}

// missing reports whether there is no file yet; what cannot be told is an error.
func missing(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}

// logSigner reads the audit log's signing key from the data folder, creating it
// on the first start. Keys that signed before are kept beside it by their owner.
func logSigner(dir, origin string, mustExist bool) (*audit.Signer, error) {
	path := filepath.Join(dir, "audit.key")
	content, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) && !mustExist {
		signing, _, err := audit.GenerateKey(rand.Reader, origin)
		if err != nil {
			return nil, err
		}
		if err := writeNew(path, signing.Reveal(), 0o600); err != nil {
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
		if err := writeNew(path, append(token.Reveal(), '\n'), 0o600); err != nil {
			return fmt.Errorf("write the first token: %w", err)
		}
		return nil
	})
	if err != nil || !first {
		return "", err
	}
	return path, nil
}
