package real

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/server/servertest"
)

// TestAPIKeyAtTwoServers: two servers on one PostgreSQL verify. The moment a client is
// told its next key both let it in, and the moment the rotation is over both refuse
// the old one; no call at either fails on the way. Another scope holds at
// both once it is applied, and a key that leaked is refused at both.
func TestAPIKeyAtTwoServers(t *testing.T) {
	w := newAPIKeyWorld(t, apiKeyPolicy, "    keep: sealed\n", func(w *world) {
		w.onPostgres(t, pgserver.Config{})
	})
	second := *w
	second.logs = &logBuffer{}
	second.options.LogTo = second.logs
	second.config.DataDir = filepath.Join(w.dir, "data-2")
	second.config.Listen = "127.0.0.1:0"
	servertest.CopyKeys(t, w.config.DataDir, second.config.DataDir)
	second.start(t)
	t.Cleanup(func() { second.stop(t) })
	other := &second
	w.finish(t, w.rotateKey(t, apiKey, "first"), "done")
	l := &load{}
	w.caller(t, l, "at-the-first")
	other.caller(t, l, "at-the-second")
	// The other one's party shows its key at the first server as well: it may hear of
	// a version from one and use it at the other.
	crossed := *other
	crossed.client, crossed.addresses = w.client, other.address()
	crossed.config.Listen = w.config.Listen
	crossed.caller(t, l, "crossed")
	for range 2 {
		l.more(t, 20)
		old := w.reveal(t, apiKey, 0)
		w.finish(t, w.rotateKey(t, apiKey, "again"), "done")
		for i, at := range []*world{w, other} {
			if v, err := at.verify(t.Context(), old, "test"); err != nil || v.Valid {
				t.Errorf("the old key at server %d: %+v, %v", i+1, v, err)
			}
		}
	}
	l.more(t, 20)
	l.check(t)
	leaked := w.reveal(t, apiKey, 0)
	document, err := os.ReadFile("../../examples/apikey/partner.yaml")
	if err != nil {
		t.Fatal(err)
	}
	w.apply(t, strings.Replace(string(document), "orders:read", "orders:write", 1)+"    keep: sealed\n")
	for i, at := range []*world{w, other} {
		eventually(t, fmt.Sprintf("server %d knows the key's new scope", i+1), func() bool {
			v, err := at.verify(t.Context(), leaked, "test")
			return err == nil && v.Valid && slices.Equal(v.Scopes, []string{"orders:write"})
		})
	}
	began := time.Now()
	response, err := w.control.Rotate(t.Context(), &keyturnv1.RotateRequest{Name: apiKey, Reason: "leaked", Emergency: true, Strategy: "contain-first"})
	if err != nil {
		t.Fatal(err)
	}
	for i, at := range []*world{w, other} {
		eventually(t, fmt.Sprintf("the leaked key is refused at server %d", i+1), func() bool {
			v, err := at.verify(t.Context(), leaked, "test")
			return err == nil && !v.Valid
		})
	}
	t.Logf("refused at both after %v", time.Since(began))
	w.finish(t, response.GetRotationId(), "done")
	if strings.Contains(w.logs.String()+other.logs.String(), leaked) {
		t.Error("a key is in a server's log")
	}
}
