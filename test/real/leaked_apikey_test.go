package real

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/cli"
)

// TestLeakedAPIKeyIsContained (S3): an API key that a scan finds in a log is replaced and
// refused without a human, while its clients go on.
func TestLeakedAPIKeyIsContained(t *testing.T) {
	t.Parallel()
	w := newAPIKeyWorld(t, apiKeyPolicy+"  leaks: {onMatch: emergency}\n  emergency: {strategy: replace-first, grace: 1s}\n", "    keep: sealed\n")
	w.finish(t, w.rotateKey(t, apiKey, "first"), "done")
	l := &load{}
	w.caller(t, l, "caller-1")
	w.caller(t, l, "caller-2")
	leaked := w.reveal(t, apiKey, 0)
	l.more(t, 20)

	dir := t.TempDir()
	line := "2026-11-26 12:00:00 GET /orders Authorization: Bearer " + leaked + " 200\n"
	if err := os.WriteFile(filepath.Join(dir, "access.log"), []byte("2026-11-26 11:59:59 GET / 200\n"+line), 0o600); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	code, found := w.scanned(t, dir)
	if code != cli.ExitLiveKey || len(found) != 1 || found[0].Managed == nil || found[0].Rule != "keyturn-api-key" || found[0].Line != 2 {
		t.Fatalf("exit code %d, found %+v", code, found)
	}
	m := found[0].Managed
	if m.Key != apiKey || m.Version != 1 || !m.Live || m.Action != "emergency" {
		t.Errorf("found %+v", m)
	}
	r := w.finish(t, m.Rotation, "done")
	t.Logf("the leaked key was replaced and refused %v after the scan began", time.Since(begun))
	if r.GetKind() != "emergency" || r.GetFrom() != 1 || r.GetTo() != 2 {
		t.Errorf("rotation %v", r)
	}
	if v, err := w.verify(t.Context(), leaked, "curl"); err != nil || v.Valid {
		t.Errorf("the leaked key after its end: %+v, %v", v, err)
	}
	l.more(t, 20)
	l.check(t)
}
