package datadir_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/datadir"
)

func TestFolderIsTheOwners(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	for range 2 { // a folder that is there is as good
		if err := datadir.Make(path); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	for _, mode := range []fs.FileMode{0o720, 0o702} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := datadir.Make(path); err == nil || !strings.Contains(err.Error(), "chmod 700 "+path) {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
}

func TestNothingIsReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.key")
	if gone, err := datadir.Missing(path); err != nil || !gone {
		t.Errorf("%t %v", gone, err)
	}
	if err := datadir.WriteNew(path, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := datadir.WriteNew(path, []byte("second"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file was written over another: %v", err)
	}
	if content, err := datadir.ReadPrivate(path); err != nil || string(content) != "first" {
		t.Errorf("%s %v", content, err)
	}
	if gone, err := datadir.Missing(path); err != nil || gone {
		t.Errorf("%t %v", gone, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("something was left behind: %v %v", entries, err)
	}
	if gone, err := datadir.Missing(filepath.Join(path, "below a file")); err == nil || gone {
		t.Errorf("what cannot be told counts as missing: %t %v", gone, err)
	}
}

func TestWhatOthersCanReadIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.key")
	if _, err := datadir.ReadPrivate(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if err := datadir.WriteNew(path, []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := datadir.ReadPrivate(path); err == nil || !strings.Contains(err.Error(), "chmod 600 "+path) {
		t.Errorf("for a group: %v", err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := datadir.ReadPrivate(link); err == nil {
		t.Error("a link was followed")
	}
}
