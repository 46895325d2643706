package passfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestPasswordFileIsBounded: what is no password file is told, without a word of
// what is in it, and neither fills the memory nor is waited for.
func TestPasswordFileIsBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	huge := write("huge", "")
	if err := os.Truncate(huge, 1<<40); err != nil { // holes: it takes no space
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	open := write("open", "hunter2")
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		huge: "more than 1024 bytes", pipe: "not a regular file", dir: "not a regular file", "/dev/zero": "not a regular file",
		write("empty", "\n"): "is empty", write("lines", "hunter2\nhunter3\n"): "more than one line",
		write("long", strings.Repeat("x", Max+1)): "more than 1024 bytes", open: "chmod 0600", open + "x": "no such file",
	} {
		password, err := Read(path, 0o007)
		if password != "" || err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "hunter") {
			t.Errorf("%s: %q, %v; want an error that says %q", path, password, err, says)
		}
	}
	if _, err := Read(open+"x", 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if password, err := Read(open, 0); password != "hunter2" || err != nil {
		t.Errorf("where everybody may read: %q, %v", password, err)
	}
	for content, want := range map[string]string{
		"hunter2": "hunter2", "hunter2\n": "hunter2", "hunter2\r\n": "hunter2", "a b": "a b",
		strings.Repeat("x", Max) + "\r\n": strings.Repeat("x", Max),
	} {
		if got, err := Read(write("good", content), 0o007); got != want || err != nil {
			t.Errorf("%q: %q, %v", content, got, err)
		}
	}
}

func FuzzPassword(f *testing.F) {
	for _, seed := range []string{"", "\n", "hunter2", "hunter2\r\n", "a\nb", "\x00", strings.Repeat("x", Max), strings.Repeat("x", Max+1)} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		before := string(content)
		password, err := parse(content)
		if string(content) != before {
			t.Error("the content was changed")
		}
		if err != nil {
			if password != "" || len(before) > 6 && strings.Contains(err.Error(), before) {
				t.Errorf("%q with %v", password, err)
			}
			return
		}
		if password == "" || len(password) > Max || strings.ContainsAny(password, "\r\n\x00") {
			t.Errorf("%q is a password", password)
		}
		if rest, whole := strings.CutPrefix(before, password); !whole || rest != "" && rest != "\n" && rest != "\r\n" && rest != "\r" {
			t.Errorf("of %q %q was taken", before, password)
		}
	})
}
