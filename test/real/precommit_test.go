package real

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/cli"
)

// commandVariable has this program be the command line, under the name keyturn.
const commandVariable = "KEYTURN_TEST_COMMAND"

// command is the command line in a process of its own.
func command() int {
	return int(cli.Main(context.Background(), cli.Config{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Environ: os.Environ(), Version: "test",
	}))
}

// committer is somebody who works in a repository, with keyturn in PATH and a
// scanner's token.
type committer struct {
	repository string
	keyturn    string
	env        []string
}

func (w *world) committer(t *testing.T) *committer {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	token, err := w.control.CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{Name: "laptop", Role: "scanner", Keys: []string{"**"}})
	if err != nil {
		t.Fatal(err)
	}
	c := &committer{repository: t.TempDir(), keyturn: filepath.Join(bin, "keyturn"), env: append(os.Environ(),
		"PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"), commandVariable+"=1", "HOME="+t.TempDir(), "PRE_COMMIT_HOME="+t.TempDir(),
		"KEYTURN_ADDR="+w.address(), "KEYTURN_CACERT="+w.caFile(), "KEYTURN_TOKEN="+token.GetToken(),
		"GIT_AUTHOR_NAME=Bob", "GIT_AUTHOR_EMAIL=bob@example.org", "GIT_COMMITTER_NAME=Bob", "GIT_COMMITTER_EMAIL=bob@example.org",
	)}
	if err := os.Symlink(program, c.keyturn); err != nil {
		t.Fatal(err)
	}
	c.must(t, c.repository, "git", "init", "-q")
	return c
}

// run runs a program in a folder, and returns what it says and its exit code.
func (c *committer) run(t *testing.T, dir string, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, c.env
	output, err := cmd.CombinedOutput()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", args, err)
	}
	return string(output), cmd.ProcessState.ExitCode()
}

func (c *committer) must(t *testing.T, dir string, args ...string) string {
	t.Helper()
	output, code := c.run(t, dir, args...)
	if code != 0 {
		t.Fatalf("%v: exit code %d: %s", args, code, output)
	}
	return strings.TrimSpace(output)
}

// commit writes a file, stages and commits it.
func (c *committer) commit(t *testing.T, text string) (string, int) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(c.repository, "settings.py"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.must(t, c.repository, "git", "add", "-A")
	return c.run(t, c.repository, "git", "commit", "-q", "-m", "settings")
}

// mustGuard commits what is clean, and then the password of a version in use, which is
// refused with the key, the version and its owner named.
func (c *committer) mustGuard(t *testing.T, password string) string {
	t.Helper()
	if output, code := c.commit(t, "DEBUG = False\n"); code != 0 {
		t.Fatalf("a clean commit: exit code %d: %s", code, output)
	}
	before := c.must(t, c.repository, "git", "rev-parse", "HEAD")
	output, code := c.commit(t, "DEBUG = False\nURL = 'postgres://orders_a:"+password+"@db/orders'\n")
	if code == 0 || c.must(t, c.repository, "git", "rev-parse", "HEAD") != before {
		t.Fatalf("the commit of a live key: exit code %d: %s", code, output)
	}
	says(t, "the hook", output, "settings.py:2", "this is "+string(keyName)+" v1", "owned by team-orders")
	if strings.Contains(output, password) {
		t.Errorf("the hook shows the password: %s", output)
	}
	if output, code := c.commit(t, "DEBUG = True\n"); code != 0 {
		t.Fatalf("the same without it: exit code %d: %s", code, output)
	}
	return output
}

// TestCommitOfALiveKeyIsRefused: by the hook that the documentation shows.
func TestCommitOfALiveKeyIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	c := w.committer(t)
	hook := filepath.Join(c.repository, ".git", "hooks", "pre-commit")
	if err := os.MkdirAll(filepath.Dir(hook), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hook, []byte("#!/bin/sh\nexec keyturn scan --staged --match\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	c.mustGuard(t, w.tap.material(t, 1).Secrets["password"].RevealString())
	// What the hook exits with.
	if err := os.WriteFile(filepath.Join(c.repository, "more.env"), []byte("PASSWORD="+w.tap.material(t, 1).Secrets["password"].RevealString()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if output, code := c.run(t, c.repository, c.keyturn, "scan", "--staged", "--match"); code != int(cli.ExitOK) {
		t.Errorf("nothing is staged: exit code %d: %s", code, output)
	}
	c.must(t, c.repository, "git", "add", "-A")
	if output, code := c.run(t, c.repository, c.keyturn, "scan", "--staged", "--match"); code != int(cli.ExitLiveKey) {
		t.Errorf("a live key is staged: exit code %d: %s", code, output)
	}
}
