//go:build soak

package real

import (
	"context"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// TestRegionCutOffForLong (F7): us is cut off by a network that drops packets for
// longer than any time limit that works by default: dead connections are found
// (45 s), clients that stay away forgotten (2 min), measurements and leases run
// out many times. Its clients are not forgotten, and nothing that they use is
// revoked.
func TestRegionCutOffForLong(t *testing.T) {
	t.Parallel()
	g := newGlobe(t, 2*time.Minute)
	id := g.cutWhen(t, dropped, 2, nil)
	g.isBehind(t, "cut off", id, "presenting")
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	<-ctx.Done()
	g.isBehind(t, "still cut off", id, "presenting")
	g.stay(t, "still cut off", 2)
	g.mustAccept(t, 1)
	g.heal()
	g.finish(t, id, "done")
	g.fine(t, "healed", 2, 1)
	g.finish(t, g.rotate(t, &keyturnv1.RotateRequest{Reason: "the next one"}), "done")
	g.fine(t, "the next one", 3, 2)
	g.healthy(t)
}
