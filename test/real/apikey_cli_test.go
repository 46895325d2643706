package real

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/cli"
)

// keyturn runs a command of the program against the world's server, as an operator.
func (w *world) keyturn(t *testing.T, stdin string, args ...string) (code cli.Exit, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = cli.Main(t.Context(), cli.Config{
		Args: args, Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs, Now: time.Now,
		Environ: []string{"KEYTURN_ADDR=" + w.address(), "KEYTURN_CACERT=" + w.caFile(), "KEYTURN_TOKEN=" + w.token, "HOME=" + w.dir},
	})
	return code, out.String(), errs.String()
}

// TestAPIKeyCommands: the life of an API key at the command line: handed out into a
// file, asked for without a use, used, forgotten, revoked, and its late user named.
// The key is in nothing that is printed.
func TestAPIKeyCommands(t *testing.T) {
	t.Parallel()
	w := newAPIKeyWorld(t, apiKeyPolicy, "")
	var printed strings.Builder
	run := func(want cli.Exit, stdin string, args ...string) string {
		t.Helper()
		code, stdout, stderr := w.keyturn(t, stdin, append([]string{"apikey"}, args...)...)
		printed.WriteString(stdout + stderr)
		if code != want {
			t.Fatalf("keyturn apikey %s: exit code %d, want %d: %s%s", strings.Join(args, " "), code, want, stdout, stderr)
		}
		return stdout + stderr
	}
	file := filepath.Join(w.dir, "acme.key")
	run(cli.ExitOK, "", "issue", apiKey, "--out", file)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	first := strings.TrimSpace(string(content))
	run(cli.ExitOK, "", "issue", apiKey, "--out", file+".again")
	for range 2 { // asking is no use
		if said := run(cli.ExitOK, string(content), "verify"); !strings.Contains(said, "ACME Ltd.") || !strings.Contains(said, "orders:read") {
			t.Errorf("verified: %s", said)
		}
	}
	uses := func() (list []struct {
		Version, Uses, Refused int
		Accepted               bool
		RefusedBy              []struct{ Application string }
	},
	) {
		t.Helper()
		var shown struct{ Versions json.RawMessage }
		if err := json.Unmarshal([]byte(run(cli.ExitOK, "", "show", apiKey, "--output", "json")), &shown); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(shown.Versions, &list); err != nil {
			t.Fatal(err)
		}
		return list
	}
	if list := uses(); len(list) != 1 || list[0].Uses != 0 || !list[0].Accepted {
		t.Errorf("before its first use: %+v", list)
	}
	if v, err := w.verify(t.Context(), first, "billing"); err != nil || !v.Valid {
		t.Fatalf("the first use: %+v, %v", v, err)
	}
	eventually(t, "the use is known, and the key forgotten", func() bool {
		code, _, stderr := w.keyturn(t, "", "apikey", "issue", apiKey, "--show")
		return uses()[0].Uses == 1 && code == cli.ExitNotFound && strings.Contains(stderr, "shown once")
	})
	run(cli.ExitOK, "", "revoke", apiKey, "--reason", "found in a repository", "--strategy", "contain-first", "--wait=done")
	run(cli.ExitFailed, first, "verify")
	if v, err := w.verify(t.Context(), first, "billing"); err != nil || v.Valid {
		t.Errorf("after the revocation: %+v, %v", v, err)
	}
	eventually(t, "who still shows the revoked key has a name", func() bool {
		list := uses()
		return len(list) == 2 && !list[0].Accepted && list[0].Refused > 0 && len(list[0].RefusedBy) > 0 && list[0].RefusedBy[0].Application == "billing"
	})
	if said := run(cli.ExitOK, "", "list", "--prefix", "partners/"); !strings.Contains(said, "destroyed") || !strings.Contains(said, "accepted") {
		t.Errorf("list: %s", said)
	}
	run(cli.ExitOK, "", "issue", apiKey, "--out", file+".2")
	if strings.Contains(printed.String(), first) {
		t.Error("the key was printed")
	}
}
