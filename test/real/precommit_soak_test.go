//go:build soak

package real

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/keyturn/keyturn/internal/cli"
)

// TestPreCommitRefusesALiveKey: the same by the pre-commit framework, with the hooks
// that this repository offers.
func TestPreCommitRefusesALiveKey(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("pre-commit"); err != nil {
		t.Fatalf("%v; run scripts/install-parts soak", err)
	}
	w := newWorld(t, quickPolicy)
	w.first(t)
	c := w.committer(t)
	// A repository that is as this one is, as far as pre-commit looks at it.
	ours := t.TempDir()
	hooks, err := os.ReadFile("../../.pre-commit-hooks.yaml")
	if err == nil {
		err = os.WriteFile(filepath.Join(ours, ".pre-commit-hooks.yaml"), hooks, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.must(t, ours, "git", "init", "-q")
	c.must(t, ours, "git", "add", "-A")
	c.must(t, ours, "git", "commit", "-q", "-m", "hooks")
	c.must(t, ours, "git", "tag", "v1.0.0")
	config := fmt.Sprintf("repos:\n  - repo: %s\n    rev: v1.0.0\n    hooks: [{id: keyturn-scan}, {id: keyturn-scan-match}]\n", ours)
	if err := os.WriteFile(filepath.Join(c.repository, ".pre-commit-config.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	c.must(t, c.repository, "pre-commit", "install")
	output := c.mustGuard(t, w.tap.material(t, 1).Secrets["password"].RevealString())
	says(t, "pre-commit", output, "hook id: keyturn-scan-match", fmt.Sprintf("exit code: %d", cli.ExitLiveKey))
}
