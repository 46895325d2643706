package pgserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
)

// ErrNotInstalled: the programs of a PostgreSQL server were not found.
var ErrNotInstalled = errors.New("no PostgreSQL server programs in PATH or /usr/lib/postgresql/*/bin; install them, on Debian by: apt-get install postgresql")

var programs = []string{"initdb", "postgres", "pg_basebackup"}

// Find returns the folder that holds initdb, postgres and pg_basebackup: the
// first folder of PATH that has all three, else the newest version under
// /usr/lib/postgresql. It fails with ErrNotInstalled.
func Find() (string, error) {
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.IsAbs(dir) && complete(dir) {
			return dir, nil
		}
	}
	dirs, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		return "", fmt.Errorf("look for PostgreSQL: %w", err)
	}
	slices.SortFunc(dirs, func(a, b string) int { return majorVersion(b) - majorVersion(a) })
	for _, dir := range dirs {
		if complete(dir) {
			return dir, nil
		}
	}
	return "", ErrNotInstalled
}

// complete reports whether dir holds every program. Debian puts wrappers for the
// clients into /usr/bin, so that one program alone says nothing.
func complete(dir string) bool {
	for _, name := range programs {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

func majorVersion(bin string) int {
	n, err := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	if err != nil {
		return 0
	}
	return n
}
