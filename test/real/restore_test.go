package real

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/test/pgtest"
)

// backUp takes a backup of the server while it runs.
func (w *world) backUp(t *testing.T, to string, id *age.X25519Identity) {
	t.Helper()
	stream, err := w.control.Backup(t.Context(), &keyturnv1.BackupRequest{Recipients: []string{id.Recipient().String()}})
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(to)
	for err == nil && stream.Receive() {
		_, err = file.Write(stream.Msg().GetPiece())
	}
	if err := errors.Join(err, stream.Err(), stream.Close(), file.Close()); err != nil {
		t.Fatal(err)
	}
}

// restore makes the database from a backup, after all but the keys and the last
// checkpoint was lost.
func (w *world) restore(t *testing.T, from string, id *age.X25519Identity) {
	t.Helper()
	lost, err := filepath.Glob(filepath.Join(w.config.DataDir, "keyturn.db*"))
	if err != nil || len(lost) == 0 {
		t.Fatal(lost, err)
	}
	for _, name := range lost {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	report, err := server.Restore(t.Context(), w.config, server.RestoreOptions{File: from, Identities: []age.Identity{id}, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if report.Log.Proven == 0 || report.Log.Proven > report.Log.Entries {
		t.Errorf("the log of the backup: %+v", report.Log)
	}
}

// outside is how often anything was changed at the systems.
func (d *tap) outside() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for p, count := range d.count {
		if p.op == "accept" || p.op == "refuse" || p.op == "mint" || p.op == "destroy" {
			n += count
		}
	}
	return n
}

// TestPainVault22275: a restore of the server's database ends no log-in and changes
// nothing outside. The copy is made while a rotation runs under load; after it the
// rotation ends, and another one takes both of the database's roles. The restored
// server stands still, says what differs, and one command settles it; what was
// sent before is turned away from its first look on; no query
// fails at any moment, and nothing from before the copy is lost.
func TestPainVault22275(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	l := w.fleet(t, 5)
	w.finish(t, w.rotate(t, &keyturnv1.RotateRequest{Reason: "before the copy"}), "done")
	saved := filepath.Join(w.dir, "keyturn.backup")
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	gate, reached, release := at(point{op: "accept", endpoint: "primary", version: 3})
	w.tap.stand(gate)
	open := w.rotate(t, &keyturnv1.RotateRequest{Reason: "under way when the copy is made"})
	await(t, "the rotation is accepting", reached)
	w.backUp(t, saved, id)
	w.tap.stand(nil)
	release()
	w.finish(t, open, "done")
	w.finish(t, w.rotate(t, &keyturnv1.RotateRequest{Reason: "after the copy"}), "done")
	l.more(t, 50)

	w.stop(t)
	w.restore(t, saved, id)
	before := w.tap.outside()
	w.start(t)
	eventually(t, "the differences are shown", func() bool { return len(w.key(t).GetDifferences()) > 0 })
	l.more(t, 100)
	if after := w.tap.outside(); after != before {
		t.Errorf("the restored server changed something outside %d times before it was told to", after-before)
	}
	var fenced int
	err = pgtest.Connect(t, w.primary.SuperuserURL("postgres")).QueryRow(t.Context(),
		`SELECT count(*) FROM pg_roles WHERE shobj_description(oid, 'pg_authid') ~ '"fence":[0-9]{16}[,}]'`).Scan(&fenced)
	if err != nil || fenced != 2 {
		t.Errorf("%d roles turn away what was sent before the restore, want 2: %v", fenced, err)
	}
	standing := w.key(t)
	says(t, "the key", standing.GetStanding()+strings.Join(standing.GetDifferences(), "; "), "primary", "v4", "not known")
	if n := len(standing.GetVersions()); n < 3 || standing.GetCurrent() != 2 {
		t.Errorf("of before the copy %d versions are known, and %d is current", n, standing.GetCurrent())
	}
	checks, err := w.control.Doctor(t.Context(), &keyturnv1.DoctorRequest{})
	if err != nil {
		t.Fatal(err)
	}
	shown := ""
	for _, c := range checks.GetChecks() {
		shown += c.GetName() + " " + c.GetStatus() + " " + c.GetMessage() + " " + c.GetHint() + "\n"
	}
	says(t, "doctor", shown, "restore warning", "without the", "restored key "+keyName+" failed", "keyturn reconcile")

	answer, err := w.control.Reconcile(t.Context(), &keyturnv1.ReconcileRequest{Name: keyName, How: "replace", Reason: "restored"})
	if err != nil {
		t.Fatal(err)
	}
	w.finish(t, answer.GetRotationId(), "done")
	fresh := w.current(t)
	if fresh <= 1000 {
		t.Errorf("version %d is current: its number may have been used in the time that is missing", fresh)
	}
	w.finish(t, w.rotate(t, &keyturnv1.RotateRequest{Reason: "as ever"}), "done")
	w.mustAccept(t, key.Version(w.current(t)))
	l.more(t, 50)
	l.check(t)
	w.healthy(t)
}
