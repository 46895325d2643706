package real

import (
	"context"
	"errors"
	"testing"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/provider"
)

// TestGenerationFails (F5): the rotation stops before anything is changed
// outside, and says why. The next one succeeds.
func TestGenerationFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	l := w.fleet(t, 3)
	before := w.roles(t)
	for name, cause := range map[string]error{
		"for good":    provider.Permanent(errors.New("the token is locked"), "unlock slot 3"),
		"for a while": errors.New("the token does not answer"),
	} {
		w.tap.stand(func(_ context.Context, here point) error {
			if here.op == "mint" {
				return cause
			}
			return nil
		})
		id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "generation fails " + name})
		r := w.finish(t, id, "failed")
		says(t, "the reason", r.GetReason(), "minting failed", cause.Error())
		says(t, "the timeline", w.timeline(t, id), "minting → failed", cause.Error())
		says(t, "the log", w.logs.String(), "effect=mint", cause.Error())
	}
	w.tap.stand(nil)
	if after := w.roles(t); after != before {
		t.Errorf("the roles were changed:\n%s\nwere\n%s", after, before)
	}
	if k := w.key(t); k.GetCurrent() != 1 || len(k.GetVersions()) != 1 {
		t.Errorf("current is %d of %d versions", k.GetCurrent(), len(k.GetVersions()))
	}
	w.mustAccept(t, 1)
	w.finish(t, w.rotate(t, &keyturnv1.RotateRequest{Reason: "the token is back"}), "done")
	w.mustRefuse(t, 1)
	l.check(t)
	w.healthy(t)
}
