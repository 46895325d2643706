package pgserver

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// nobody is the user and group of last resort.
const nobody = 65534

// account is the user that the servers run as.
type account struct {
	uid, gid uint32
	// drop says that the current user must be left: PostgreSQL refuses root.
	drop bool
}

func currentAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	entry, err := user.Lookup("postgres")
	if unknown := user.UnknownUserError(""); errors.As(err, &unknown) {
		return account{uid: nobody, gid: nobody, drop: true}, nil
	}
	if err != nil {
		return account{}, fmt.Errorf("look up the user postgres: %w", err)
	}
	uid, err := strconv.ParseUint(entry.Uid, 10, 32)
	if err != nil {
		return account{}, fmt.Errorf("user ID of postgres: %w", err)
	}
	gid, err := strconv.ParseUint(entry.Gid, 10, 32)
	if err != nil {
		return account{}, fmt.Errorf("group ID of postgres: %w", err)
	}
	return account{uid: uint32(uid), gid: uint32(gid), drop: true}, nil
}

// attributes end the child with its parent, keep the terminal's signals away
// from it, and leave root.
func (a account) attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGQUIT}
	if a.drop {
		attr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	return attr
}

func (a account) chown(path string) error {
	if !a.drop {
		return nil
	}
	if err := os.Chown(path, int(a.uid), int(a.gid)); err != nil {
		return fmt.Errorf("give %s to the server's user: %w", path, err)
	}
	return nil
}

// checkTraversable says which folder above dir the server's user cannot enter,
// which PostgreSQL itself would report as a missing data folder.
func (a account) checkTraversable(dir string) error {
	if !a.drop {
		return nil
	}
	for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
		info, err := os.Stat(parent)
		if err != nil {
			return fmt.Errorf("look at the folder above the server's: %w", err)
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("look at the folder %s: no owner is known", parent)
		}
		mode := info.Mode().Perm()
		allowed := mode&0o001 != 0 || stat.Uid == a.uid && mode&0o100 != 0 || stat.Gid == a.gid && mode&0o010 != 0
		if !allowed {
			return fmt.Errorf("the unprivileged user %d cannot enter %s (mode %04o); choose another folder with Config.Dir or TMPDIR", a.uid, parent, mode)
		}
		if parent == filepath.Dir(parent) {
			return nil
		}
	}
}
