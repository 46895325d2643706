package execute

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/internal/agent/place"
	"github.com/keyturn/keyturn/secret"
)

const (
	// firstFD is the number of the first extra file in the program.
	firstFD = 3
	// shm is a file system in memory; directories of ours begin with shmPrefix.
	shm       = "/dev/shm"
	shmPrefix = "keyturn-exec-"
)

// memoryFile returns a sealed, anonymous file with the content: nobody, not even
// the program, can change it any more. It vanishes with its last reader.
func memoryFile(name string, content secret.Value) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("make the memory file for %s: memfd_create: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(content.Reveal()); err != nil {
		return nil, errors.Join(fmt.Errorf("write the memory file for %s: %w", name, err), f.Close())
	}
	if err := f.Chmod(0o400); err != nil {
		return nil, errors.Join(fmt.Errorf("set the mode of the memory file for %s: %w", name, err), f.Close())
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL); err != nil {
		return nil, errors.Join(fmt.Errorf("seal the memory file for %s: %w", name, err), f.Close())
	}
	return f, nil
}

// sharedDir is a private directory in memory whose files can be replaced while
// the program runs.
type sharedDir struct {
	path string
	lock *os.File
}

// newSharedDir makes a directory with mode 0700, and removes those of processes
// that were killed.
func newSharedDir() (*sharedDir, error) {
	removeLeftovers()
	for range 10 {
		path, err := os.MkdirTemp(shm, shmPrefix)
		if err != nil {
			return nil, fmt.Errorf("make a directory in memory: %w; files that change need %s, use --on-change restart without it", err, shm)
		}
		lock, err := lockDir(path)
		if err == nil {
			return &sharedDir{path: path, lock: lock}, nil
		}
		// Somebody took it for a leftover before it was locked.
	}
	return nil, fmt.Errorf("make a directory in %s: others remove it again and again", shm)
}

func lockDir(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		_, err = os.Lstat(path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// removeLeftovers removes our directories that nobody holds. What fails is left
// for the next time.
func removeLeftovers() {
	entries, err := os.ReadDir(shm)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), shmPrefix) {
			continue
		}
		path := filepath.Join(shm, e.Name())
		if lock, err := lockDir(path); err == nil {
			_ = os.RemoveAll(path)
			lock.Close()
		}
	}
}

func (d *sharedDir) file(name string) string { return filepath.Join(d.path, name) }

// put replaces a file, atomically.
func (d *sharedDir) put(name string, content secret.Value) error {
	st, err := place.Stage(place.Spec{Path: d.file(name), Mode: 0o600, UID: -1, GID: -1}, content)
	if err != nil {
		return err
	}
	return errors.Join(st.Commit(), st.Release())
}

func (d *sharedDir) remove() error {
	return errors.Join(os.RemoveAll(d.path), d.lock.Close())
}
