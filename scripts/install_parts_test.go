// Package scripts_test runs the scripts of this folder on a made-up machine.
package scripts_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// machine is a folder of programs that install-parts finds instead of the real ones.
type machine struct {
	programs string // PATH
	parts    string // where Debian puts servers
}

func newMachine(t *testing.T, programs map[string]string) machine {
	t.Helper()
	m := machine{programs: t.TempDir(), parts: t.TempDir()}
	for _, name := range []string{"bash", "env", "dirname", "mktemp", "tail", "rm", "touch", "chmod", "true"} {
		target, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(m.programs, name)); err != nil {
			t.Fatal(err)
		}
	}
	// Of the parts only PostgreSQL can be missing.
	parts, err := os.ReadFile("parts.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(parts)) {
		if words := strings.Fields(line); len(words) > 2 && words[0] == "test" && words[1] != "postgres" {
			if err := os.WriteFile(filepath.Join(m.programs, words[1]), []byte("#!/bin/sh\n"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, script := range programs {
		script = "#!/bin/sh\n" + strings.ReplaceAll(script, "PARTS", m.parts) + "\n"
		if err := os.WriteFile(filepath.Join(m.programs, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// run returns what the script printed and its exit code.
func (m machine) run(t *testing.T, ci string) (out string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(m.programs, "bash"), "install-parts")
	cmd.Env = []string{"PATH=" + m.programs, "KEYTURN_PART_DIRS=" + m.parts, "CI=" + ci, "TMPDIR=" + t.TempDir()}
	bytes, err := cmd.CombinedOutput()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(bytes), cmd.ProcessState.ExitCode()
}

const (
	root    = "echo 0"
	user    = "echo 1000"
	install = `echo "apt-get $*" >>PARTS/log; case "$*" in *install*) touch PARTS/postgres; chmod +x PARTS/postgres;; esac`
)

func TestInstallParts(t *testing.T) {
	for name, test := range map[string]struct {
		programs  map[string]string
		ci        string
		code      int
		want      string
		installed bool
	}{
		"present":              {map[string]string{"postgres": "exit 0", "id": user}, "true", 0, "every real part is here", false},
		"root":                 {map[string]string{"apt-get": install, "id": root}, "true", 0, "installing postgresql", true},
		"sudo":                 {map[string]string{"apt-get": install, "id": user, "sudo": `[ "$1" = -n ] && shift; exec "$@"`}, "", 0, "installing postgresql", true},
		"sudo wants password":  {map[string]string{"apt-get": install, "id": user, "sudo": "exit 1"}, "true", 1, "needs root", false},
		"user":                 {map[string]string{"apt-get": install, "id": user}, "", 0, "apt-get install -y --no-install-recommends postgresql", false},
		"user under CI":        {map[string]string{"apt-get": install, "id": user}, "true", 1, "apt-get install -y --no-install-recommends postgresql", false},
		"another system":       {map[string]string{"id": root}, "", 0, "has no apt-get", false},
		"another system in CI": {map[string]string{"id": root}, "true", 1, "has no apt-get", false},
		"apt fails":            {map[string]string{"apt-get": "echo no network; exit 100", "id": root}, "", 1, "no network", false},
		"apt lies":             {map[string]string{"apt-get": "exit 0", "id": root}, "", 1, "still missing", false},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, test.programs)
			out, code := m.run(t, test.ci)
			if code != test.code || !strings.Contains(out, test.want) {
				t.Errorf("exit code %d, want %d and %q in:\n%s", code, test.code, test.want, out)
			}
			if _, err := os.Stat(filepath.Join(m.parts, "postgres")); (err == nil) != test.installed {
				t.Errorf("installed: %v, want %v", err == nil, test.installed)
			}
		})
	}
}
