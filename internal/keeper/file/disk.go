package file

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"golang.org/x/sys/unix"
)

// maxSize bounds a key file, in bytes.
const maxSize = 1 << 20

// create writes a key file with one KEK unless there is one. Of several
// processes that start at once, one creates it and all use it.
func create(path string) error {
	if _, err := os.Lstat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err // what is there is judged when it is read
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("key file: create its folder: %w", err)
	}
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return fmt.Errorf("key file: generate a key: %w", err)
	}
	temporary, err := write(path, handle)
	if err != nil {
		return err
	}
	// A link, unlike a rename, never replaces anything.
	err = os.Link(temporary, path)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err := errors.Join(err, os.Remove(temporary)); err != nil {
		return fmt.Errorf("key file: create: %w", err)
	}
	return syncFolder(path)
}

// replace puts a new keyset in the place of the present one.
func replace(path string, handle *keyset.Handle) error {
	temporary, err := write(path, handle)
	if err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("key file: replace: %w", errors.Join(err, os.Remove(temporary)))
	}
	return syncFolder(path)
}

// write stores the keyset durably in a temporary file beside path, for the owner
// alone, and returns its name.
func write(path string, handle *keyset.Handle) (_ string, err error) {
	var content bytes.Buffer
	defer func() { clear(content.Bytes()) }()
	if err := insecurecleartextkeyset.Write(handle, keyset.NewJSONWriter(&content)); err != nil {
		return "", fmt.Errorf("key file: encode: %w", err)
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return "", fmt.Errorf("key file: create: %w", err)
	}
	_, err = file.Write(content.Bytes())
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return "", fmt.Errorf("key file: write: %w", errors.Join(err, os.Remove(file.Name())))
	}
	return file.Name(), nil
}

// syncFolder makes a change of names durable.
func syncFolder(path string) error {
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	if err := errors.Join(folder.Sync(), folder.Close()); err != nil {
		return fmt.Errorf("key file: flush its folder: %w", err)
	}
	return nil
}

// lock holds off other processes that would change the file. It locks the
// folder, because the file itself is replaced.
func lock(path string) (unlock func(), err error) {
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	for {
		err = unix.Flock(int(folder.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("key file: lock its folder: %w", errors.Join(err, folder.Close()))
	}
	return func() { _ = folder.Close() }, nil
}

// load reads the key file, if it is safe.
func load(path string) (*keys, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("key file: %w: %s is a symbolic link (name the file itself)", ErrPermissions, path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("key file: %w (without it the database cannot be read: restore it from its backup)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	defer func() { _ = file.Close() }()
	at, err := checkSafe(file)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(file, maxSize+1))
	defer func() { clear(content) }()
	if err != nil {
		return nil, fmt.Errorf("key file: read: %w", err)
	}
	if len(content) > maxSize {
		return nil, fmt.Errorf("key file: %w: %s is longer than %d bytes", ErrFormat, path, maxSize)
	}
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(content)))
	if err != nil {
		// The decoder's own error could quote the file.
		return nil, fmt.Errorf("key file: %w: %s is not a Tink keyset in JSON (restore it from its backup; do not delete it while the database is needed)", ErrFormat, path)
	}
	keys, err := inspect(handle)
	if err != nil {
		return nil, err
	}
	keys.file = at
	return keys, nil
}

// identity tells one file from another, or from itself before it was written to.
type identity struct {
	device, inode uint64
	size          int64
	modified      time.Time
}

func identityOf(stat *unix.Stat_t) identity {
	return identity{device: stat.Dev, inode: stat.Ino, size: stat.Size, modified: time.Unix(stat.Mtim.Unix())}
}

func identityAt(path string) (identity, error) {
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return identity{}, err
	}
	return identityOf(&stat), nil
}

// checkSafe refuses a file that others can read or replace.
func checkSafe(file *os.File) (identity, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return identity{}, fmt.Errorf("key file: %w", err)
	}
	at := identityOf(&stat)
	path := file.Name()
	switch {
	case stat.Mode&unix.S_IFMT != unix.S_IFREG:
		return identity{}, fmt.Errorf("key file: %w: %s is not a regular file", ErrPermissions, path)
	case int(stat.Uid) != os.Geteuid():
		return identity{}, fmt.Errorf("key file: %w: %s belongs to user %d, this process runs as %d (run: chown %d %s)", ErrPermissions, path, stat.Uid, os.Geteuid(), os.Geteuid(), path)
	case stat.Mode&0o077 != 0:
		return identity{}, fmt.Errorf("key file: %w: %s has mode %04o (find out who could read it, rotate the KEK if anybody did, then run: chmod 0600 %s)", ErrPermissions, path, stat.Mode&0o7777, path)
	}
	folder := filepath.Dir(path)
	if err := unix.Stat(folder, &stat); err != nil {
		return identity{}, fmt.Errorf("key file: %w", err)
	}
	if stat.Mode&0o002 != 0 && stat.Mode&unix.S_ISVTX == 0 {
		return identity{}, fmt.Errorf("key file: %w: everybody may write to its folder %s (run: chmod o-w %s)", ErrPermissions, folder, folder)
	}
	return at, nil
}
