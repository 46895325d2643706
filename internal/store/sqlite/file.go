package sqlite

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// prepareFile creates the database file, and its folder, for the owner alone.
// A file that exists must not be open to others: it may have been read already,
// so it is refused rather than quietly closed.
func prepareFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("sqlite: create the database's folder: %w", err)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		return file.Close()
	}
	if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("sqlite: create the database: %w", err)
	}
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		info, err := os.Stat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return fmt.Errorf("sqlite: open the database: %w", err)
		case !info.Mode().IsRegular():
			return fmt.Errorf("sqlite: open the database: %s is not a regular file", name)
		case info.Mode().Perm()&0o077 != 0:
			return fmt.Errorf("sqlite: %w: %s has mode %04o (find out who could read it, then run: chmod 0600 %s)", ErrPermissions, name, info.Mode().Perm(), name)
		}
	}
	return nil
}

// lockFile takes the lock that keeps a second process out. It is a lock on a
// file of its own, because closing any descriptor of the database file would
// drop the POSIX locks that SQLite holds on it. The kernel releases it when the
// process ends, however it ends.
func lockFile(path string) (*os.File, error) {
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("sqlite: open the lock file: %w", err)
	}
	for {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err == nil {
		return lock, nil
	}
	_ = lock.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("sqlite: %w: %s (stop the other server, or give this one a database of its own)", ErrLocked, path)
	}
	return nil, fmt.Errorf("sqlite: lock %s: %w", lock.Name(), err)
}
