package real

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/cli"
	"github.com/keyturn/keyturn/internal/scan"
)

// scanned runs keyturn scan --match as a scanner's token may.
func (w *world) scanned(t *testing.T, args ...string) (cli.Exit, []scan.Finding) {
	t.Helper()
	token, err := w.control.CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{Name: "ci", Role: "scanner", Keys: []string{"**"}})
	if err != nil {
		t.Fatal(err)
	}
	var out, problems bytes.Buffer
	code := cli.Main(t.Context(), cli.Config{
		Args: append([]string{"scan", "--match", "--output", "json"}, args...), Stdout: &out, Stderr: &problems, Version: "test",
		Environ: []string{"KEYTURN_ADDR=" + w.address(), "KEYTURN_CACERT=" + w.caFile(), "KEYTURN_TOKEN=" + token.GetToken()},
	})
	t.Logf("%s", problems.String())
	var result struct{ Findings []scan.Finding }
	if err := json.Unmarshal(out.Bytes(), &result); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	return code, result.Findings
}

// TestLeakedPasswordIsReplaced: a password in the history of a git repository is
// known for what it is, and replaced and refused without a human.
func TestLeakedPasswordIsReplaced(t *testing.T) {
	t.Parallel()
	w := newWorld(t, vary(t, "  emergency: {", "  leaks: {onMatch: emergency}\n  emergency: {"))
	w.first(t)
	l := w.fleet(t, 3)
	password := w.tap.material(t, 1).Secrets["password"].RevealString()

	repository := t.TempDir()
	commit := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(repository, "settings.py"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"add", "."}, {"-c", "user.name=Bob", "-c", "user.email=bob@example.org", "commit", "-q", "-m", "settings"}} {
			if output, err := exec.CommandContext(t.Context(), "git", append([]string{"-C", repository}, args...)...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, output)
			}
		}
	}
	if output, err := exec.CommandContext(t.Context(), "git", "init", "-q", repository).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	commit("DEBUG = False\n")
	if code, found := w.scanned(t, "--git", repository); code != cli.ExitOK || len(found) != 0 {
		t.Fatalf("a clean repository: exit code %d, %+v", code, found)
	}
	commit("DEBUG = False\nURL = 'postgres://orders_a:" + password + "@db/orders'\n")
	commit("DEBUG = False\n")

	begun := time.Now()
	code, found := w.scanned(t, "--git", repository)
	if code != cli.ExitLiveKey || len(found) != 1 || found[0].Managed == nil {
		t.Fatalf("exit code %d, found %+v", code, found)
	}
	m := found[0].Managed
	if m.Key != keyName || m.Version != 1 || !m.Live || m.Action != "emergency" || found[0].Author != "Bob" || found[0].Line != 2 {
		t.Errorf("found %+v, %+v", found[0], m)
	}
	r := w.finish(t, m.Rotation, "done")
	t.Logf("the leaked password was replaced and refused %v after the scan began", time.Since(begun))
	if r.GetKind() != "emergency" || r.GetFrom() != 1 || r.GetTo() != 2 {
		t.Errorf("rotation %v", r)
	}
	w.mustRefuse(t, 1)
	w.mustAccept(t, 2)
	says(t, "the timeline", w.timeline(t, m.Rotation), "settings.py:2", "done")
	l.check(t)
	// The same finding begins nothing again.
	if code, found = w.scanned(t, "--git", repository); code == cli.ExitLiveKey {
		t.Errorf("scanned again: exit code %d, %+v", code, found)
	}
	if current := w.current(t); current != 2 {
		t.Errorf("version %d is current", current)
	}
	w.healthy(t)
}
