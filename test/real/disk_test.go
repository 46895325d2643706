package real

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// smallDisk mounts a file system of its own for the server's data. Only root may
// do that.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	switch err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size); {
	case errors.Is(err, syscall.EPERM):
		t.Skipf("mount a small file system: %v; run the test as root", err)
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount the small file system: %v", err)
		}
	})
	return dir
}

// fill takes all the space there is, in a file that is returned.
func fill(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for block := make([]byte, 4096); ; {
		if _, err := file.Write(block); errors.Is(err, syscall.ENOSPC) {
			return path
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// TestFullDisk: with no space left the server refuses what it cannot store and
// says so, pages, goes on to serve what it has, and recovers when there is space
// again.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	w, clock := newSystems(t), &clock{}
	w.options.Now = clock.now
	disk := smallDisk(t, "24m")
	w.config.DataDir = filepath.Join(disk, "data")
	w.start(t)
	t.Cleanup(func() { w.stop(t) })
	w.apply(t, quickPolicy+"---\n"+w.keyDocument(w.primary.Addr()))
	w.first(t)
	l := w.fleet(t, 3)
	l.more(t, 20)

	// In the middle of a rotation: after the database has heard of the password.
	g, reached, release := at(point{op: "accept", endpoint: "primary", version: 2, after: true})
	w.tap.stand(g)
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "the disk fills up"})
	await(t, "the primary accepts", reached)
	before := w.verified(t)
	ballast := fill(t, disk)
	release()
	eventually(t, "the log speaks of the full disk", func() bool { return strings.Contains(w.logs.String(), "full") })
	// What must be stored is refused in so many words.
	_, err := w.control.Steer(t.Context(), &keyturnv1.SteerRequest{RotationId: id, Action: keyturnv1.SteerAction_STEER_ACTION_PAUSE})
	if err == nil {
		t.Error("a pause was accepted that cannot have been stored")
	} else {
		says(t, "the refusal", err.Error(), "full")
	}
	w.paged(t, `"reason":"store-full"`, `"status":"firing"`, "store-full.md")
	// Reading needs no room: the audit log is exported, signed to its end.
	if during := w.verified(t); len(during) < len(before) {
		t.Errorf("of %d entries %d are exported from the full disk", len(before), len(during))
	}
	l.more(t, 50)
	w.mustAccept(t, 1)
	// It is ready all the same: reads and streams go on, and a server that gets no
	// requests could not tell its parties anything.
	w.isReady(t)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	// An effect whose result could not be stored is repeated when its lease is over.
	clock.jump(lease)
	w.finish(t, id, "done")
	w.mustAccept(t, 2)
	w.mustRefuse(t, 1)
	l.check(t)
	w.isReady(t)
	w.healthy(t)
	w.paged(t, `"reason":"store-full"`, `"status":"resolved"`)
	// What had been committed is there, and the rotation's own entries follow.
	if after := w.verified(t); len(after) <= len(before) || !slices.Equal(after[:len(before)], before) {
		t.Errorf("of the %d entries before the disk was full, not all are among the %d after", len(before), len(after))
	}
}

func (w *world) isReady(t *testing.T) {
	t.Helper()
	answer, err := w.client.Get(w.address() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Errorf("/readyz: status %d", answer.StatusCode)
	}
}
