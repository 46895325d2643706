// Package place puts secret files where applications read them.
//
// Guarantees:
//   - A reader sees the old content or the new one, never a part, never none.
//   - The owner and the mode are right before the first byte of content exists.
//   - After Commit has returned, the new file survives a power failure.
//   - When anything fails, a full disk included, the old file is as it was.
//   - The previous file can be restored without writing, so also on a full disk.
//   - A symbolic link, directory or device at the path is never replaced or followed.
//
// Linux only. Extended attributes and ACLs are not carried over.
package place

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/keyturn/keyturn/secret"
)

// MaxSize is the largest file that Read returns, in bytes.
const MaxSize = 16 << 20

var (
	// ErrUnsafe: the place must be changed by an operator before a secret may go there.
	ErrUnsafe = errors.New("unsafe place for a secret file")
	// ErrNotExist: there is no file at the path.
	ErrNotExist = fs.ErrNotExist
)

// Spec says where a file goes and to whom it belongs.
type Spec struct {
	// Path is absolute. Its directory must exist.
	Path string
	// Mode holds permission bits only.
	Mode fs.FileMode
	// UID and GID are the owner and the group; -1 leaves the process's own.
	UID, GID int
}

func (s Spec) base() string { return filepath.Base(s.Path) }

// prefix begins the names of our temporary files for this path.
func (s Spec) prefix() string {
	sum := sha256.Sum256([]byte(s.base()))
	return ".keyturn-" + hex.EncodeToString(sum[:6]) + "-"
}

// open returns the directory of the path after checking it.
func (s Spec) open() (*os.Root, error) {
	dir := filepath.Dir(s.Path)
	root, err := os.OpenRoot(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: directory %s does not exist; create it first: install -d -m 0750 %s", ErrUnsafe, dir, dir)
		}
		return nil, fmt.Errorf("open directory %s: %w", dir, err)
	}
	if err := s.check(root, dir); err != nil {
		root.Close()
		return nil, err
	}
	return root, nil
}

func (s Spec) check(root *os.Root, dir string) error {
	info, err := root.Stat(".")
	if err != nil {
		return fmt.Errorf("look at directory %s: %w", dir, err)
	}
	if info.Mode()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("%w: directory %s may be written by everybody (mode %v), who could replace the file; chmod o-w %s", ErrUnsafe, dir, info.Mode().Perm(), dir)
	}
	file, err := root.Lstat(s.base())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at %s: %w", s.Path, err)
	case file.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("%w: %s is a symbolic link, which is neither followed nor replaced; name the file that it points to, or remove the link", ErrUnsafe, s.Path)
	case !file.Mode().IsRegular():
		return fmt.Errorf("%w: %s is no regular file (%v); choose another path", ErrUnsafe, s.Path, file.Mode().Type())
	}
	return nil
}

// Check reports whether a file may be put at the path. The error wraps ErrUnsafe
// when the place is wrong, and says how to mend it.
func Check(s Spec) error {
	root, err := s.open()
	if err != nil {
		return err
	}
	return root.Close()
}

// Read returns the content at the path. The error is ErrNotExist when there is
// no file, and wraps ErrUnsafe as Check does.
func Read(s Spec) (secret.Value, error) {
	root, err := s.open()
	if err != nil {
		return secret.Value{}, err
	}
	defer root.Close()
	f, err := root.OpenFile(s.base(), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return secret.Value{}, ErrNotExist
	}
	if err != nil {
		return secret.Value{}, fmt.Errorf("read %s: %w", s.Path, err)
	}
	defer f.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, io.LimitReader(f, MaxSize+1)); err != nil {
		return secret.Value{}, fmt.Errorf("read %s: %w", s.Path, err)
	}
	if b.Len() > MaxSize {
		return secret.Value{}, fmt.Errorf("%w: %s has more than %d bytes, which no rendering has; choose another path", ErrUnsafe, s.Path, MaxSize)
	}
	v := secret.New(b.Bytes())
	clear(b.Bytes())
	return v, nil
}

// Repair gives the file at the path the owner and mode of s, without changing
// its content, and reports whether anything was wrong.
func Repair(s Spec) (changed bool, err error) {
	root, err := s.open()
	if err != nil {
		return false, err
	}
	defer root.Close()
	info, err := root.Lstat(s.base())
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", s.Path, err)
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	sameOwner := !ok || (s.UID < 0 || uint32(s.UID) == owner.Uid) && (s.GID < 0 || uint32(s.GID) == owner.Gid)
	if sameOwner && info.Mode().Perm() == s.Mode.Perm() {
		return false, nil
	}
	f, err := root.OpenFile(s.base(), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false, fmt.Errorf("open %s: %w", s.Path, err)
	}
	defer f.Close()
	if err := s.own(f); err != nil {
		return false, err
	}
	return true, nil
}

// Clean removes temporary files that a crash left beside the path.
func Clean(s Spec) error {
	root, err := s.open()
	if err != nil {
		return err
	}
	defer root.Close()
	d, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("open directory of %s: %w", s.Path, err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list directory of %s: %w", s.Path, err)
	}
	for _, name := range names {
		if !strings.HasPrefix(name, s.prefix()) {
			continue
		}
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the leftover %s beside %s: %w", name, s.Path, err)
		}
	}
	return nil
}

// own sets owner, then mode: chown(2) may clear mode bits.
func (s Spec) own(f *os.File) error {
	if s.UID >= 0 || s.GID >= 0 {
		if err := f.Chown(s.UID, s.GID); err != nil {
			return fmt.Errorf("give %s to user %d, group %d: %w; run the agent as root or with CAP_CHOWN, or leave owner and group out", s.Path, s.UID, s.GID, err)
		}
	}
	if err := f.Chmod(s.Mode.Perm()); err != nil {
		return fmt.Errorf("set mode %v of %s: %w", s.Mode.Perm(), s.Path, err)
	}
	return nil
}

func (s Spec) temporaryName() string {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails since Go 1.24
	return s.prefix() + hex.EncodeToString(random[:])
}
