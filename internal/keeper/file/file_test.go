package file_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/keeper/file"
	"github.com/keyturn/keyturn/internal/keeper/keepertest"
)

func open(t testing.TB, path string) *file.Keeper {
	t.Helper()
	k, err := file.Open(file.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	paths := map[keeper.Keeper]string{}
	keepertest.Run(t, keepertest.Suite{
		New: func(t *testing.T) keeper.Keeper {
			path := filepath.Join(t.TempDir(), "kek.json")
			k := open(t, path)
			paths[k] = path
			return k
		},
		Rotate: func(t *testing.T, k keeper.Keeper) {
			if _, err := k.(*file.Keeper).Rotate(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		Reopen: func(t *testing.T, k keeper.Keeper) keeper.Keeper { return open(t, paths[k]) },
	})
}

func TestCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "kek.json")
	if _, err := file.Open(file.Config{Path: path, MustExist: true}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("MustExist without a file: %v", err)
	}
	const n = 8 // processes that start at once
	results := make(chan string, n)
	for range n {
		go func() {
			k, err := file.Open(file.Config{Path: path})
			if err != nil {
				results <- err.Error()
				return
			}
			results <- k.Primary()
		}()
	}
	first := <-results
	for range n - 1 {
		if next := <-results; next != first {
			t.Errorf("got KEKs %q and %q", first, next)
		}
	}
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if len(entries) != 1 || err != nil {
		t.Errorf("temporary files are left: %v, %v", entries, err)
	}
	if k := open(t, path); k.Primary() != first {
		t.Errorf("opened again, the KEK is %q, it was %q", k.Primary(), first)
	}
}

func TestRefuses(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(t *testing.T, path string)
		want    error
		hint    string
	}{
		{"readable by the group", func(t *testing.T, path string) { must(t, os.Chmod(path, 0o640)) }, file.ErrPermissions, "chmod 0600"},
		{"writable by others", func(t *testing.T, path string) { must(t, os.Chmod(path, 0o602)) }, file.ErrPermissions, "chmod 0600"},
		{"symbolic link", func(t *testing.T, path string) {
			must(t, os.Rename(path, path+".real"))
			must(t, os.Symlink(path+".real", path))
		}, file.ErrPermissions, "name the file itself"},
		{"dangling link", func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, os.Symlink(path+".real", path))
		}, file.ErrPermissions, "name the file itself"},
		{"folder", func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, os.Mkdir(path, 0o700))
		}, file.ErrPermissions, "regular"},
		{"pipe", func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, syscall.Mkfifo(path, 0o600))
		}, file.ErrPermissions, "regular"},
		{"folder open to everybody", func(t *testing.T, path string) { must(t, os.Chmod(filepath.Dir(path), 0o777)) }, file.ErrPermissions, "chmod o-w"},
		{"empty", func(t *testing.T, path string) { must(t, os.WriteFile(path, nil, 0o600)) }, file.ErrFormat, "backup"},
		{"not JSON", func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte("hunter2"), 0o600)) }, file.ErrFormat, "backup"},
		{"too long", func(t *testing.T, path string) { must(t, os.WriteFile(path, make([]byte, 2<<20), 0o600)) }, file.ErrFormat, "longer"},
		{"cut off", func(t *testing.T, path string) {
			info, err := os.Stat(path)
			must(t, err)
			must(t, os.Truncate(path, info.Size()/2))
		}, file.ErrFormat, "backup"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "kek.json")
			open(t, path)
			test.prepare(t, path)
			_, err := file.Open(file.Config{Path: path})
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.hint) {
				t.Errorf("got %v, want an error that wraps %q and says %q", err, test.want, test.hint)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error quotes the file: %v", err)
			}
		})
	}
	if _, err := file.Open(file.Config{}); err == nil {
		t.Error("Open without a path succeeded")
	}
	if os.Geteuid() == 0 {
		path := filepath.Join(t.TempDir(), "kek.json")
		open(t, path)
		must(t, os.Chown(path, 12345, 12345))
		if _, err := file.Open(file.Config{Path: path}); !errors.Is(err, file.ErrPermissions) || !strings.Contains(err.Error(), "chown") {
			t.Errorf("another user's file: %v", err)
		}
	}
}

// TestRotation: two processes share the file.
func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek.json")
	one, two := open(t, path), open(t, path)
	ctx := t.Context()
	first := one.Primary()
	kek, old, err := one.Wrap(ctx, []byte("old"), nil)
	must(t, err)

	second, err := one.Rotate(ctx)
	must(t, err)
	if one.Primary() != second || second == first || !slices.Equal(one.KEKs(), []string{second, first}) {
		t.Errorf("after the rotation: %q, primary %q", one.KEKs(), one.Primary())
	}
	kek2, recent, err := one.Wrap(ctx, []byte("new"), nil)
	must(t, err)
	if dek, err := two.Unwrap(ctx, kek2, recent, nil); string(dek) != "new" || err != nil {
		t.Errorf("the other process does not find the new KEK: %q, %v", dek, err)
	}
	if third, err := two.Rotate(ctx); err != nil || len(two.KEKs()) != 3 {
		t.Errorf("rotation by the other process: %q, %v", third, err)
	}
	if dek, err := one.Unwrap(ctx, kek, old, nil); string(dek) != "old" || err != nil {
		t.Errorf("the old KEK: %q, %v", dek, err)
	}

	if err := two.Remove(ctx, two.Primary()); !errors.Is(err, file.ErrPrimary) {
		t.Errorf("remove the primary KEK: %v", err)
	}
	if err := two.Remove(ctx, "file:1"); !errors.Is(err, keeper.ErrUnknownKEK) {
		t.Errorf("remove an unknown KEK: %v", err)
	}
	must(t, two.Remove(ctx, first))
	if _, err := open(t, path).Unwrap(ctx, kek, old, nil); !errors.Is(err, keeper.ErrUnknownKEK) {
		t.Errorf("a removed KEK: %v", err)
	}
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode() != 0o600 {
		t.Errorf("mode %v after the changes", info.Mode())
	}

	// A file that became unsafe is not changed either.
	must(t, os.Chmod(path, 0o644))
	if _, err := one.Rotate(ctx); !errors.Is(err, file.ErrPermissions) {
		t.Errorf("rotation in an unsafe file: %v", err)
	}
}

// TestOthersAreFollowed: a process wraps by what another one has made the primary KEK,
// by one that was only added never, and by what it knows while the file is away.
func TestOthersAreFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek.json")
	one, two := open(t, path), open(t, path)
	ctx := t.Context()
	wraps := func(kek string) {
		t.Helper()
		used, wrapped, err := one.Wrap(ctx, []byte("dek"), nil)
		must(t, err)
		if used != kek || one.Primary() != kek || one.KEKs()[0] != kek {
			t.Errorf("wrapped by %s, primary %s of %v, want %s", used, one.Primary(), one.KEKs(), kek)
		}
		if dek, err := two.Unwrap(ctx, used, wrapped, nil); string(dek) != "dek" || err != nil {
			t.Errorf("the other process: %q, %v", dek, err)
		}
	}
	first := one.Primary()
	added, err := two.Add(ctx)
	must(t, err)
	wraps(first)
	if len(one.KEKs()) != 2 {
		t.Errorf("KEKs %v", one.KEKs())
	}
	must(t, two.Use(ctx, added))
	wraps(added)
	if err := two.Use(ctx, "file:1"); !errors.Is(err, keeper.ErrUnknownKEK) {
		t.Errorf("use of an unknown KEK: %v", err)
	}
	must(t, two.Use(ctx, first))
	wraps(first)
	must(t, two.Remove(ctx, added))
	if len(one.KEKs()) != 1 {
		t.Errorf("KEKs %v", one.KEKs())
	}

	content, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, []byte("half"), 0o600))
	wraps(first)
	must(t, os.Remove(path))
	wraps(first)
	must(t, os.WriteFile(path, content, 0o600))
	wraps(first)
}
