package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
)

// TestQuota: see fillUp.
func TestQuota(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyturn.db")
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path, MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fillUp(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	// Within a quota, deleting makes room.
	err = s.Update(t.Context(), func(tx store.Tx) error {
		docs, err := tx.Index.List(t.Context(), "fill", "", "", 20)
		for _, doc := range docs {
			err = errors.Join(err, tx.Docs.Delete(t.Context(), doc.Kind, doc.Name, doc.Rev))
		}
		return err
	})
	if err != nil {
		t.Fatalf("delete: %v", err)
	}
	put(t, s, "fill", "after")
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	s, err = sqlite.Open(t.Context(), sqlite.Config{Path: path}) // with a larger one
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		put(t, s, "more", fmt.Sprint(i))
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
}

// TestDiskFull runs fillUp on a file system of its own that is really full.
// The child mounts it where only itself sees it.
func TestDiskFull(t *testing.T) {
	child := exec.CommandContext(t.Context(), os.Args[0], t.TempDir())
	child.Env = append(os.Environ(), childVariable+"=full")
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		child.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		child.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		child.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := child.CombinedOutput()
	if errors.Is(err, unix.EPERM) || strings.Contains(string(out), errNoMount.Error()) {
		t.Logf("this system lets nobody mount: TestQuota stands for the full disk (%v: %s)", err, out)
		return
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

var errNoMount = errors.New("mounting is not allowed")

func fullChild(folder string) error {
	ctx := context.Background()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return errors.Join(errNoMount, err)
	}
	if err := unix.Mount("tmpfs", folder, "tmpfs", 0, "size=2m"); err != nil {
		return errors.Join(errNoMount, err)
	}
	path := filepath.Join(folder, "keyturn.db")
	s, err := sqlite.Open(ctx, sqlite.Config{Path: path})
	if err != nil {
		return err
	}
	acknowledged, err := fillUp(ctx, s)
	if err != nil {
		return err
	}
	// A restart on the full disk loses nothing; it may be refused.
	_ = s.Stop()
	if s, err = sqlite.Open(ctx, sqlite.Config{Path: path}); err != nil && !errors.Is(err, store.ErrFull) {
		return fmt.Errorf("open on a full disk: %w", err)
	} else if err == nil {
		_ = s.Stop()
	}
	if err := unix.Mount("", folder, "", unix.MS_REMOUNT, "size=16m"); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	if s, err = sqlite.Open(ctx, sqlite.Config{Path: path}); err != nil {
		return fmt.Errorf("open after room was made: %w", err)
	}
	if err := checkFilled(ctx, s, acknowledged); err != nil {
		return err
	}
	err = s.Update(ctx, func(tx store.Tx) error {
		_, err := tx.Docs.Put(ctx, store.Doc{Kind: "fill", Name: "after", Body: make([]byte, 1<<20)})
		return err
	})
	return errors.Join(err, s.Stop())
}

// fillUp writes pairs of documents from several goroutines until each of them
// was told that the storage is full, and checks that exactly the acknowledged
// pairs are there.
func fillUp(ctx context.Context, s *sqlite.Store) (acknowledged map[string]bool, err error) {
	const workers = 6
	results := make(chan map[string]bool, workers)
	failed := make(chan error, workers)
	for worker := range workers {
		go func() {
			done := map[string]bool{}
			defer func() { results <- done }()
			for i := 0; ; i++ {
				name := fmt.Sprintf("%d %d", worker, i)
				err := s.Update(ctx, func(tx store.Tx) error {
					_, err := tx.Docs.Put(ctx, store.Doc{Kind: "fill", Name: name, Body: make([]byte, 3000)})
					if err != nil {
						return err
					}
					_, _ = tx.Docs.Put(ctx, store.Doc{Kind: "fill", Name: name + " too", Body: make([]byte, 9000)})
					return nil // a function that hides the failure
				})
				if err != nil {
					failed <- err
					return
				}
				done[name], done[name+" too"] = true, true
			}
		}()
	}
	acknowledged = map[string]bool{}
	for range workers {
		if err := <-failed; !errors.Is(err, store.ErrFull) {
			return nil, fmt.Errorf("got %w, want an error that wraps %w", err, store.ErrFull)
		}
		for name := range <-results {
			acknowledged[name] = true
		}
	}
	return acknowledged, checkFilled(ctx, s, acknowledged)
}

func checkFilled(ctx context.Context, s *sqlite.Store, acknowledged map[string]bool) error {
	return s.View(ctx, func(tx store.Tx) error {
		docs, err := tx.Index.List(ctx, "fill", "", "", store.MaxLimit)
		if err != nil {
			return err
		}
		for _, doc := range docs {
			if !acknowledged[doc.Name] {
				return fmt.Errorf("%q is there and was not acknowledged", doc.Name)
			}
		}
		if len(docs) != len(acknowledged) || len(docs) < 20 {
			return fmt.Errorf("%d documents are there, %d were acknowledged", len(docs), len(acknowledged))
		}
		return nil
	})
}

func put(t testing.TB, s *sqlite.Store, kind, name string) {
	t.Helper()
	update(t, s, func(tx store.Tx) error {
		_, err := tx.Docs.Put(t.Context(), store.Doc{Kind: kind, Name: name, Body: make([]byte, 2000)})
		return err
	})
}
