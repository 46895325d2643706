package sqlite

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
	driver "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"github.com/keyturn/keyturn/internal/store"
)

var (
	// ErrLocked: another process has the database open.
	ErrLocked = errors.New("database is in use by another process")
	// ErrCorrupt: the file is damaged, or is not a database of Keyturn.
	ErrCorrupt = errors.New("database file is damaged")
	// ErrPermissions: the file could be read by other users.
	ErrPermissions = errors.New("database file is open to other users")
	// ErrMoved: the installation is in another database now; see MovedError.
	ErrMoved = errors.New("the installation has moved")
	// ErrNewer: the file was written by a newer Keyturn.
	ErrNewer = errors.New("database was written by a newer version")
)

// fault turns an error of SQLite into one that says what to do about it. doing
// says what was attempted, as in "read document".
func (s *Store) fault(doing string, err error) error {
	if err == nil {
		return nil
	}
	var sqliteError *driver.Error
	if !errors.As(err, &sqliteError) {
		return fmt.Errorf("sqlite: %s: %w", doing, err)
	}
	switch sqliteError.Code() & 0xff {
	case lib.SQLITE_FULL:
		return s.full(doing, err)
	case lib.SQLITE_IOERR:
		if s.diskFull() {
			return s.full(doing, err)
		}
		return fmt.Errorf("sqlite: %s: %w (the disk under %s failed; nothing was committed; look at the kernel log)", doing, err, s.path)
	case lib.SQLITE_CORRUPT, lib.SQLITE_NOTADB:
		return fmt.Errorf("sqlite: %s: %w: %s: %w (stop the server, keep the file and its -wal for analysis, restore the latest backup)", doing, ErrCorrupt, s.path, err)
	case lib.SQLITE_BUSY:
		return fmt.Errorf("sqlite: %s: %w: %s: %w (another program holds a lock; close it)", doing, ErrLocked, s.path, err)
	}
	return fmt.Errorf("sqlite: %s: %w", doing, err)
}

func (s *Store) full(doing string, err error) error {
	return fmt.Errorf("sqlite: %s: %w: %s: %w (nothing was written; free space or raise the quota, then repeat)", doing, store.ErrFull, s.path, err)
}

// diskFull reports whether the file system has no room: SQLite reports some
// failures to grow a file, such as its shared memory, as plain IO errors.
func (s *Store) diskFull() bool {
	var stat unix.Statfs_t
	if err := unix.Statfs(s.path, &stat); err != nil {
		return false
	}
	const room = 64 << 10 // bytes: a few pages of the log and of the shared memory
	return stat.Bavail*uint64(stat.Bsize) < room || (stat.Files > 0 && stat.Ffree == 0)
}
