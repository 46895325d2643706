package real

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/key"
)

// TestCanaryFailureRollsBack: the canary cannot use the new version. Within
// seconds everybody is on the old one, the others were never told, and the
// timeline says who failed and why.
func TestCanaryFailureRollsBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	l := w.fleet(t, 5)
	sick := w.open(t, "sick-canary", "canary", "eu")
	defer sick.OnApply(func(_ context.Context, next client.Credential) error {
		if next.Version == 2 {
			return errors.New("the orders service answers 500")
		}
		return nil
	})()

	begun := time.Now()
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "a canary that fails"})
	r := w.finish(t, id, "rolled-back")
	t.Logf("rolled back after %v", time.Since(begun))

	timeline := w.timeline(t, id)
	says(t, "the timeline", timeline, "rolling-back", "stage canary failed", "sick-canary", "the orders service answers 500", "rolled-back")
	says(t, "the reason", r.GetReason(), "sick-canary", "the orders service answers 500")
	for line := range strings.Lines(timeline) {
		for i := range 5 {
			if cohort(i, 5) != "canary" && strings.Contains(line, "presenter.told") && strings.Contains(line, fmt.Sprintf("app-%d ", i)) {
				t.Errorf("a party of a later stage was told: %s", line)
			}
		}
	}
	if took := r.GetEndedAt().AsTime().Sub(rolledBackAt(t, timeline, r)); took > 30*time.Second {
		t.Errorf("the roll-back took %v", took)
	}
	if now := w.current(t); now != 1 {
		t.Errorf("version %d is current", now)
	}
	w.mustAccept(t, 1)
	w.mustRefuse(t, 2)
	// The next rotation is not held up by the failed one.
	w.finish(t, w.rotate(t, &keyturnv1.RotateRequest{Reason: "the next one"}), "done")
	w.mustRefuse(t, 1)
	w.mustAccept(t, 3)
	l.check(t)
	w.healthy(t)
}

// rolledBackAt is when the rotation began to roll back.
func rolledBackAt(t *testing.T, timeline string, r *keyturnv1.Rotation) time.Time {
	t.Helper()
	for line := range strings.Lines(timeline) {
		if at, rest, _ := strings.Cut(line, " "); strings.Contains(rest, "→ rolling-back") {
			clock, err := time.Parse("15:04:05.000", at)
			if err != nil {
				t.Fatal(err)
			}
			day := r.GetEndedAt().AsTime()
			return time.Date(day.Year(), day.Month(), day.Day(), clock.Hour(), clock.Minute(), clock.Second(), clock.Nanosecond(), time.UTC)
		}
	}
	t.Fatalf("it never rolled back:\n%s", timeline)
	return time.Time{}
}

// node is an agent of which only the connection is there: it takes what it is
// told into use, or says nothing.
type node struct {
	t      *testing.T
	client *client.Client
	known  client.Known
}

func (w *world) node(t *testing.T, id, cohort, region string) *node {
	t.Helper()
	c, err := client.New(w.party(client.KindAgent, id, cohort, region))
	if err != nil {
		t.Fatal(err)
	}
	return &node{t: t, client: c, known: client.Known{Key: keyName}}
}

// run connects the node until stop is called. It answers what it is told by
// answer; a nil answer takes everything into use.
func (n *node) run(answer func(client.Assignment) *client.Outcome) (stop func()) {
	ctx, cancel := context.WithCancel(n.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = n.client.Watch(ctx, []client.Known{n.known}, func(_ context.Context, batch []client.Assignment) []client.Outcome {
			var out []client.Outcome
			for _, a := range batch {
				outcome := &client.Outcome{Key: a.Key, Version: a.Version, Epoch: a.Epoch, Code: client.Applied, Using: a.Version}
				if answer != nil {
					outcome = answer(a)
				}
				if outcome == nil {
					continue
				}
				n.known = client.Known{Key: a.Key, Version: outcome.Using, Epoch: a.Epoch}
				out = append(out, *outcome)
			}
			return out
		}) // it ends with ctx
	}()
	return func() { cancel(); <-done }
}

// settled waits until the server knows that the node uses the version.
func (w *world) settled(t *testing.T, id string, version uint64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s uses version %d", id, version), func() bool {
		response, err := w.control.ListParties(t.Context(), &keyturnv1.ListPartiesRequest{Key: keyName})
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(response.GetParties(), func(p *keyturnv1.PartyStatus) bool {
			return p.GetParty().GetId() == id && len(p.GetKeys()) == 1 && p.GetKeys()[0].GetUsing() == version
		})
	})
}

// TestNodeThatNeverAcknowledges (F1): the rotation holds at its barrier and
// names the node, which goes on with the old version. When it comes back the
// rotation goes on by itself; a node that is gone for good is removed.
func TestNodeThatNeverAcknowledges(t *testing.T) {
	t.Parallel()
	w := newWorld(t, vary(t, "{name: rest, bake: 0s, ackTimeout: 5s}", "{name: rest, bake: 0s, ackTimeout: 500ms}"))
	w.first(t)
	l := w.fleet(t, 3)
	lost := w.node(t, "node-7", "rest", "us")
	stop := lost.run(nil)
	w.settled(t, "node-7", 1)
	stop()

	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "one node is cut off"})
	w.isHeldBy(t, id, "node-7", 2)
	stop = lost.run(nil)
	w.finish(t, id, "done")
	says(t, "the timeline", w.timeline(t, id), "stage-late", "stage-late is over", "node-7")
	w.mustRefuse(t, 1)
	stop()

	id = w.rotate(t, &keyturnv1.RotateRequest{Reason: "the node never comes back"})
	w.isHeldBy(t, id, "node-7", 3)
	if _, err := w.control.RemoveParty(t.Context(), &keyturnv1.RemovePartyRequest{Id: "node-7", Reason: "its disk broke"}); err != nil {
		t.Fatal(err)
	}
	w.finish(t, id, "done")
	w.mustRefuse(t, 2)
	w.mustAccept(t, 3)
	l.check(t)
	w.healthy(t)
}

// isHeldBy waits until the rotation is held because a party is late with the
// version, and looks at what an operator sees.
func (w *world) isHeldBy(t *testing.T, id, party string, version uint64) {
	t.Helper()
	r := w.held(t, id, "stage-late")
	if r.GetHold().GetHuman() {
		t.Error("the rotation does not go on by itself")
	}
	says(t, "the hold", r.GetHold().GetMessage(), "1 presenters", fmt.Sprintf("v%d", version), "stage rest")
	names, _ := waitsFor(r)
	if !slices.Equal(names, []string{party}) {
		t.Errorf("the rotation names %v, not %s alone", names, party)
	}
	log, err := w.control.ReadLog(t.Context(), &keyturnv1.ReadLogRequest{RotationId: id, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	paged := slices.ContainsFunc(log.GetEntries(), func(entry string) bool {
		return strings.Contains(entry, "rotation.hold") && strings.Contains(entry, "stage-late") && strings.Contains(entry, party)
	})
	if !paged {
		t.Errorf("no audit entry of the hold names %s:\n%s", party, strings.Join(log.GetEntries(), "\n"))
	}
	w.paged(t, id, "stage-late", party)
	w.mustAccept(t, key.Version(version-1))
	w.mustAccept(t, key.Version(version))
}
