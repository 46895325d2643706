package place_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/keyturn/keyturn/internal/agent/place"
	"github.com/keyturn/keyturn/secret"
)

func spec(dir string) place.Spec {
	return place.Spec{Path: filepath.Join(dir, "db.conf"), Mode: 0o600, UID: -1, GID: -1}
}

func put(t *testing.T, s place.Spec, content string) *place.Staged {
	t.Helper()
	st, err := place.Stage(s, secret.NewString(content))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Release() })
	if err := st.Commit(); err != nil {
		t.Fatal(err)
	}
	return st
}

func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("files in the directory: %v, want %v", got, want)
	}
}

func wantContent(t *testing.T, s place.Spec, want string) {
	t.Helper()
	v, err := place.Read(s)
	if err != nil || v.RevealString() != want {
		t.Errorf("content %q, %v, want %q", v.RevealString(), err, want)
	}
}

func TestCommitRestoreRelease(t *testing.T) {
	dir := t.TempDir()
	s := spec(dir)
	if _, err := place.Read(s); !errors.Is(err, place.ErrNotExist) {
		t.Errorf("Read of nothing: %v", err)
	}
	first := put(t, s, "one")
	if err := first.Restore(); !errors.Is(err, place.ErrNotExist) {
		t.Errorf("Restore of nothing: %v", err)
	}
	first.Release()
	second := put(t, s, "two")
	wantContent(t, s, "two")
	if err := second.Restore(); err != nil {
		t.Fatal(err)
	}
	wantContent(t, s, "one")
	second.Release()
	third := put(t, s, "three")
	third.Release()
	wantContent(t, s, "three")
	wantFiles(t, dir, "db.conf")
}

// TestModesAndOwners: a cache file was once written for everybody to read (knox, mode 0666).
func TestModesAndOwners(t *testing.T) {
	dir := t.TempDir()
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	s := spec(dir)
	s.Mode = 0o640
	if os.Geteuid() == 0 {
		s.UID, s.GID = 65534, 65534
	}
	put(t, s, "x").Release()
	check := func() {
		t.Helper()
		info, err := os.Lstat(s.Path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o640 {
			t.Errorf("mode %v", info.Mode())
		}
		if o := info.Sys().(*syscall.Stat_t); s.UID >= 0 && (o.Uid != 65534 || o.Gid != 65534) {
			t.Errorf("owner %d:%d", o.Uid, o.Gid)
		}
	}
	check()
	if err := os.Chmod(s.Path, 0o666); err != nil {
		t.Fatal(err)
	}
	if s.UID >= 0 {
		if err := os.Chown(s.Path, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	if changed, err := place.Repair(s); err != nil || !changed {
		t.Errorf("Repair: %v, %v", changed, err)
	}
	check()
	if changed, err := place.Repair(s); err != nil || changed {
		t.Errorf("second Repair: %v, %v", changed, err)
	}
}

func TestUnsafePlaces(t *testing.T) {
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	sticky := t.TempDir()
	if err := os.Chmod(sticky, 0o777|fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	// envoy#39498: what happens at a symbolic link must be said, not guessed.
	linked := t.TempDir()
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(linked, "db.conf")); err != nil {
		t.Fatal(err)
	}
	occupied := t.TempDir()
	if err := os.Mkdir(filepath.Join(occupied, "db.conf"), 0o700); err != nil {
		t.Fatal(err)
	}
	fifo := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(fifo, "db.conf"), 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, says := range map[string]string{
		open: "chmod o-w", linked: "symbolic link", occupied: "no regular file", fifo: "no regular file", "/nowhere/at/all": "create it first",
	} {
		s := spec(dir)
		if err := place.Check(s); !errors.Is(err, place.ErrUnsafe) || !strings.Contains(err.Error(), says) {
			t.Errorf("Check in %s: %v, want %q", dir, err, says)
		}
		if _, err := place.Stage(s, secret.NewString("x")); !errors.Is(err, place.ErrUnsafe) {
			t.Errorf("Stage in %s: %v", dir, err)
		}
		if _, err := place.Read(s); !errors.Is(err, place.ErrUnsafe) {
			t.Errorf("Read in %s: %v", dir, err)
		}
	}
	if b, err := os.ReadFile(victim); err != nil || string(b) != "keep" {
		t.Errorf("the link's target: %q, %v", b, err)
	}
	if err := place.Check(spec(sticky)); err != nil {
		t.Errorf("a sticky directory: %v", err)
	}
}

func TestSymlinkAppearsBetweenStageAndCommit(t *testing.T) {
	dir := t.TempDir()
	st, err := place.Stage(spec(dir), secret.NewString("new"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("elsewhere", filepath.Join(dir, "db.conf")); err != nil {
		t.Fatal(err)
	}
	if err := st.Commit(); !errors.Is(err, place.ErrUnsafe) {
		t.Errorf("Commit: %v", err)
	}
	st.Release()
	wantFiles(t, dir, "db.conf")
}

func TestCleanRemovesOnlyOurs(t *testing.T) {
	dir := t.TempDir()
	s := spec(dir)
	put(t, s, "one") // not released, as after a crash: the link to nothing previous
	put(t, s, "two")
	for _, name := range []string{".keyturn-other", "db.conf.bak"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := place.Clean(s); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir, ".keyturn-other", "db.conf", "db.conf.bak")
	wantContent(t, s, "two")
}

// TestFullDisk fills a real, tiny file system.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("only root can mount a small tmpfs; the test runs as root in CI")
		return
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Fatalf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	s := spec(dir)
	put(t, s, "old").Release()
	if _, err := place.Stage(s, secret.New(make([]byte, 256<<10))); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "old file is untouched") {
		t.Errorf("Stage on a full disk: %v", err)
	}
	wantContent(t, s, "old")
	wantFiles(t, dir, "db.conf")

	// Restoring must work on a disk that has filled up since.
	st := put(t, s, "new")
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	filler.Close()
	if err := st.Restore(); err != nil {
		t.Errorf("Restore on a full disk: %v", err)
	}
	st.Release()
	wantContent(t, s, "old")
}

// TestReadersNeverSeeAPart reads without pause while the content changes.
func TestReadersNeverSeeAPart(t *testing.T) {
	s := spec(t.TempDir())
	contents := []string{strings.Repeat("a", 100_000), strings.Repeat("b", 50)}
	put(t, s, contents[0]).Release()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				b, err := os.ReadFile(s.Path)
				if err != nil || string(b) != contents[0] && string(b) != contents[1] {
					t.Errorf("a reader saw %d bytes, %v", len(b), err)
					return
				}
			}
		})
	}
	for i := range 60 {
		put(t, s, contents[(i+1)%2]).Release()
	}
	close(stop)
	readers.Wait()
}
