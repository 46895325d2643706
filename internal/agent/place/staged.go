package place

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/keyturn/keyturn/secret"
)

// Staged is new content that waits beside its path. Its life is Stage, Commit,
// then Restore or Release; or Stage, Release. It is used by one goroutine.
type Staged struct {
	spec Spec
	root *os.Root
	// temporary holds the new content until Commit, previous the old file after it.
	temporary, previous string
	committed           bool
}

// Stage writes content to a new file in the directory of the path and waits
// until it is on the disk. The path itself is not touched.
func Stage(s Spec, content secret.Value) (*Staged, error) {
	root, err := s.open()
	if err != nil {
		return nil, err
	}
	st := &Staged{spec: s, root: root, temporary: s.temporaryName()}
	if err := st.write(st.temporary, content); err != nil {
		return nil, errors.Join(err, st.Release())
	}
	return st, nil
}

func (st *Staged) write(name string, content secret.Value) (err error) {
	f, err := st.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return st.explain("create a temporary file beside", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = st.explain("close the temporary file of", cerr)
		}
	}()
	if err := st.spec.own(f); err != nil {
		return err
	}
	if _, err := f.Write(content.Reveal()); err != nil {
		return st.explain("write the temporary file of", err)
	}
	if err := f.Sync(); err != nil {
		return st.explain("sync the temporary file of", err)
	}
	return nil
}

func (st *Staged) explain(what string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		hint = "; the old file is untouched; free some space, it is tried again"
	case errors.Is(err, syscall.EROFS):
		hint = "; the old file is untouched; the file system is read-only"
	case errors.Is(err, fs.ErrPermission):
		hint = "; the agent needs write permission on the directory"
	}
	return fmt.Errorf("%s %s: %w%s", what, st.spec.Path, err, hint)
}

// Commit moves the new content to the path, atomically and durably. The
// previous file, if there was one, is kept aside for Restore.
func (st *Staged) Commit() error {
	if err := st.spec.check(st.root, "of "+st.spec.Path); err != nil {
		return err
	}
	previous := st.spec.temporaryName()
	switch err := st.root.Link(st.spec.base(), previous); {
	case err == nil:
		st.previous = previous
	case errors.Is(err, fs.ErrNotExist):
	default:
		// File systems without hard links, and fs.protected_hardlinks.
		if err := st.copyPrevious(previous); err != nil {
			return err
		}
	}
	if err := st.root.Rename(st.temporary, st.spec.base()); err != nil {
		return st.explain("replace", err)
	}
	st.temporary, st.committed = "", true
	return st.syncDirectory()
}

// copyPrevious keeps the previous file where it cannot be linked.
func (st *Staged) copyPrevious(name string) error {
	content, err := Read(st.spec)
	if err != nil {
		return err
	}
	st.previous = name
	return st.write(name, content)
}

// Restore puts the previous file back, atomically and durably. It fails with
// ErrNotExist when there was none: then the new file stays.
func (st *Staged) Restore() error {
	if !st.committed {
		return nil
	}
	if st.previous == "" {
		return ErrNotExist
	}
	if err := st.root.Rename(st.previous, st.spec.base()); err != nil {
		return st.explain("restore the previous file of", err)
	}
	st.previous, st.committed = "", false
	return st.syncDirectory()
}

// Release removes what waits beside the path and closes the directory. What is
// at the path stays. It may be called again.
func (st *Staged) Release() error {
	var errs []error
	for _, name := range []*string{&st.temporary, &st.previous} {
		if *name == "" {
			continue
		}
		if err := st.root.Remove(*name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove %s beside %s: %w", *name, st.spec.Path, err))
		}
		*name = ""
	}
	return errors.Join(append(errs, st.root.Close())...)
}

func (st *Staged) syncDirectory() error {
	d, err := st.root.Open(".")
	if err != nil {
		return st.explain("open the directory of", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return st.explain("sync the directory of", err)
	}
	return nil
}
