package real

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/cli"
)

// TestScenarioS3: a build host that has read an API key is stolen. What it read is
// found in the audit log and contained as one group, by one command, while the clients
// of the key go on without one refused request; a key that it did not read is left
// alone. The evidence is verified offline, altered evidence is found, and no secret is
// in it.
func TestScenarioS3(t *testing.T) {
	t.Parallel()
	w := newAPIKeyWorld(t, apiKeyPolicy+"  emergency: {strategy: replace-first, grace: 1s}\n", "    keep: sealed\n")
	const other = "partners/other"
	document, err := os.ReadFile("../../examples/apikey/partner.yaml")
	if err != nil {
		t.Fatal(err)
	}
	w.apply(t, strings.Replace(string(document), apiKey, other, 1)+"    keep: sealed\n")
	w.finish(t, w.rotateKey(t, apiKey, "first"), "done")
	w.finish(t, w.rotateKey(t, other, "first"), "done")
	l := &load{}
	w.caller(t, l, "caller-1")
	w.caller(t, l, "caller-2")
	since := time.Now().UTC().Format(time.RFC3339Nano)

	// The build host reads the key, as it may.
	made, err := w.control.CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{Name: "build-7/ci", Role: "agent", Keys: []string{"partners/**"}})
	if err != nil {
		t.Fatal(err)
	}
	bare, _ := w.client.Transport.(bearer)
	host := *w.client
	host.Transport = bearer{made.GetToken(), bare.next}
	read, err := keyturnv1connect.NewControlServiceClient(&host, w.address()).GetSecret(t.Context(), &keyturnv1.GetSecretRequest{Name: apiKey})
	if err != nil {
		t.Fatal(err)
	}
	stolen := string(read.GetSecrets()["key"])
	if v, err := w.verifyFrom(t.Context(), stolen, "curl", "203.0.113.9"); err != nil || !v.Valid {
		t.Fatalf("the thief cannot use it: %+v, %v", v, err)
	}
	l.more(t, 20)

	run := func(want cli.Exit, args ...string) string {
		t.Helper()
		code, stdout, stderr := w.keyturn(t, "", args...)
		if code != want {
			t.Fatalf("keyturn %s: exit code %d, want %d: %s%s", strings.Join(args, " "), code, want, stdout, stderr)
		}
		return stdout + stderr
	}
	by := []string{"rotate", "--emergency", "--host", "build-7", "--since", since}
	if said := run(cli.ExitOK, append(by, "--dry-run")...); !strings.Contains(said, "v1 read by build-7/ci") || strings.Contains(said, other) || strings.Contains(said, "INCOMPLETE") {
		t.Errorf("what it read: %s", said)
	}
	if said := run(cli.ExitOK, append(by, "--dry-run", "--could-read")...); !strings.Contains(said, other) || !strings.Contains(said, "covers partners/**") {
		t.Errorf("what it could have read: %s", said)
	}
	here := []string{"rotate", "--emergency", "--read-from", "127.0.0.0/8", "--since", since, "--dry-run"}
	if said := run(cli.ExitOK, here...); !strings.Contains(said, "v1 read by build-7/ci from 127.0.0.1") {
		t.Errorf("what was read from here: %s", said)
	}
	said := run(cli.ExitOK, append(by, "--yes", "--reason", "build-7 was stolen", "--wait=done", "--output", "json")...)
	var group struct {
		ID      string `json:"id"`
		Refused int    `json:"refused"`
		Total   int    `json:"total"`
	}
	if err := json.NewDecoder(strings.NewReader(said)).Decode(&group); err != nil || group.Total != 1 || group.Refused != 1 {
		t.Fatalf("the group: %v: %s", err, said)
	}
	if v, err := w.verifyFrom(t.Context(), stolen, "curl", "203.0.113.9"); err != nil || v.Valid {
		t.Errorf("the stolen key after its end: %+v, %v", v, err)
	}
	if v, err := w.verify(t.Context(), w.reveal(t, other, 0), "test"); err != nil || !v.Valid || v.Version != 1 {
		t.Errorf("a key that was not read: %+v, %v", v, err)
	}
	l.more(t, 20)
	l.check(t)

	secrets := map[string]string{
		"the stolen key": stolen, "its successor": w.reveal(t, apiKey, 0), "another key": w.reveal(t, other, 0),
		"the root token": w.token, "the host's token": made.GetToken(),
	}
	for _, how := range [][]string{{"whole.zip"}, {"lean.zip", "--without-log"}} {
		pack := filepath.Join(w.dir, how[0])
		run(cli.ExitOK, append([]string{"evidence", "pack", group.ID, "-o", pack}, how[1:]...)...)
		if said := run(cli.ExitOK, "evidence", "verify", pack, "--key", w.server.VerifierKey()); !strings.Contains(said, "verified: emergency "+group.ID) {
			t.Errorf("%s: %s", pack, said)
		}
		content, err := os.ReadFile(pack)
		if err != nil {
			t.Fatal(err)
		}
		files := unzip(t, content)
		policy := false
		for name, body := range files {
			policy = policy || strings.HasPrefix(name, "policies/") && strings.Contains(string(body), "replace-first") && strings.Contains(string(body), "1s")
			for _, leak := range leaks(secrets, body) {
				t.Errorf("%s in %s contains %s", name, pack, leak)
			}
			// The same pack with this file altered.
			altered := bytes.Clone(body)
			altered[len(altered)/2] ^= 1
			bad := filepath.Join(w.dir, "altered.zip")
			if err := os.WriteFile(bad, rezip(t, files, name, altered), 0o600); err != nil {
				t.Fatal(err)
			}
			run(cli.ExitFailed, "evidence", "verify", bad)
		}
		if !policy {
			t.Errorf("%s has no policy text", pack)
		}
	}
}

func unzip(t *testing.T, content []byte) map[string][]byte {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		if files[f.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// rezip makes a ZIP of files of which one has another content.
func rezip(t *testing.T, files map[string][]byte, name string, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for file, body := range files {
		part, err := w.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		if file == name {
			body = content
		}
		if _, err := part.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
