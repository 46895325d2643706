// Package datadir keeps files in the folder of one process.
//
// It guarantees that a folder in which others could replace files is refused, that
// a file is written completely or not at all and never over another, that one with
// a secret is refused when others can read it, and that what cannot be told about a
// file is an error. Errors name the path and say what to do; those of the system
// are wrapped. It may be used concurrently.
package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Make makes the folder if it is missing, for its owner alone, and refuses one that
// others may write to.
func Make(path string) error {
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

// Missing reports whether there is no file yet; what cannot be told is an error.
func Missing(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}

// ReadPrivate reads a regular file that only its owner may read. One that is not
// there is fs.ErrNotExist.
func ReadPrivate(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %v); run: chmod 600 %s", path, info.Mode(), path)
	}
	return os.ReadFile(path)
}

// WriteNew writes a file that must not exist yet, else it is fs.ErrExist. When it
// returns nil, the file outlasts a crash of the machine.
func WriteNew(path string, content []byte, mode fs.FileMode) error {
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
