package real

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
)

// clock is the server's clock: the real one, and how far it is off.
type clock struct{ off atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.off.Load())) }
func (c *clock) jump(d time.Duration)    { c.off.Add(int64(d)) }
func (c *clock) jumpTo(target time.Time) { c.jump(target.Sub(c.now())) }
func (c *clock) next(hour int) time.Time { return nextHour(c.now().UTC(), hour) }
func nextHour(t time.Time, h int) time.Time {
	at := time.Date(t.Year(), t.Month(), t.Day(), h, 0, 0, 0, time.UTC)
	if !at.After(t) {
		at = at.AddDate(0, 0, 1)
	}
	return at
}

// newClockWorld is newWorld under a clock that can jump, with a first version;
// the policy holds from then on.
func newClockWorld(t *testing.T, policy string) (*world, *clock) {
	t.Helper()
	w, c := newSystems(t), &clock{}
	w.options.Now = c.now
	w.start(t)
	t.Cleanup(func() { w.stop(t) })
	w.apply(t, quickPolicy+"---\n"+w.keyDocument(w.primary.Addr()))
	w.first(t)
	w.apply(t, policy)
	return w, c
}

// TestExpiredWindow: a rotation that could not begin within its window is given
// up with a reason, nothing was touched, and the next window brings another.
func TestExpiredWindow(t *testing.T) {
	t.Parallel()
	w, c := newClockWorld(t, vary(t, "spec:", `spec:
  rotate: {every: 12h, jitter: 0s, windows: [{cron: "0 2 * * *", duration: 1h}]}
  approvals: {required: 1}`))
	before := w.roles(t)
	c.jumpTo(c.next(2).AddDate(0, 0, 1).Add(time.Minute))
	expired := w.scheduled(t, "")
	r := w.wait(t, expired, func(r *keyturnv1.Rotation) bool { return r.GetPhase() == "planned" })
	_, messages := waitsFor(r)
	says(t, "what it waits for", messages, "1 of 1 approvals")
	c.jump(time.Hour)
	r = w.finish(t, expired, "cancelled")
	says(t, "the reason", r.GetReason(), "its window passed before it could begin")
	if after := w.roles(t); after != before {
		t.Error("the database was touched")
	}
	w.mustAccept(t, 1)
	c.jumpTo(c.next(2).Add(time.Minute))
	next := w.scheduled(t, expired)
	r = w.wait(t, next, func(r *keyturnv1.Rotation) bool { return r.GetPhase() == "planned" })
	if r.GetKind() != "scheduled" {
		t.Errorf("it is %s", r.GetKind())
	}
	w.approve(t, next)
	w.finish(t, next, "done")
	w.mustAccept(t, 2)
	w.mustRefuse(t, 1)
	w.healthy(t)
}

// scheduled waits for a scheduled rotation other than the one before.
func (w *world) scheduled(t *testing.T, before string) (id string) {
	t.Helper()
	eventually(t, "a rotation begins by its schedule", func() bool {
		list, err := w.control.ListRotations(t.Context(), &keyturnv1.ListRotationsRequest{Key: keyName})
		if err != nil {
			t.Fatal(err)
		}
		newest := list.GetRotations()[0]
		id = newest.GetId()
		return newest.GetKind() == "scheduled" && id != before
	})
	return id
}

// approve approves a rotation, with a token of its own.
func (w *world) approve(t *testing.T, id string) {
	t.Helper()
	token, err := w.control.CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{Name: "alice", Role: "approver", Keys: []string{"**"}})
	if err != nil {
		t.Fatal(err)
	}
	alice := &http.Client{Transport: bearer{token.GetToken(), w.client.Transport.(bearer).next}}
	_, err = keyturnv1connect.NewControlServiceClient(alice, w.address()).Steer(t.Context(),
		&keyturnv1.SteerRequest{RotationId: id, Action: keyturnv1.SteerAction_STEER_ACTION_APPROVE})
	if err != nil {
		t.Fatal(err)
	}
}

// TestClockJumps: the server's clock jumps forward and back while rotations run.
// They end, no application notices, and the history stays whole.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	w, clock := newClockWorld(t, vary(t, "{name: rest, bake: 0s", "{name: rest, bake: 1s", "quarantine: 0s", "quarantine: 1s"))
	l := w.fleet(t, 3)
	for _, c := range []struct {
		phase string
		jump  time.Duration
	}{
		{"presenting", 24 * time.Hour},
		{"draining", -3 * time.Second},
		{"quarantine", 90 * 24 * time.Hour},
		{"presenting", -3 * time.Second},
		{"draining", 24 * time.Hour},
		{"quarantine", -3 * time.Second},
	} {
		id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "the clock jumps by " + c.jump.String() + " while " + c.phase})
		w.wait(t, id, func(r *keyturnv1.Rotation) bool { return phaseNumber(r.GetPhase()) >= phaseNumber(c.phase) })
		clock.jump(c.jump)
		w.finish(t, id, "done")
	}
	if now := w.current(t); now != 7 {
		t.Errorf("version %d is current", now)
	}
	l.check(t)
	w.healthy(t)
}
